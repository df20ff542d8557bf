"""Workers that go wrong on purpose do so, each in its way, and only where and when they should: in one process."""

import pytest
import torch

from horovod_sign.torch import adversaries

GRADIENT = torch.tensor([[1.0, -2.0, 0.0], [3.0, -4.0, 5.0]])


def gradients(kind: str, passes: int = 1, dtype=torch.float32, **options):
    """What becomes of the gradient above in each of several backward passes."""
    p = torch.nn.Parameter(torch.zeros(2, 3, dtype=dtype))
    handles = adversaries.corrupt([p], kind, **options)
    found = []
    for _ in range(passes):
        p.grad = None
        (p * GRADIENT.to(dtype)).sum().backward()
        found.append(p.grad)
    return found, handles, p


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("flipped", -GRADIENT),
        ("constant", torch.ones(2, 3)),
        ("silent", torch.zeros(2, 3)),
        ("nan", torch.full((2, 3), torch.nan)),
        ("inf", torch.full((2, 3), torch.inf)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_each_kind_makes_of_its_gradient(kind, expected, dtype):
    ((got,), _, _) = gradients(kind, dtype=dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=0, equal_nan=True)
    assert set(adversaries.KINDS) == {"flipped", "random", "constant", "silent", "nan", "inf"}


def test_random_gradients_hang_on_the_seed_alone():
    (one, two), _, _ = gradients("random", passes=2, seed=3)
    assert len(set(one.flatten().tolist() + two.flatten().tolist())) == 12
    (again, _), _, _ = gradients("random", passes=2, seed=3)
    (other, _), _, _ = gradients("random", passes=2, seed=4)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    state = torch.get_rng_state()
    gradients("random")
    assert torch.equal(state, torch.get_rng_state())  # and the program's own random numbers stay what they were


def test_only_every_so_many_and_only_until_removed():
    found, handles, p = gradients("flipped", passes=6, every=3)
    assert [torch.equal(g, -GRADIENT) for g in found] == [False, False, True] * 2
    assert [torch.equal(g, GRADIENT) for g in found] == [True, True, False] * 2
    for handle in handles:
        handle.remove()
    for _ in range(3):
        p.grad = None
        (p * GRADIENT).sum().backward()
        assert torch.equal(p.grad, GRADIENT)


def test_all_parameters_that_have_gradients_are_corrupted():
    net = torch.nn.Linear(2, 2)
    net.bias.requires_grad_(False)
    assert len(adversaries.corrupt(net.parameters(), "nan")) == 1
    net(torch.ones(1, 2)).sum().backward()
    assert net.weight.grad.isnan().all()
    with pytest.raises(ValueError, match=r"kind must be one of 'flipped', .*'inf', got 'evil'"):
        adversaries.corrupt([], "evil")
