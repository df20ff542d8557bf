"""`DistributedOptimizer`: any torch optimizer, stepping by the majority vote of all ranks."""

import itertools
import warnings
from contextlib import contextmanager

import horovod.torch as hvd
import torch

from horovod_sign.rules import Rule, choose_rule
from horovod_sign.torch.agreement import check_same_parameters
from horovod_sign.torch.arguments import check_arguments, check_parameters, named
from horovod_sign.torch.buckets import make_buckets
from horovod_sign.torch.collectives import HorovodCollectives
from horovod_sign.torch.compression import SignCompressor
from horovod_sign.torch.optimizers import SignOptimizer, momentum_buffer, take_step
from horovod_sign.torch.pipeline import Pipeline

_SYNCHRONIZED_TWICE = (
    "optimizer.step() called after optimizer.synchronize() without optimizer.skip_synchronize(): this votes a second "
    "time on what the first vote left as gradients"
)
_RACE = (
    "optimizer.zero_grad() was called after loss.backward() but before optimizer.step() or optimizer.synchronize(): "
    "the gradients are being voted on"
)
_OWN_TO_A_CLASS = ("__dict__", "__weakref__", "__doc__")
_numbers = itertools.count()


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters=None,
    compression: SignCompressor | None = None,
    backward_passes_per_step: int = 1,
    process_set=hvd.global_process_set,
    abstain: bool = True,
    transport: str = "auto",
    bucket_cap_mb: float = 12.0,
    **unsupported,
):
    """Wraps a torch optimizer so that each step is taken by majority vote, while `backward` still runs.

    Each worker votes one bit a coordinate: the sign of its gradient (signSGD) or of its own momentum (Signum); a vote
    is sign(sum over ranks of the signs) (Bernstein et al. 2018, arXiv 1802.04434, Algorithms 1 to 3). Around `SignSGD`
    and `Signum` the step is theirs, by the vote; around any other optimizer the votes (-1, 0 or +1) are its gradients.

    A collective: all ranks of `process_set` call it, with the same parameters.

    Args:
        optimizer: a torch optimizer that no other DistributedOptimizer wraps. Its state is kept. Use the returned one
            from then on.
        named_parameters: `model.named_parameters()`, for error messages and agreement between ranks.
        compression: `Compression.signsgd()` or `Compression.signum()`. Default: what `SignSGD` or `Signum` say
            themselves; around any other optimizer, signsgd. There is no way not to vote.
        backward_passes_per_step: backward passes whose gradients are summed before a vote.
        process_set: Horovod's, of the ranks that vote.
        abstain: zeros, NaN and ties are 0 (True), or +1 (False), which saves the bits that tell them apart: a third of
            all at even rank counts.
        transport: "exchange", "counts", or "auto", which is the exchange. See `horovod_sign.majority_vote`.
        bucket_cap_mb: megabytes (10^6 bytes) of gradients in one vote; several votes overlap with backward.

    Returns:
        An optimizer of a subclass of the class of `optimizer`, with Horovod's `synchronize()` and `skip_synchronize()`.
        `bytes_sent` is what this rank sent to others in the last step. After a step the gradients of the parameters are
        the votes, except around SignSGD and Signum, which step straight from the bits.

    Raises:
        TypeError: an argument of Horovod's that a vote cannot have (op, groups, ...); parameters that have no kernel.
        ValueError: Horovod not initialised; an optimizer that is already wrapped; ranks that differ; bad options.
    """
    check_arguments(optimizer, backward_passes_per_step, process_set, transport, bucket_cap_mb, unsupported)
    own = type(optimizer).rule if isinstance(optimizer, SignOptimizer) else None
    chosen = choose_rule(
        optimizer.rule(optimizer.param_groups[0]) if own else None,
        compression.rule if compression is not None else None,
        type(optimizer).__name__,
    )
    names = named(optimizer, named_parameters)
    name = f"horovod_sign.torch.{next(_numbers)}"
    check_parameters(names)
    options = (
        f"abstain={abstain}, transport={transport}, {backward_passes_per_step} passes, bucket_cap_mb={bucket_cap_mb}"
    )
    check_same_parameters(names, f"{type(optimizer).__name__}, {chosen}, {options}", process_set, name)

    body = _SignStep if own else _VotesAsGradients
    methods = {k: v for part in (body, _Distributed) for k, v in vars(part).items() if k not in _OWN_TO_A_CLASS}
    cls = type(type(optimizer).__name__, (type(optimizer),), methods)
    wrapped = cls.__new__(cls)
    wrapped.__dict__.update(optimizer.__dict__)
    wrapped.__dict__.pop("step", None)  # a learning-rate scheduler's, bound to the optimizer that is wrapped
    wrapped._base = type(optimizer)
    wrapped._rule = chosen
    wrapped._sign_states = {}
    wrapped._synchronized, wrapped._should_synchronize = False, True
    _make_states(wrapped, names)
    collectives, passes = HorovodCollectives(process_set), backward_passes_per_step
    buckets = make_buckets(wrapped, names, int(bucket_cap_mb * 1e6))
    wrapped._pipeline = Pipeline(buckets, collectives, transport, abstain, passes, name)
    return wrapped


class _Distributed:
    """The methods of a wrapped optimizer, whichever it is."""

    # Horovod's broadcast_optimizer_state tells its own wrappers, whose step() is a collective, by their module, and
    # then makes missing state by the step() of the class below. Ours wants the same treatment.
    __module__ = hvd.DistributedOptimizer.__module__

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent to others in the last step."""
        return self._pipeline.bytes_sent

    def step(self, closure=None):
        """Votes, if `synchronize` has not, and takes a step; returns the loss of `closure`, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._should_synchronize and self._synchronized:
            warnings.warn(_SYNCHRONIZED_TWICE, stacklevel=2)
            self._synchronized = False
        self._step_by_vote()
        self._synchronized = False
        return loss

    def synchronize(self):
        """Makes the votes the gradients of the parameters, to be changed before a `step` in `skip_synchronize`."""
        with torch.no_grad():
            for bucket, decided in self._pipeline.decisions():
                bucket.write_votes(decided)
        self._synchronized = True

    @contextmanager
    def skip_synchronize(self):
        """`step` inside takes the gradients as they are, after `synchronize`."""
        if not self._synchronized:
            raise AssertionError("optimizer.skip_synchronize() needs optimizer.synchronize() before it, as in Horovod")
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def zero_grad(self, set_to_none: bool = True):
        """As torch's; not while the gradients are being voted on."""
        if self._pipeline.started:
            raise AssertionError(_RACE)
        self._base.zero_grad(self, set_to_none)

    def set_backward_passes_per_step(self, passes: int):
        """Changes how many backward passes make a step, between steps."""
        self._pipeline.passes = passes
        self._pipeline.reset()


class _VotesAsGradients:
    """The votes are the gradients of an optimizer that knows nothing of them."""

    def vote_rule(self, group: dict) -> Rule:
        return self._rule

    def vote_state(self, p: torch.Tensor) -> dict:
        return self._sign_states.setdefault(p, {})

    def _step_by_vote(self):
        if not self._synchronized:
            self.synchronize()
        self._base.step(self)

    def state_dict(self) -> dict:
        """The optimizer's, and under "horovod_sign" the momentum that this rank votes by, if there is one."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        votes_by = {i: dict(self._sign_states[p]) for i, p in enumerate(parameters) if p in self._sign_states}
        return {**self._base.state_dict(self), "horovod_sign": votes_by}

    def load_state_dict(self, state_dict: dict):
        """Loads what `state_dict` gave, or the state of the optimizer alone, and then momenta start at zero."""
        self._base.load_state_dict(self, {k: v for k, v in state_dict.items() if k != "horovod_sign"})
        votes_by = state_dict.get("horovod_sign", {})
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, p in enumerate(parameters):
            if p in self._sign_states:
                saved = votes_by.get(i, {})
                state = self._sign_states[p]
                state["step"] = saved.get("step", 0)
                if self._rule.has_momentum:
                    momentum_buffer(p, state).copy_(saved.get("momentum_buffer", torch.zeros(())))


class _SignStep:
    """SignSGD and Signum step straight from the bits of the vote."""

    def vote_rule(self, group: dict) -> Rule:
        return self.rule(group)

    def vote_state(self, p: torch.Tensor) -> dict:
        return self.state[p]

    def _step_by_vote(self):
        self._base.step(self)

    @torch.no_grad()
    def _update(self):
        if self._synchronized:  # the gradients are votes, perhaps changed since
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        take_step(p, p.grad, group)
            return
        for bucket, decided in self._pipeline.decisions():
            bucket.take_step(decided)


def _make_states(optimizer, names):
    """Makes the state of all parameters now, so that every rank has the same to broadcast or to save."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p in names:
                # An empty state is state too: see `_Distributed.__module__`.
                state = optimizer.vote_state(p)
                if optimizer.vote_rule(group).has_momentum:
                    momentum_buffer(p, state)
