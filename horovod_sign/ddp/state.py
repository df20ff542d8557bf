"""What a model's votes need to know from step to step: options, momenta, statistics."""

from typing import Any, NoReturn

import torch
import torch.distributed as dist

from horovod_sign import rules
from horovod_sign.algebra import counts_bits
from horovod_sign.ddp import checkpoints
from horovod_sign.ddp.buckets import GradientBucket
from horovod_sign.ddp.courier import Courier
from horovod_sign.ddp.handshake import agree, group_of
from horovod_sign.ddp.leftovers import Leftovers
from horovod_sign.ddp.scaling import Scale
from horovod_sign.statistics import Monitor, VoteStatistics
from horovod_sign.tensors.scalers import check_scaler
from horovod_sign.voting.handshake import argument
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.protocols import check_transport
from horovod_sign.voting.reducer import Reducer

_OTHER_MODEL = (
    "this ddp.VoteState votes for another model already, whose parameters and buckets are others: make one for each "
    "DistributedDataParallel"
)


class VoteState:
    """The state of `vote_hook`, for one model: `model.register_comm_hook(VoteState(rule=signum(0.9)), vote_hook)`.

    All ranks of the process group make it, with the same options, after `init_process_group`: a collective, since it
    makes a group of its own, of the same backend, for what `vote_hook` sends beside backward.

    After backward the gradients are the votes sign(sum over ranks m of sign(v_m)), v_m what each worker votes on by
    `rule`, of its own gradient: neither averaged nor divided. Any optimizer then steps by them; a learning rate is how
    far each coordinate moves (start at a thirtieth of SGD's). A parameter that backward has not reached on some rank
    (DDP's find_unused_parameters) abstains there and keeps its momentum; a rank in `Join` that has no more data
    abstains as a whole.

    Args:
        process_group: the ranks that vote: the one that DistributedDataParallel was given; default: all.
        rule: what each worker votes on: `signsgd()`, the default, `signum(momentum, warmup)`, `lion(beta_1, beta_2)`,
            or an object of a class of yours derived from `Rule`; or the `hvs.Compression` of such. What a rule keeps
            is float32, each rank's own, and is kept here.
        abstain: whether zeros, NaN and ties are 0 (True), or all count as +1 and a vote is one bit (False).
        transport: "exchange" (packed bits, n/8 bytes or twice that in each of two phases), "counts" (one integer
            allreduce, 2 to 16 bits a coordinate), or "auto": for each bucket what a step waits for least.
        grad_scaler: the `torch.amp.GradScaler` that scales the losses, if there is one. Votes are on unscaled
            gradients; if gradients of any rank overflow, all ranks skip the step, as they do without votes.

    Raises:
        TypeError, ValueError: bad arguments, or ranks that differ: on all ranks alike.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        rule: rules.Rule | None = None,
        *,
        abstain: bool = True,
        transport: str = "auto",
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self._group, error, items = group_of(process_group), None, []
        try:
            self.rule = rules.signsgd() if rule is None else getattr(rule, "rule", rule)
            _check(self.rule, abstain, transport, grad_scaler, dist.get_world_size(self._group))
            self.abstain, self.transport = bool(abstain), transport
            self.states: dict[torch.Tensor, dict] = {}
            self.scale = Scale(grad_scaler, self.states)
            items = [
                ("argument rule", rules.in_words(self.rule)),
                argument("abstain", self.abstain),
                argument("transport", transport),
                ("argument grad_scaler", "given" if self.scale.used else "not given"),
            ]
        except Exception as invalid:  # whatever it is: the other ranks wait
            error = invalid
        agree(items, error, self._group)
        self.courier = Courier(self._group)
        self._reducer = Reducer(self.courier.collectives, transport, self.abstain, "bucket")
        self._monitor = Monitor(f"rank {self.courier.rank}", self.courier.size, abstain=self.abstain)
        self._buckets: dict[int, GradientBucket] = {}
        self._voted_on: set[torch.Tensor] = set()
        self._leftovers = Leftovers()
        self._next, self._knows_all = 0, False

    @property
    def process_group(self) -> dist.ProcessGroup:
        """The ranks that vote."""
        return self._group

    @property
    def bytes_sent(self) -> int:
        """Bytes that this rank sent to others in the last backward pass."""
        return self._monitor.latest.bytes_sent

    def vote_statistics(self) -> VoteStatistics:
        """Abstentions, ties, NaN, agreement and bytes of the last backward pass, seen from this rank."""
        return self._monitor.latest

    def state_dict(self, model: torch.nn.Module) -> dict:
        """What this rank votes by, under the names that `model`, or its DistributedDataParallel, has for parameters."""
        return checkpoints.own(self, model)

    def gather_state_dict(self, model: torch.nn.Module, root_rank: int = 0) -> dict | None:
        """What all ranks vote by, for one checkpoint. A collective.

        Args:
            model: as for `state_dict`.
            root_rank: which rank of the process group wants it; the others get None.
        """
        return checkpoints.gathered(self, model, root_rank)

    def load_state_dict(self, state_dict: dict, model: torch.nn.Module) -> None:
        """Loads what `state_dict` or `gather_state_dict` gave: on as many ranks as saved it each has its own momenta
        again, bit for bit; on another number all start from their mean."""
        checkpoints.load(self, state_dict, model)

    def bucket_of(self, bucket: dist.GradBucket) -> GradientBucket:
        """A bucket of votes on DDP's bucket, which DDP makes anew after the first pass."""
        index, known = bucket.index(), self._buckets.get(bucket.index())
        if known is None or not known.holds(bucket):
            self._meet(bucket)
            known = self._buckets[index] = GradientBucket(bucket, self.rule, self.states)
        return known

    def look_for_leftovers(self, voted: GradientBucket, is_last: bool) -> None:
        """Whether gradients were added to votes; one of each bucket tells, where it does not lie in DDP's own."""
        self._leftovers.check(voted.of_model)
        if is_last:
            self._leftovers.expect([p for each in self._buckets.values() for p in each.outside])

    def decide(self, voted: GradientBucket, notice: bool, is_first: bool, is_last: bool) -> tuple[Planes, bool]:
        """Votes on a bucket of this pass, and takes note of the vote; as `Reducer.decide`."""
        if is_first:
            self._reducer.begin()
            self._monitor.begin()
        decided, noticed = self._reducer.decide(voted, notice)
        self._monitor.tell_nan(voted)
        self._monitor.count_vote(voted, decided)
        if is_last:
            self._monitor.end(self._reducer.bytes_sent)
        return decided, noticed

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "a ddp.VoteState cannot be pickled, since its momenta are those of parameters and its ranks are here: save "
            "state.gather_state_dict(model), or state.state_dict(model) on each rank, and make it anew"
        )

    def _meet(self, bucket: dist.GradBucket) -> None:
        """Notes whose votes these are, in the first pass; afterwards there are no others."""
        parameters = bucket.parameters()
        if all(p in self._voted_on for p in parameters):
            return
        if self._knows_all or bucket.index() != self._next:
            raise ValueError(_OTHER_MODEL)
        self._voted_on.update(parameters)
        for p in parameters:
            self.states.setdefault(p, {})
        self._next, self._knows_all = bucket.index() + 1, bucket.is_last()


def _check(rule: Any, abstain: Any, transport: Any, grad_scaler: Any, size: int) -> None:
    """Raises TypeError or ValueError, in one sentence, for arguments that cannot be meant."""
    rules.check_rule(rule)
    if not isinstance(abstain, bool):
        raise TypeError(f"abstain must be True or False, got {abstain!r}")
    check_transport(transport)
    if transport == "counts":
        counts_bits(size)
    check_scaler(grad_scaler)
