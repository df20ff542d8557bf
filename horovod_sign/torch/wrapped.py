"""The methods of an optimizer that `DistributedOptimizer` has wrapped: they stand before those of its own class.

A wrapped optimizer is of a class derived from `SignStep` or `VotesAsGradients`, and then from its own: behind these,
`super()` is the optimizer as it was.
"""

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from horovod_sign.rules import Rule
from horovod_sign.statistics import VoteStatistics
from horovod_sign.tensors.ballots import state_of
from horovod_sign.torch import broadcasting, checkpoints, copies
from horovod_sign.torch.arguments import names_in_groups
from horovod_sign.torch.closures import VotedClosure, takes_plain_steps
from horovod_sign.torch.foreign import load_own
from horovod_sign.torch.optimizers import take_step
from horovod_sign.torch.pipeline import OTHER_LOSS
from horovod_sign.torch.sparse import make_sparse
from horovod_sign.torch.spent import Spent
from horovod_sign.torch.votes import Votes

_SYNCHRONIZED_TWICE = (
    "optimizer.step() called without optimizer.skip_synchronize() context after optimizer.synchronize(): this votes a "
    "second time on what the first vote left as gradients"
)
_NOT_SYNCHRONIZED = (
    "optimizer.step() in skip_synchronize() takes the gradients as they are, and these are this rank's own: call "
    "optimizer.synchronize() after each backward, before the step"
)
_RACE = (
    "optimizer.zero_grad() was called after loss.backward() but before optimizer.step() or optimizer.synchronize(): "
    f"the gradients are being voted on. {OTHER_LOSS}"
)
_SPENT = (
    "optimizer.step() was called twice without a backward pass in between: the gradients are still the votes of the "
    "step before, and cannot be voted on again"
)


if TYPE_CHECKING:  # what `super()` is behind these methods
    from typing import Any as _Optimizer
else:
    _Optimizer = object


class Distributed(_Optimizer):
    """The methods of a wrapped optimizer, whichever it is."""

    _votes: Votes

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """torch.amp.GradScaler then calls step() on all ranks, also on those that overflowed: see `scaling`.

        It asks as its own step begins.
        """
        votes = self.__dict__.get("_votes")
        if votes is not None and not self._synchronized:
            votes.unscale()
        return True

    def _become_distributed(self, rule: Rule) -> None:
        """What a wrapped optimizer has besides. Its votes are made when all ranks have one.

        Args:
            rule: what it votes on, unless it says so itself.
        """
        self._rule = rule
        self._sign_states: dict[torch.Tensor, dict] = {}
        self._spent = Spent()
        self._takes_sparse = isinstance(self, torch.optim.SparseAdam)
        self._synchronized, self._should_synchronize, self._skip = False, True, False

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent to others in the last step."""
        return self._votes.bytes_sent

    def vote_statistics(self) -> VoteStatistics:
        """Abstentions, ties, NaN, agreement and bytes of the last step, seen from this rank."""
        return self._votes.statistics

    @torch.compiler.disable  # Dynamo would trace into the kernels, whose addresses it takes for numbers
    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Votes, if `synchronize` has not, and takes a step; returns the loss of `closure`, if there is one."""
        self._votes.check_step()
        if closure is not None:
            return self._step_with(closure)
        self._vote_and_step()
        return None

    # torch gives the step of each class hooks once, at the latest when a state is loaded; the class below has them.
    step.hooked = True

    @torch.compiler.disable
    def synchronize(self) -> None:
        """Makes the votes the gradients of the parameters, to be changed before a `step` in `skip_synchronize`."""
        with self._votes.concluded():
            if self._may_vote():
                with torch.no_grad():
                    for bucket, decided in self._votes.decisions():
                        bucket.write_votes(decided)
                self._votes.drop_what_had_none()
                if self._takes_sparse:
                    make_sparse(self.param_groups)
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """`step` inside takes the gradients as they are, after `synchronize`; it may be entered once for many steps."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def _vote_and_step(self) -> None:
        with self._votes.concluded():
            self.vote_on_gradients()
            if not self._skip:
                self._votes.hide_scale()
                self._step_by_vote()
        self._votes.end_step()
        self._synchronized, self._skip = False, False

    def vote_on_gradients(self) -> None:
        """What a step begins with: the vote, which in `skip_synchronize` must have been taken."""
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(_SYNCHRONIZED_TWICE, stacklevel=5)
                self._synchronized = False
            self._vote_before_step()
        elif not (self._synchronized and self._votes.untouched):
            raise AssertionError(_NOT_SYNCHRONIZED)

    def vote_anew(self) -> None:
        """A further vote of the same step, on gradients of a backward pass since the last."""
        self._synchronized = False
        self.vote_on_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As torch's; not while the gradients are being voted on."""
        if not self._votes.give_up():
            raise AssertionError(_RACE)
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict) -> None:
        """As torch's, on all ranks alike: a collective, which raises on all of them if they differ."""
        groups, error = len(self.param_groups), None
        try:
            super().add_param_group(param_group)
            self._votes.learn_names(names_in_groups(self.param_groups[groups:]))
        except Exception as invalid:  # whatever it is: the other ranks wait
            error = invalid
        try:
            self._votes.change(error)
        except Exception:
            del self.param_groups[groups:]
            raise

    @property
    def process_set(self) -> Any:
        """Horovod's, of the ranks that vote."""
        return self._votes.process_set

    @property
    def backward_passes_per_step(self) -> int:
        """How many backward passes make a step."""
        return self._votes.passes

    @backward_passes_per_step.setter
    def backward_passes_per_step(self, passes: int) -> None:
        self.set_backward_passes_per_step(passes)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Changes how many backward passes make a step, between steps."""
        self._votes.passes = passes

    def make_vote_states(self, parameters: Collection[torch.Tensor]) -> None:
        """Makes the state of parameters now, so that every rank has the same to broadcast or to save."""
        for group in self.param_groups:
            for p in group["params"]:
                if p in parameters:
                    state, rule = self.vote_state(p), self.vote_rule(group)
                    for name in rule.states:
                        state_of(p, state, name)
                    if rule.warmup_steps:
                        state.setdefault("step", 0)

    def __deepcopy__(self, memo: dict) -> Any:
        return copies.deepcopy(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        copies.refuse_pickling()

    def _step_of_base(self, *closure: Any) -> Any:
        """The step of the optimizer as it was."""
        return super().step(*closure)

    def _may_vote(self) -> bool:
        """Settles who votes in this step; False if nobody does, and then there is no step."""
        overflow = self._votes.settle()
        if overflow.everywhere:
            self._skip = True
            self._votes.skip()
            return False
        if overflow.here:
            self._votes.withhold()
        return True


class VotesAsGradients(Distributed):
    """The votes are the gradients of an optimizer that knows nothing of them."""

    def vote_rule(self, group: dict) -> Rule:
        return self._rule

    def vote_state(self, p: torch.Tensor) -> dict:
        return self._sign_states.setdefault(p, {})

    def drop_vote_states(self, parameters: Collection[torch.Tensor]) -> None:
        """Forgets what parameters that have left were voted on by."""
        for p in parameters:
            self._sign_states.pop(p, None)

    def _vote_before_step(self) -> None:
        if self._votes.untouched and self._spent.unchanged(self.param_groups):
            raise RuntimeError(_SPENT)
        self.synchronize()

    def _step_by_vote(self) -> None:
        self._step_of_base()
        self._spent.note(self.param_groups)

    def _step_with(self, closure: Callable[..., Any]) -> Any:
        plain = takes_plain_steps(super(Distributed, self).step)
        if not plain and self._votes.new_gradients():
            self.vote_on_gradients()  # it may look at them before it evaluates the closure
        loss = self._step_of_base(VotedClosure(self, self._votes, closure, plain))
        self._spent.note(self.param_groups)
        self._synchronized = False
        return loss

    def state_dict(self) -> dict:
        """The optimizer's, and under "horovod_sign" the states that this rank votes by, if there are any."""
        root = broadcasting.asking_root()
        if root is not None:
            return broadcasting.broadcast_state(self, root, [self.state, self._sign_states])
        parameters = [p for group in self.param_groups for p in group["params"]]
        votes_by = {i: dict(self._sign_states[p]) for i, p in enumerate(parameters) if p in self._sign_states}
        return {**super().state_dict(), "horovod_sign": votes_by}

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads what `state_dict` or `hvs.gather_state_dict` gave, or the state of the optimizer alone, and then
        momenta start at zero."""
        self._votes.has_history = True
        state_dict = checkpoints.of_this_rank(state_dict, self._votes.process_set)
        of_base = {k: v for k, v in state_dict.items() if k != "horovod_sign"}
        load_own(self, super().load_state_dict, of_base)
        votes_by = state_dict.get("horovod_sign", {})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            if p in self._sign_states:
                saved = votes_by.get(i, {})
                state = self._sign_states[p]
                state["step"] = saved.get("step", 0)
                for name in self._rule.states:
                    state_of(p, state, name).copy_(saved.get(name, torch.zeros((), device="cpu")))


class SignStep(Distributed):
    """A SignOptimizer steps straight from the bits of the vote."""

    def vote_rule(self, group: dict) -> Rule:
        return self.rule(group)

    def vote_state(self, p: torch.Tensor) -> dict:
        return self.state[p]

    def drop_vote_states(self, parameters: Collection[torch.Tensor]) -> None:
        """Their state is the user's to move or to drop, as of any optimizer of torch's."""

    def _vote_before_step(self) -> None:
        self._may_vote()

    def _step_by_vote(self) -> None:
        self._step_of_base()

    def _step_with(self, closure: Callable[..., Any]) -> Any:
        with torch.enable_grad():
            loss = closure()
        self._vote_and_step()
        return loss

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads what `state_dict` or `hvs.gather_state_dict` gave."""
        self._votes.has_history = True
        super().load_state_dict(checkpoints.of_this_rank(state_dict, self._votes.process_set))

    @torch.no_grad()
    def _update(self) -> None:
        if self._synchronized:  # the gradients are votes, perhaps changed since
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        take_step(p, p.grad, group)
            return
        for bucket, decided in self._votes.decisions():
            bucket.take_step(decided)
