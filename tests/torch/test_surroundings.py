"""What surrounds an optimizer: a step that is compiled, another default device, master weights of its own."""

import numpy as np
import pytest
import simulation
import torch
from ranks import RANK, SIZE

import horovod_sign.torch as hvs

RANKS = (1, 2)  # alone, where the stock wrapper does nothing; and with votes that travel

pytestmark = pytest.mark.fault("surroundings")
N = 5


def gradient(step: int, rank: int = RANK) -> torch.Tensor:
    return torch.randn(N, generator=torch.Generator("cpu").manual_seed(100 * step + rank), device="cpu")


def expected(steps: int, lr: float = 0.1) -> np.ndarray:
    """What Signum makes of zeros."""
    trained = simulation.Simulation([np.zeros(N, np.float32)], SIZE, lr, simulation.signum(0.9))
    for step in range(steps):
        trained.step([[gradient(step, rank).numpy()] for rank in range(SIZE)])
    return trained.x[0]


def stock(p):
    import horovod.torch as hvd

    if SIZE == 1:
        pytest.skip("Horovod's own wrapper does nothing on one rank")
    compression = hvs.Compression.signum(named_parameters=[("p", p)])
    return hvd.DistributedOptimizer(torch.optim.SGD([p], 0.1), [("p", p)], compression=compression, op=hvd.Sum)


MADE = {
    "alone": lambda p: hvs.Signum([p], 0.1),
    "auto": lambda p: hvs.DistributedOptimizer(hvs.Signum([p], 0.1)),
    "exchange": lambda p: hvs.DistributedOptimizer(hvs.Signum([p], 0.1), transport="exchange"),
    "counts": lambda p: hvs.DistributedOptimizer(hvs.Signum([p], 0.1), transport="counts", overlap=False),
    "around SGD": lambda p: hvs.DistributedOptimizer(
        torch.optim.SGD([p], 0.1), compression=hvs.Compression.signum(0.9)
    ),
    "stock": stock,
}


@pytest.mark.parametrize("what", ["step", "loop"])
@pytest.mark.parametrize("made", MADE)
def test_compiled_steps(made, what):
    """Dynamo would trace into the calls of the kernels, and crash."""
    if made == "alone" and SIZE > 1:
        pytest.skip("votes with nobody")
    p = torch.nn.Parameter(torch.zeros(N))
    optimizer = MADE[made](p)
    torch._dynamo.reset()

    def loop(gradient, step):
        optimizer.zero_grad()
        (p * gradient).sum().backward()
        step()

    if what == "step":
        step = torch.compile(optimizer.step, backend="eager")
    else:
        loop, step = torch.compile(loop, backend="eager"), optimizer.step
    for i in range(3):
        loop(gradient(i), step)
    np.testing.assert_allclose(p.detach().numpy(), expected(3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("default", ["device", "dtype"])
@pytest.mark.parametrize("made", ["auto", "exchange", "counts", "around SGD", "stock", "scaled"])
def test_another_default(made, default):
    """What we make ourselves is on the CPU, and of a dtype that Horovod sends, whatever the default."""
    p = torch.nn.Parameter(torch.zeros(N))
    scaler, gradients = torch.amp.GradScaler("cpu", init_scale=2.0), [gradient(i) for i in range(3)]
    if default == "device":
        torch.set_default_device("meta")
    else:
        torch.set_default_dtype(torch.bfloat16)
    try:
        if made == "scaled":
            optimizer = hvs.DistributedOptimizer(hvs.Signum([p], 0.1), grad_scaler=scaler, check_replicas=1)
        else:
            optimizer = MADE[made](p)
        for i in range(3):
            optimizer.zero_grad()
            loss = (p * gradients[i]).sum()
            if made == "scaled":
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
            else:
                loss.backward()
                optimizer.step()
            if made == "around SGD":
                optimizer.load_state_dict(optimizer.state_dict())
        if made != "stock":
            hvs.gather_state_dict(optimizer)
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3, device="cpu"))]})
        hvs.adversaries.corrupt([p], "random")
        (p * 2.0).sum().backward()
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(p.detach().numpy(), expected(3), rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch has it from 2.10 on")
@pytest.mark.parametrize("made", ["auto", "exchange", "counts", "around SGD"])
def test_gradients_of_another_dtype_than_the_parameter(made):
    """Of float32 beside a parameter of 16 bits, in which they would be 0; votes as gradients are of that dtype too."""
    p = torch.nn.Parameter(torch.zeros(N, dtype=torch.float16))
    p.grad_dtype = torch.float32
    optimizer = MADE[made](p)
    for i in range(3):
        optimizer.zero_grad()
        p.grad = gradient(i) * 1e-12
        if made == "exchange" and i == 1:
            optimizer.synchronize()
            assert p.grad.dtype == torch.float32 and p.grad.abs().max() <= 1
            with optimizer.skip_synchronize():
                optimizer.step()
        else:
            optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), expected(3), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("how", ["data", "numpy"])
@pytest.mark.parametrize("kind", ["Signum", "SGD"])
def test_master_weights_whose_gradients_are_written_past_torch(kind, how):
    """float32 copies of 16-bit parameters: no backward reaches them, and torch does not see what is written."""
    model, master = torch.zeros(N, dtype=torch.bfloat16, requires_grad=True), torch.nn.Parameter(torch.zeros(N))
    plain = hvs.Signum([master], 0.1) if kind == "Signum" else torch.optim.SGD([master], 0.1)
    options = {} if kind == "Signum" else {"compression": hvs.Compression.signum(0.9)}
    optimizer = hvs.DistributedOptimizer(plain, **options)
    master.grad = torch.zeros(N)
    trained = simulation.Simulation([np.zeros(N, np.float32)], SIZE, 0.1, simulation.signum(0.9))
    for i in range(3):
        model.grad = None
        (model * gradient(i).bfloat16()).sum().backward()
        if how == "data":
            master.grad.data.copy_(model.grad.data)
        else:
            master.grad.numpy()[...] = model.grad.float().numpy()
        optimizer.step()
        model.data.copy_(master.data)
        trained.step([[gradient(i, rank).bfloat16().float().numpy()] for rank in range(SIZE)])
    np.testing.assert_allclose(master.detach().numpy(), trained.x[0], rtol=1e-5, atol=1e-6)
    if kind == "SGD":
        with pytest.raises(RuntimeError, match=r"step\(\) was called twice"):
            optimizer.step()
