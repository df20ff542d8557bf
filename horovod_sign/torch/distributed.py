"""`DistributedOptimizer`: any torch optimizer, stepping by the majority vote of all ranks."""

import functools
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import horovod.torch as hvd
import torch

from horovod_sign.keywords import without_horovods_default, wrong_compression
from horovod_sign.options import bucket_bytes, check_voting, reachable
from horovod_sign.rules import Rule, choose_rule, in_words
from horovod_sign.statistics import VoteStatistics
from horovod_sign.tensors.ballots import state_of
from horovod_sign.tensors.planes import check_kernels
from horovod_sign.torch import broadcasting, checkpoints
from horovod_sign.torch.agreement import tell
from horovod_sign.torch.arguments import (
    check_arguments,
    check_every,
    check_named,
    check_parameters,
    names_by_parameter,
    trainable,
)
from horovod_sign.torch.closures import VotedClosure, takes_plain_steps
from horovod_sign.torch.compression import SignCompressor
from horovod_sign.torch.foreign import load_own
from horovod_sign.torch.optimizers import SignOptimizer, take_step
from horovod_sign.torch.pipeline import OTHER_LOSS
from horovod_sign.torch.sparse import make_sparse
from horovod_sign.torch.spent import Spent
from horovod_sign.torch.votes import Options, Votes

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from horovod_sign.keywords import HorovodKeywords

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
_OWN_TO_A_CLASS = ("__dict__", "__weakref__", "__doc__")


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: SignCompressor | None = None,
    backward_passes_per_step: int = 1,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    abstain: bool = True,
    transport: str = "auto",
    bucket_cap_mb: float = 25.0,
    overlap: bool = True,
    grad_scaler: torch.amp.GradScaler | None = None,
    sparse_as_dense: bool = True,
    hierarchical: bool = False,
    check_replicas: int = 100,
    **unsupported: "Unpack[HorovodKeywords]",
) -> torch.optim.Optimizer:
    """Wraps a torch optimizer so that each step is taken by majority vote, while `backward` still runs.

    Each worker votes one bit a coordinate: the sign of its gradient (signSGD), of its own momentum (Signum), or of what
    another `hvs.Rule` says; a vote is sign(sum over ranks of the signs) (Bernstein et al. 2018, arXiv 1802.04434,
    Algorithms 1 to 3). Around a `SignOptimizer` (`SignSGD`, `Signum`, `Lion`) the step is its own, by the vote; around
    any other optimizer the votes (-1, 0 or +1) are its gradients.

    A collective: all ranks of `process_set` call it, with the same parameters. So is `add_param_group`, and the first
    step after parameters were frozen, unfrozen, replaced or moved to another group: all ranks do that alike.

    Args:
        optimizer: a torch optimizer that no other DistributedOptimizer wraps. Its state is kept. Use the returned one
            from then on.
        named_parameters: `model.named_parameters()`, for error messages and agreement between ranks.
        compression: `Compression.signsgd()`, `signum()`, `lion()` or `of(rule)`. Default, also under Horovod's name for
            it, `Compression.none`: what a `SignOptimizer` (`SignSGD`, `Signum`, `Lion`) says itself; around any other
            optimizer, signsgd. There is no way not to vote.
        backward_passes_per_step: backward passes whose gradients are summed before a vote.
        process_set: Horovod's, of the ranks that vote.
        abstain: zeros, NaN and ties are 0 (True), or +1 (False), which saves the bits that tell them apart: a third of
            all at even rank counts.
        transport: "exchange", "counts" (which works with `hvd.join()`), both by Horovod's engine, or "auto": what costs
            least for so many coordinates and ranks by `horovod_sign.voting.choice`. Small models are then
            voted on by MPI itself, in `step`, if mpi4py is installed.
        bucket_cap_mb: megabytes (10^6 bytes) of gradients in one vote, as in PyTorch's DistributedDataParallel; votes
            overlap with backward and with each other, but each costs some milliseconds by itself.
        overlap: votes start during backward. With False they start in `step`, so that gradients can be changed before
            (clipped, for example).
        grad_scaler: the `torch.amp.GradScaler` that scales the losses, if there is one. Votes then wait for
            `scaler.step(optimizer)`, or `optimizer.synchronize()`, and are on unscaled gradients; a rank whose
            gradients overflow abstains in that step and keeps its momentum. Its own scaler alone takes note, so the
            scales of ranks may differ, which votes do not. If all ranks overflow there is no step. A scaler that is
            made anew later takes the place of this one.
        sparse_as_dense: Horovod's. Sparse gradients are always voted on as dense ones; what they leave out abstains.
            SparseAdam, which takes no others, steps the rows in which a vote is not 0.
        hierarchical: each node has one vote, on the mean over its ranks of their gradients, taken in float32 (float64
            for float64) by Horovod within the node: sign(sum over nodes k of sign(v_k)). The ranks of a node share
            memory, as MPI sees it; nodes may have different numbers of ranks, and still have one vote each. A rank's
            missing gradients count as zeros in the mean, and a NaN makes its whole node abstain there. Needs
            `hvd.init(process_sets=hvs.node_process_sets())`.
        check_replicas: every how many steps, the first among them, the ranks compare the options of their parameter
            groups (learning rate, decay, momentum, ...) and checksums of their parameters, and are warned if these
            differ; 0: never. It costs a millisecond or two.
        unsupported: Horovod's other keywords, if they ask for nothing that a vote cannot have: op=Average or op=Sum,
            which a vote does not tell apart, and groups and the like as they are by default.

    Returns:
        An optimizer of a subclass of the class of `optimizer`, with Horovod's `synchronize()` and `skip_synchronize()`.
        `bytes_sent` is what this rank sent to others in the last step, `vote_statistics()` what happened in it. After a
        step the gradients of the parameters are the votes, except around SignSGD and Signum, which step straight from
        the bits.

    Raises:
        TypeError: an argument of Horovod's that a vote cannot have (op=Adasum and the like; groups; ...);
            parameters that have no kernel.
        ValueError: Horovod not initialised; an optimizer that is already wrapped; ranks that differ; bad options.
            Either is raised on all ranks if one of them has a reason, and so is whatever else goes wrong on one.
    """
    voters, error = reachable(hvd, process_set, "hvs.DistributedOptimizer"), None
    try:
        check_arguments(optimizer, process_set, grad_scaler, unsupported)
        check_voting(hvd, process_set, transport, backward_passes_per_step, hierarchical)
        check_every(check_replicas)
        rule = _chosen_rule(optimizer, compression)
        labels = {} if named_parameters is None else names_by_parameter(named_parameters)
        if named_parameters is not None:
            check_named(trainable(optimizer, labels), labels)
        parameters = trainable(optimizer, labels)
        check_parameters(parameters)
        check_kernels(parameters)
        options = Options(
            kind=f"{type(optimizer).__name__}, {in_words(rule)}",
            abstain=bool(abstain),
            transport=transport,
            passes=backward_passes_per_step,
            bucket_bytes=bucket_bytes(bucket_cap_mb),
            early=bool(overlap),
            process_set=process_set,
            grad_scaler=grad_scaler,
            hierarchical=bool(hierarchical),
            check_replicas=check_replicas,
        )
        wrapped = _wrap(optimizer, rule)
    except Exception as invalid:  # whatever it is: the other ranks wait
        error = invalid
    if error is not None:
        tell(error, voters)
    wrapped._votes = Votes(wrapped, options, labels)
    return wrapped


def _chosen_rule(optimizer, compression: SignCompressor | None) -> Rule:
    compression = without_horovods_default(compression, hvd.Compression)
    if compression is not None and not isinstance(compression, SignCompressor):
        raise wrong_compression(compression)
    own = optimizer.rule(optimizer.param_groups[0]) if isinstance(optimizer, SignOptimizer) else None
    return choose_rule(own, compression.rule if compression is not None else None, type(optimizer).__name__)


def _wrap(optimizer, rule: Rule):
    """The optimizer as one of a class derived from its own."""
    body = _SignStep if isinstance(optimizer, SignOptimizer) else _VotesAsGradients
    methods = {k: v for part in (_Distributed, body) for k, v in vars(part).items() if k not in _OWN_TO_A_CLASS}
    cls = type(type(optimizer).__name__, (type(optimizer),), methods)
    wrapped = cls.__new__(cls)
    wrapped.__dict__.update(optimizer.__dict__)
    wrapped.__dict__.pop("step", None)  # a learning-rate scheduler's, bound to the optimizer that is wrapped
    wrapped._base = type(optimizer)
    wrapped._rule = rule
    wrapped._sign_states = {}
    wrapped._spent = Spent()
    wrapped._takes_sparse = isinstance(optimizer, torch.optim.SparseAdam)
    wrapped._synchronized, wrapped._should_synchronize, wrapped._skip = False, True, False
    return wrapped


class _Distributed:
    """The methods of a wrapped optimizer, whichever it is."""

    # torch.amp.GradScaler then calls step() on all ranks, also on those that overflowed: see `scaling`.
    _step_supports_amp_scaling = True

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent to others in the last step."""
        return self._votes.pipeline.bytes_sent

    def vote_statistics(self) -> VoteStatistics:
        """Abstentions, ties, NaN, agreement and bytes of the last step, seen from this rank."""
        return self._votes.monitor.latest

    @torch.compiler.disable  # Dynamo would trace into the kernels, whose addresses it takes for numbers
    def step(self, closure=None):
        """Votes, if `synchronize` has not, and takes a step; returns the loss of `closure`, if there is one."""
        self._votes.scaling.check_step(self)
        if closure is not None:
            return self._step_with(closure)
        self._vote_and_step()
        return None

    # torch gives the step of each class hooks once, at the latest when a state is loaded; the class below has them.
    step.hooked = True

    @torch.compiler.disable
    def synchronize(self):
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
    def skip_synchronize(self):
        """`step` inside takes the gradients as they are, after `synchronize`; it may be entered once for many steps."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def _vote_and_step(self):
        with self._votes.concluded():
            self.vote_on_gradients()
            if not self._skip:
                self._votes.scaling.hide_from_base(self)
                self._step_by_vote()
        self._votes.scaling.end_step(self)
        self._synchronized, self._skip = False, False

    def vote_on_gradients(self):
        """What a step begins with: the vote, which in `skip_synchronize` must have been taken."""
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(_SYNCHRONIZED_TWICE, stacklevel=5)
                self._synchronized = False
            self._vote_before_step()
        elif not (self._synchronized and self._votes.pipeline.untouched):
            raise AssertionError(_NOT_SYNCHRONIZED)

    def zero_grad(self, set_to_none: bool = True):
        """As torch's; not while the gradients are being voted on."""
        if not self._votes.pipeline.give_up():
            raise AssertionError(_RACE)
        self._base.zero_grad(self, set_to_none)

    def add_param_group(self, param_group: dict):
        """As torch's, on all ranks alike: a collective, which raises on all of them if they differ."""
        groups, error = len(self.param_groups), None
        try:
            self._base.add_param_group(self, param_group)
        except Exception as invalid:  # whatever it is: the other ranks wait
            error = invalid
        try:
            self._votes.change(error)
        except Exception:
            del self.param_groups[groups:]
            raise

    @property
    def process_set(self):
        """Horovod's, of the ranks that vote."""
        return self._votes.options.process_set

    @property
    def backward_passes_per_step(self) -> int:
        """How many backward passes make a step."""
        return self._votes.pipeline.passes

    @backward_passes_per_step.setter
    def backward_passes_per_step(self, passes: int):
        self.set_backward_passes_per_step(passes)

    def set_backward_passes_per_step(self, passes: int):
        """Changes how many backward passes make a step, between steps."""
        self._votes.pipeline.passes = passes
        self._votes.pipeline.reset()

    def make_vote_states(self, parameters):
        """Makes the state of parameters now, so that every rank has the same to broadcast or to save."""
        for group in self.param_groups:
            for p in group["params"]:
                if p in parameters:
                    state, rule = self.vote_state(p), self.vote_rule(group)
                    for name in rule.states:
                        state_of(p, state, name)
                    if rule.warmup_steps:
                        state.setdefault("step", 0)

    def _may_vote(self) -> bool:
        """Settles who votes in this step; False if nobody does, and then there is no step."""
        overflow = self._votes.settle()
        if overflow.everywhere:
            self._skip = True
            self._votes.pipeline.reset()
            return False
        if overflow.here:
            self._votes.withhold()
        return True


class _VotesAsGradients:
    """The votes are the gradients of an optimizer that knows nothing of them."""

    def vote_rule(self, group: dict) -> Rule:
        return self._rule

    def vote_state(self, p: torch.Tensor) -> dict:
        return self._sign_states.setdefault(p, {})

    def drop_vote_states(self, parameters):
        """Forgets what parameters that have left were voted on by."""
        for p in parameters:
            self._sign_states.pop(p, None)

    def _vote_before_step(self):
        if self._votes.pipeline.untouched and self._spent.unchanged(self.param_groups):
            raise RuntimeError(_SPENT)
        self.synchronize()

    def _step_by_vote(self):
        self._base.step(self)
        self._spent.note(self.param_groups)

    def _step_with(self, closure):
        plain = takes_plain_steps(self._base)
        if not plain and self._votes.new_gradients():
            self.vote_on_gradients()  # it may look at them before it evaluates the closure
        loss = self._base.step(self, VotedClosure(self, closure, plain))
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
        return {**self._base.state_dict(self), "horovod_sign": votes_by}

    def load_state_dict(self, state_dict: dict):
        """Loads what `state_dict` or `hvs.gather_state_dict` gave, or the state of the optimizer alone, and then
        momenta start at zero."""
        self._votes.has_history = True
        state_dict = checkpoints.of_this_rank(state_dict, self._votes.options.process_set)
        of_base = {k: v for k, v in state_dict.items() if k != "horovod_sign"}
        load_own(self, functools.partial(self._base.load_state_dict, self), of_base)
        votes_by = state_dict.get("horovod_sign", {})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            if p in self._sign_states:
                saved = votes_by.get(i, {})
                state = self._sign_states[p]
                state["step"] = saved.get("step", 0)
                for name in self._rule.states:
                    state_of(p, state, name).copy_(saved.get(name, torch.zeros((), device="cpu")))


class _SignStep:
    """A SignOptimizer steps straight from the bits of the vote."""

    def vote_rule(self, group: dict) -> Rule:
        return self.rule(group)

    def vote_state(self, p: torch.Tensor) -> dict:
        return self.state[p]

    def drop_vote_states(self, parameters):
        """Their state is the user's to move or to drop, as of any optimizer of torch's."""

    def _vote_before_step(self):
        self._may_vote()

    def _step_by_vote(self):
        self._base.step(self)

    def _step_with(self, closure):
        with torch.enable_grad():
            loss = closure()
        self._vote_and_step()
        return loss

    def load_state_dict(self, state_dict: dict):
        """Loads what `state_dict` or `hvs.gather_state_dict` gave."""
        self._votes.has_history = True
        self._base.load_state_dict(self, checkpoints.of_this_rank(state_dict, self._votes.options.process_set))

    @torch.no_grad()
    def _update(self):
        if self._synchronized:  # the gradients are votes, perhaps changed since
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        take_step(p, p.grad, group)
            return
        for bucket, decided in self._votes.decisions():
            bucket.take_step(decided)
