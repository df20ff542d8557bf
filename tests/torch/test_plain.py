"""SignSGD and Signum by themselves, and what votes are packed from: on one process, against NumPy."""

import math

import numpy as np
import pytest
import simulation
import torch
from kernel_sets import KERNEL_SETS, use_kernels

import horovod_sign.torch as hvs
from horovod_sign import rules
from horovod_sign.tensors import ballots, layout, planes
from horovod_sign.torch import compression, optimizers

SHAPES = [(3, 5), (64,), (130,), ()]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def gradients(step: int, missing: bool = False) -> list[np.ndarray | None]:
    """Exact in 16 bits; `missing`: one parameter has none."""
    random = np.random.default_rng([7, step])
    found = [np.asarray(random.integers(-8, 9, shape), np.float32) / 8 for shape in SHAPES]
    return [None if missing and i == 1 else g for i, g in enumerate(found)]


def values(parameters) -> list[np.ndarray]:
    return [p.detach().double().numpy().copy() for p in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize(
    ("momentum", "warmup", "rule"),
    [
        (None, False, simulation.SIGNSGD),
        (0.75, False, simulation.signum(0.75)),
        (0.75, True, simulation.signum(0.75, warmup=2)),
        (0.0, False, simulation.SIGNSGD),
    ],
)
def test_plain_optimizers_equal_the_simulation(momentum, warmup, rule, weight_decay):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    if momentum is None:
        optimizer = hvs.SignSGD(parameters, 0.125, weight_decay)
    else:
        optimizer = hvs.Signum(parameters, 0.125, momentum, weight_decay, warmup)
    expected = simulation.Simulation(values(parameters), 1, 0.125, rule, weight_decay)
    for step in range(8):
        of_step = gradients(step)
        for p, g in zip(parameters, of_step, strict=True):
            p.grad = torch.tensor(g)
        optimizer.step()
        expected.step([of_step])
    for value, simulated in zip(values(parameters), expected.x, strict=True):
        np.testing.assert_allclose(value, simulated, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_what_has_no_gradient_stays_where_it_is(momentum):
    """Also with weight decay, as in torch; and sparse gradients count like dense ones."""
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    groups = [{"params": [p], "lr": 0.5}, {"params": [q], "weight_decay": 0.0}]
    make = hvs.SignSGD if momentum is None else hvs.Signum
    optimizer = make(groups, 0.25, weight_decay=0.5)
    q.grad = torch.tensor([0.0, -2.0, 3.0]).to_sparse()
    optimizer.step()
    assert p.tolist() == [1.0] * 3
    assert q.tolist() == [1.0, 1.25, 0.75]
    p.grad = torch.tensor([1.0, 0.0, 0.0])
    optimizer.step()
    assert p.tolist() == [1 - 0.5 * 1.5, 0.75, 0.75]


def test_a_closure_has_gradients_and_its_loss_is_returned():
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = hvs.SignSGD([p], 0.25)

    def closure():
        loss = 3 * p.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert p.item() == 0.75
    with torch.no_grad():
        p.grad = None
        assert optimizer.step(closure).item() == 2.25
    assert optimizer.step() is None


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_options_are_checked_and_a_bad_group_is_not_kept(name):
    p, q = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
    for bad in (-1e-9, math.nan):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            hvs.Signum([p], **{"lr": 0.1, name: bad})
    optimizer = hvs.Signum([p], **{"lr": 0.1, name: 0.0})
    assert optimizer.param_groups[0][name] == 0.0
    with pytest.raises(ValueError, match="at least 0"):
        optimizer.add_param_group({"params": [q], name: -1.0})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q]})
    assert optimizer.defaults["weight_decay"] == 0.0
    assert hvs.Signum([p], 0.1).param_groups[0]["momentum"] == 0.9
    assert hvs.Signum([p], 0.1).param_groups[0]["warmup"] is False


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("momenta", ["equal", "float64", "absent"])
def test_a_loaded_momentum_is_float32_whatever_the_parameter(dtype, momenta):
    """torch casts what it loads to the dtype of the parameter."""

    def build():
        p = torch.nn.Parameter(torch.zeros(6, 5, dtype=dtype).t())
        return p, hvs.Signum([p], 0.125, momentum=0.75, warmup=True)

    def step(p, optimizer, number):
        p.grad = torch.from_numpy(np.random.default_rng(number).standard_normal((5, 6))).to(dtype)
        optimizer.step()

    p, optimizer = build()
    for number in range(5):
        step(p, optimizer, number)
    saved = optimizer.state_dict()
    if momenta != "equal":
        (state,) = saved["state"].values()
        state["momentum_buffer"] = state["momentum_buffer"].double()
        if momenta == "absent":
            del state["momentum_buffer"]
    q, resumed = build()
    q.data.copy_(p.data)
    resumed.load_state_dict(saved)
    if momenta == "absent":
        assert "momentum_buffer" not in resumed.state[q]
        return
    assert resumed.state[q]["momentum_buffer"].dtype == torch.float32
    assert torch.equal(resumed.state[q]["momentum_buffer"], optimizer.state[p]["momentum_buffer"])
    assert resumed.state[q]["step"] == 5
    for number in range(5, 9):
        step(p, optimizer, number)
        step(q, resumed, number)
        assert torch.equal(p, q)
    assert resumed.state[q]["momentum_buffer"].stride() == q.stride()


def test_a_16_bit_step_is_rounded_once():
    """Computed in float32: 1 - 2^-9 (1 + 2^-1 * 1) is not what two roundings to bfloat16 give."""
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype)
        p = torch.nn.Parameter(x.clone())
        vote = torch.sign(torch.randn(1000, generator=torch.Generator().manual_seed(1))).to(dtype)
        with torch.no_grad():
            optimizers.take_step(p, vote, {"lr": 0.3, "weight_decay": 0.7})
        expected = x.float() - (x.float() * 0.7 + vote.float()) * 0.3
        assert torch.equal(p.detach(), expected.to(dtype))


def test_rules_say_what_is_voted_on_by_two_betas():
    """The oracle's, of an unlike pair (as Lion has): votes by one, keeps by the other."""
    rule = rules.Interpolation(beta_vote=0.5, beta_state=0.75, warmup_steps=1)
    workers = simulation.Workers([np.zeros(200)], 1, simulation.Rule(0.5, 0.75, 1))
    state, random = {}, np.random.default_rng(0)
    for step in range(6):
        g = random.standard_normal(200).astype(np.float32)
        g[step] = math.inf
        warm = rules.warming_up(rule, state)
        assert warm == (step == 0)
        voted = optimizers.sign(ballots.local_ballot(rule, torch.tensor(g), state, warm))
        np.testing.assert_array_equal(voted.numpy(), workers.votes([[g]])[0])
        np.testing.assert_allclose(state["momentum_buffer"].numpy(), workers.m[0][0], rtol=1e-6)
    assert rules.signum(0.8, warmup=True) == rules.Interpolation(0.8, 0.8, 19)
    assert rules.signum(0.8) == rules.Interpolation(0.8, 0.8, 0)
    assert rules.signum() == rules.Interpolation(0.9, 0.9, 0)
    assert rules.signsgd() == rules.Interpolation(0.0, None, 0)


def test_which_tensors_have_holes():
    base = torch.zeros(4, 6, 2)
    for dense in (
        base,
        base.permute(2, 0, 1),
        base[1:3],
        base[:, :, :0],
        torch.tensor(1.0),
        torch.empty_strided((1, 5), (9, 1)),
    ):
        assert layout.is_dense(dense)
    for other in (base[:, ::2], base[..., 0], base[:, 0], torch.zeros(3, 1).expand(3, 2), torch.zeros(1).expand(5)):
        assert not layout.is_dense(other)


def test_which_elements_may_share_memory():
    base = torch.zeros(4, 6, 2)
    for apart in (base, base[:, ::2], base.permute(2, 0, 1), base[:, :, :0], torch.zeros(1).expand(1, 1), base[..., 0]):
        assert not layout.overlaps(apart)
    for other in (torch.zeros(3, 1).expand(3, 2), torch.zeros(1).expand(5), torch.zeros(9).as_strided((3, 3), (2, 1))):
        assert layout.overlaps(other)


def test_what_lies_otherwise_is_brought_into_the_layout_of_the_vote():
    p = torch.arange(24.0).view(2, 3, 2, 2).to(memory_format=torch.channels_last)
    known = layout.Layout(p)
    negated = torch._neg_view(-p)
    for other in (p.contiguous(), p.double(), negated, p.to_sparse(), torch.zeros(2, 3, 2, 4)[..., ::2].copy_(p)):
        assert other.dtype != p.dtype or not known.holds(other)
        moved = known.copy("x", other, p.dtype, p.device)
        assert known.holds(moved)
        assert moved.stride() == p.stride()
        assert torch.equal(moved, p)
    assert known.holds(p.clone())
    assert not known.holds(p[:1])
    assert layout.Layout(torch.zeros(1, 5)).holds(torch.zeros(5, 1).t())  # a stride of one element does not count
    with pytest.raises(RuntimeError, match=r"x has shape \(24,\), but its parameter \(2, 3, 2, 2\)"):
        known.copy("x", torch.zeros(24), p.dtype, p.device)
    freed = torch.zeros(2, 3, 2, 2)
    freed.untyped_storage().resize_(8)
    assert not layout.has_memory(freed)
    assert not layout.Layout(torch.zeros(2, 3, 2, 2)).holds(freed)
    with pytest.raises(RuntimeError, match="x has no memory for its 24 coordinates"):
        known.copy("x", freed, p.dtype, p.device)
    assert layout.has_memory(torch.zeros(8)[4:])
    second_half = torch.zeros(8)[4:]
    second_half.untyped_storage().resize_(16)
    assert not layout.has_memory(second_half)
    assert layout.has_memory(torch.zeros(4, 2).t())


def test_what_cannot_be_voted_on():
    for tensor, words in [
        (torch.zeros(3, dtype=torch.int64), "x is of dtype int64: votes are on float16, bfloat16, float32, float64"),
        (torch.zeros(3, device="meta"), "x is on the meta device and has no memory"),
    ]:
        with pytest.raises(TypeError, match=words):
            planes.check_votable("x", tensor)


def test_averages_are_told_from_sums():
    own = np.array([5, 6, 1])
    compression.check_summed(np.array([9, 9, 2]), None)
    compression.check_summed(np.array([5, 6, 1]), own)  # all others have joined
    for averaged in ([5, 6, 0], [9, 9, 1]):
        with pytest.raises(ValueError, match=r"averaged.*use op=hvd\.Sum"):
            compression.check_summed(np.array(averaged), own)


@pytest.mark.parametrize("kernels", KERNEL_SETS)
def test_nan_alone_abstain_in_a_single_tensor(kernels, monkeypatch):
    use_kernels(monkeypatch, kernels)
    x = torch.ones(70)
    assert planes.pack(x, True).nonzero is None
    x[3] = torch.nan
    bits = np.unpackbits(planes.pack(x, True).nonzero, bitorder="little")
    assert np.flatnonzero(bits == 0).tolist() == [3]
    assert planes.pack(x, False).nonzero is None
