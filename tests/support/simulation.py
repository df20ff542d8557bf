"""Training by majority vote in NumPy, for the tests of every framework: what the workers vote on is an argument.

Nothing here comes from the package, so that a mistake there does not end up on both sides of a comparison.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import oracle


class Rule(NamedTuple):
    """What a worker votes on: v = vote * m + (1 - vote) * g, with the momentum m <- state * m + (1 - state) * g.

    Attributes:
        vote: weight of the old momentum in v.
        state: weight of the old momentum in the new one; None: there is no momentum.
        warmup: for so many steps v is g.
    """

    vote: float = 0.0
    state: float | None = None
    warmup: int = 0


SIGNSGD = Rule()
LION = Rule(0.9, 0.99)


class Own(NamedTuple):
    """What a worker votes on: (v, *new states) = function(g, *states), where g is 0 for what is not finite.

    Attributes:
        function: of float32 arrays.
        states: how many there are.
        warmup: as in `Rule`.
    """

    function: Callable
    states: int
    warmup: int = 0


def _two_momenta(g, fast, slow):
    fast, slow = np.float32(0.5) * fast + g, np.float32(0.875) * slow + g
    return fast - slow, fast, slow


TWO_MOMENTA = Own(_two_momenta, 2, warmup=2)  # what the rule TwoMomenta of torch_rules and tf_rules does


def signum(momentum: float, warmup: int = 0) -> Rule:
    """Votes on the new momentum; `warmup` is C(momentum) of the paper, or 0."""
    return Rule(momentum, momentum, warmup)


class Workers:
    """All ranks with their momenta, and their votes.

    Args:
        start: arrays of the shapes that are voted on.
        ranks: how many workers.
        rule: what they vote on: a `Rule` or an `Own`.
        abstain: as everywhere.
    """

    def __init__(self, start: list[np.ndarray], ranks: int, rule: Rule = SIGNSGD, abstain: bool = True):
        self.m = [[np.zeros(np.shape(x), np.float32) for x in start] for _ in range(ranks)]
        own = rule.states if isinstance(rule, Own) else 0
        self.states = [[np.zeros((own, *np.shape(x)), np.float32) for x in start] for _ in range(ranks)]
        self._rule, self._abstain, self._steps = rule, abstain, 0

    def votes(self, gradients: list[list[np.ndarray | None]]) -> list[np.ndarray]:
        """The votes of a step, by parameter.

        Args:
            gradients: of each rank, by parameter; None: it abstains there and keeps its momentum.
        """
        self._steps += 1
        return [
            oracle.vote([self._ballot(rank, i, of_rank[i]) for rank, of_rank in enumerate(gradients)], self._abstain)
            for i in range(len(self.m[0]))
        ]

    def _ballot(self, rank, i, g) -> np.ndarray:
        m, rule = self.m[rank][i], self._rule
        if g is None:
            return np.zeros(m.shape)
        if isinstance(rule, Own):
            return self._own_ballot(self.states[rank][i], g.astype(np.float32))
        if rule.state is None:
            return g
        finite = np.isfinite(g)
        v = np.where(finite & (self._steps > rule.warmup), _between(rule.vote, m, g), g)
        m[...] = np.where(finite, _between(rule.state, m, g), m)
        return v

    def _own_ballot(self, states, g) -> np.ndarray:
        finite = np.isfinite(g)
        v, *new = self._rule.function(np.where(finite, g, np.float32(0)), *states)
        assert len(new) == len(states)
        for i, each in enumerate(new):
            states[i] = np.where(finite & np.isfinite(each), each, states[i])
        return np.where(finite & (self._steps > self._rule.warmup), v, g)


class Simulation:
    """x <- x - lr * (vote + weight_decay * x), in the dtype of x.

    Args:
        start: the parameters; not changed.
        lr, weight_decay: of the step.
        ranks, rule, abstain: as in `Workers`.
    """

    def __init__(
        self, start: list[np.ndarray], ranks: int, lr: float, rule: Rule = SIGNSGD, weight_decay=0.0, abstain=True
    ):
        self.x = [np.array(x) for x in start]
        self.workers = Workers(start, ranks, rule, abstain)
        self.lr, self._decay = lr, weight_decay

    def step(self, gradients: list[list[np.ndarray | None]]):
        """One step on the gradients of all ranks."""
        for i, vote in enumerate(self.workers.votes(gradients)):
            x = self.x[i]
            lr, decay = x.dtype.type(self.lr), x.dtype.type(self._decay)
            self.x[i] = x - lr * (vote.astype(x.dtype) + decay * x)


def means_by_node(gradients: list[list[np.ndarray]], nodes) -> list[list[np.ndarray]]:
    """The gradients of each node, the means of those of its ranks, by parameter.

    Args:
        gradients: of each rank.
        nodes: for each rank the number of its node.
    """
    of_nodes = [[g for g, node in zip(gradients, nodes, strict=True) if node == k] for k in range(len(set(nodes)))]
    return [[np.mean(ranks, axis=0, dtype=np.float64) for ranks in zip(*of_node, strict=True)] for of_node in of_nodes]


def _between(beta: float, m: np.ndarray, g: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return m * np.float32(beta) + g.astype(np.float32) * np.float32(1 - beta)
