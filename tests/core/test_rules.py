"""What a worker votes on: the rules, and the plain torch optimizers on one process."""

import math

import numpy as np
import pytest
import torch

import horovod_sign.torch as hvs
from horovod_sign import rules


def test_warmup_lengths_are_the_least_that_theorem_3_allows():
    assert [rules.warmup_length(beta) for beta in (0.0, 0.5, 0.75, 0.9, 0.99)] == [1, 1, 2, 54, 894]
    for beta in (0.3, 0.5, 0.8, 0.9, 0.95):
        c = rules.warmup_length(beta)

        def allowed(c, beta=beta):
            return c / 2 * beta**c <= 1 / ((1 - beta**2) * (c + 1)) and beta ** (c + 1) <= 0.5

        assert allowed(c)
        assert not any(allowed(smaller) for smaller in range(1, c))


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 2.0, math.nan])
def test_momentum_is_checked(momentum):
    with pytest.raises(ValueError, match="at least 0 and less than 1"):
        rules.signum(momentum)


def test_the_rule_of_an_optimizer():
    signum = rules.signum(0.5)
    assert rules.choose_rule(None, None, "SGD") == rules.signsgd()
    assert rules.choose_rule(None, signum, "SGD") == rules.choose_rule(signum, None, "Signum") == signum
    with pytest.raises(ValueError, match=r"Signum already says .* leave out compression"):
        rules.choose_rule(signum, rules.signsgd(), "Signum")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_signum_is_the_paper_s_algorithm(dtype):
    """m <- beta m + (1 - beta) g; x <- x - lr (sign(m) + decay x), without bias correction."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.0], dtype=dtype))
    optimizer = hvs.Signum([p], 0.125, momentum=0.75, weight_decay=0.5)
    x, m = p.detach().numpy().copy(), np.zeros(3, np.float32)
    for g in ([1.0, 0.0, -3.0], [-10.0, 0.0, 1.0], [0.0, 0.0, 0.0]):
        p.grad = torch.tensor(g, dtype=dtype)
        optimizer.step()
        m = np.float32(0.75) * m + np.float32(0.25) * np.array(g, np.float32)
        x = x - 0.125 * (np.sign(m) + 0.5 * x)
        np.testing.assert_allclose(p.detach().numpy(), x, rtol=1e-6)


def test_warmup_votes_on_gradients_while_momentum_fills():
    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = hvs.Signum([p], 1.0, momentum=0.5, warmup=True)
    for g, expected in ((-8.0, 1.0), (1.0, 2.0), (1.0, 3.0), (8.0, 2.0)):  # C(0.5) = 1
        p.grad = torch.tensor([g])
        optimizer.step()
        assert p.item() == expected


def test_what_is_not_finite_does_not_enter_the_momentum():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvs.Signum([p], 1.0, momentum=0.5)
    for g in ([1.0, 1.0, 1.0], [math.nan, math.inf, -math.inf]):
        p.grad = torch.tensor(g)
        optimizer.step()
    assert optimizer.state[p]["momentum_buffer"].tolist() == [0.5, 0.5, 0.5]
    assert p.tolist() == [-1.0, -2.0, 0.0]


def test_zeros_and_nan_do_not_move():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([0.0, -0.0, math.nan])
    hvs.SignSGD([p], 0.1).step()
    assert p.tolist() == [1.0, 1.0, 1.0]
