"""`DistributedOptimizer`: any torch optimizer, stepping by the majority vote of all ranks."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import horovod.torch as hvd
import torch

from horovod_sign.keywords import without_horovods_default, wrong_compression
from horovod_sign.options import BUCKET_CAP_MB, bucket_bytes, check_voting, reachable
from horovod_sign.rules import Rule, choose_rule, in_words
from horovod_sign.tensors.planes import check_kernels
from horovod_sign.torch.arguments import (
    check_arguments,
    check_every,
    check_named,
    check_parameters,
    names_by_parameter,
    names_in_groups,
    trainable,
)
from horovod_sign.torch.compression import SignCompressor
from horovod_sign.torch.device import ALL_TRANSPORTS
from horovod_sign.torch.handshake import tell
from horovod_sign.torch.optimizers import SignOptimizer
from horovod_sign.torch.votes import Options, Votes
from horovod_sign.torch.wrapped import SignStep, VotesAsGradients

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from horovod_sign.keywords import HorovodKeywords


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: SignCompressor | None = None,
    backward_passes_per_step: int = 1,
    process_set: hvd.ProcessSet = hvd.global_process_set,
    abstain: bool = True,
    transport: str = "auto",
    bucket_cap_mb: float = BUCKET_CAP_MB,
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
        named_parameters: `model.named_parameters()`, for error messages and agreement between ranks. An optimizer that
            was made of them (torch 2.6) knows them already.
        compression: `Compression.signsgd()`, `signum()`, `lion()` or `of(rule)`. Default, also under Horovod's name for
            it, `Compression.none`: what a `SignOptimizer` (`SignSGD`, `Signum`, `Lion`) says itself; around any other
            optimizer, signsgd. There is no way not to vote.
        backward_passes_per_step: backward passes whose gradients are summed before a vote.
        process_set: Horovod's, of the ranks that vote.
        abstain: zeros, NaN and ties are 0 (True), or +1 (False), which saves the bits that tell them apart: a third of
            all at even rank counts.
        transport: "exchange", "counts" (which works with `hvd.join()`), both by Horovod's engine, or "auto": what costs
            least for so many coordinates and ranks by `horovod_sign.voting.choice`. Small models are then
            voted on by MPI itself, in `step`, if mpi4py is installed. "device" keeps bits on the GPU, over NCCL by a
            process group of torch.distributed if there is one of the same ranks, else by Horovod (docs/gpu.md).
        bucket_cap_mb: megabytes (10^6 bytes) of gradients in one vote. Votes overlap with backward and with each other,
            but each costs some milliseconds by itself. More than the 25 of PyTorch's DistributedDataParallel, which has
            32 times as many bits to send.
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
        check_voting(hvd, process_set, transport, backward_passes_per_step, hierarchical, ALL_TRANSPORTS)
        check_every(check_replicas)
        rule = _chosen_rule(optimizer, compression)
        labels = names_in_groups(optimizer.param_groups)
        if named_parameters is not None:
            labels = names_by_parameter(named_parameters)
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


def _chosen_rule(optimizer: torch.optim.Optimizer, compression: SignCompressor | None) -> Rule:
    compression = without_horovods_default(compression, hvd.Compression)
    if compression is not None and not isinstance(compression, SignCompressor):
        raise wrong_compression(compression)
    own = optimizer.rule(optimizer.param_groups[0]) if isinstance(optimizer, SignOptimizer) else None
    return choose_rule(own, compression.rule if compression is not None else None, type(optimizer).__name__)


def _wrap(optimizer: torch.optim.Optimizer, rule: Rule) -> Any:
    """The optimizer as one of a class derived from its own."""
    body = SignStep if isinstance(optimizer, SignOptimizer) else VotesAsGradients
    cls: Any = type(type(optimizer).__name__, (body, type(optimizer)), {})
    wrapped = cls.__new__(cls)
    wrapped.__dict__.update(optimizer.__dict__)
    wrapped.__dict__.pop("step", None)  # a learning-rate scheduler's, bound to the optimizer that is wrapped
    wrapped._become_distributed(rule)
    return wrapped
