"""`Compression.signsgd()`, `signum()`, `lion()`, `of(rule)`: Horovod's `compression=`, here and in its own wrappers.

In Horovod's own `DistributedOptimizer` and `allreduce`, with op=hvd.Sum, a gradient goes out as bit-counts (fields of
an int64 tensor, added by an ordinary allreduce) and comes back as the vote, -1, 0 or +1, of the gradient's dtype.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import horovod.torch as hvd
import numpy as np
import torch

from horovod_sign import rules
from horovod_sign.algebra import counts_bits
from horovod_sign.tensors import planes
from horovod_sign.tensors.ballots import local_ballot, state_of
from horovod_sign.voting import messages


class SignCompressor:
    """A compressor in Horovod's sense, and the rule of an `hvs.DistributedOptimizer`. Made by `Compression`."""

    def __init__(
        self, rule: rules.Rule, abstain: bool = True, named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None
    ) -> None:
        self.rule, self._abstain = rules.check_rule(rule), abstain
        self._parameters = None if named_parameters is None else [p for _, p in named_parameters]
        self._states: dict[torch.Tensor, dict] = {}
        self._singles = planes.Singles()

    # Dynamo would trace into the kernels, whose addresses it takes for numbers.
    @torch.compiler.disable
    def compress(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """The fields of this rank's ballot, as int64 words, and what `decompress` needs."""
        ballot = self._ballot_on(tensor)
        words = messages.encode_fields(ballot, counts_bits(hvd.size()))
        return torch.from_numpy(words), _Context(tensor.shape, tensor.dtype, tensor.device, ballot)

    @torch.compiler.disable
    def decompress(self, tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
        """The vote in the summed words, in the shape and dtype of the gradient."""
        if ctx is None:
            raise ValueError(
                "Horovod does not compress sparse gradients: give DistributedOptimizer sparse_as_dense=True, or use "
                "dense gradients"
            )
        words, bits = tensor.numpy(), counts_bits(hvd.size())
        check_summed(words, messages.encode_fields(ctx.ballot, bits) if words[-1] <= 1 else None)
        decided = messages.decode_fields(words, bits, abstain=self._abstain)
        return self._singles.unpack(decided, ctx.shape, ctx.dtype, ctx.device)

    def _ballot_on(self, gradient: torch.Tensor) -> messages.Planes:
        rule, singles = self.rule, self._singles
        if rule.takes_gradient:
            return singles.pack(gradient, self._abstain)
        state = self._state_of(gradient) if rule.states or rule.warmup_steps else {}
        warm = rules.warming_up(rule, state)
        if rule.betas is not None and rule.states:
            m = state_of(gradient, state, *rule.states)  # the kernels know no more than one
            if planes.are_alike(gradient, m):
                betas = cast("tuple[float, float]", rule.betas)  # a rule with a state has both
                return singles.interpolate_pack(gradient, m, betas, warm, self._abstain)
        return singles.pack(local_ballot(rule, gradient, state, warm), self._abstain)

    def _state_of(self, gradient: torch.Tensor) -> dict:
        """The states of the parameter that `gradient` is the gradient of."""
        if self._parameters is None:
            raise ValueError(
                "Compression.signum(), or any other that remembers something, must know in Horovod's own "
                "DistributedOptimizer whose momentum is whose: make it by "
                "Compression.signum(named_parameters=model.named_parameters())"
            )
        for p in self._parameters:
            if p.grad is gradient:
                return self._states.setdefault(p, {})
        raise ValueError(
            "the compression got a gradient of none of its named_parameters: name all parameters of the "
            "optimizer, and with sparse gradients use hvs.DistributedOptimizer"
        )


class _Context(NamedTuple):
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    ballot: messages.Planes


def check_summed(words: np.ndarray, own: Any) -> None:
    """Raises ValueError if `words` is an average of fields and not a sum, which would silently be a wrong vote.

    The last word counts the voters. An average makes it 1 (or 0) whatever their number; so does a sum when all the
    other ranks have joined, but then the words are `own`, what this rank sent.
    """
    if words[-1] <= 1 and not np.array_equal(words, own):
        raise ValueError(
            "the bit-counts were averaged, which destroys the vote: use op=hvd.Sum (Horovod's default is Average) and "
            "leave gradient_predivide_factor alone"
        )


class Compression(hvd.Compression):
    """The compressions, made as in `hvs.DistributedOptimizer(optimizer, compression=hvs.Compression.signum())`.

    Horovod's own, `none` and `fp16`, are here too: for its other functions, and where a script names the default.
    """

    @staticmethod
    def signsgd(abstain: bool = True) -> SignCompressor:
        """Vote on gradients. `abstain` is for Horovod's own wrappers; `hvs.DistributedOptimizer` has one itself."""
        return SignCompressor(rules.signsgd(), abstain)

    @staticmethod
    def signum(
        momentum: float = 0.9,
        warmup: bool = False,
        abstain: bool = True,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> SignCompressor:
        """Vote on each worker's momentum of its gradients (see `hvs.Signum`).

        Args:
            momentum: in [0, 1).
            warmup: vote on gradients for the first C(momentum) steps.
            abstain: as in `signsgd`.
            named_parameters: `model.named_parameters()`; needed in Horovod's own `DistributedOptimizer` only, which
                does not tell a compressor whose gradient it is.
        """
        return SignCompressor(rules.signum(momentum, warmup), abstain, named_parameters)

    @staticmethod
    def lion(
        betas: tuple[float, float] = (0.9, 0.99),
        abstain: bool = True,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    ) -> SignCompressor:
        """Vote as Distributed Lion does (see `hvs.Lion`).

        Args:
            betas: each in [0, 1).
            abstain, named_parameters: as in `signum`.
        """
        return SignCompressor(rules.lion(*betas), abstain, named_parameters)

    @staticmethod
    def of(
        rule: rules.Rule, abstain: bool = True, named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None
    ) -> SignCompressor:
        """Vote by a rule, of one's own for example (see `hvs.Rule`).

        Args:
            rule: an object of a class derived from `hvs.Rule`.
            abstain, named_parameters: as in `signum`.
        """
        return SignCompressor(rule, abstain, named_parameters)
