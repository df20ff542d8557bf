"""Ballots of many variables at once: one compiled function packs all of them, one unpacks all votes."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from horovod_sign.graphs import bits as bit
from horovod_sign.graphs.programs import Compiled
from horovod_sign.rules import Interpolation, Rule, checked_ballot


@functools.lru_cache(maxsize=256)
def packer(abstain: bool) -> Compiled:
    """Compiled: (sign plane, nonzero plane or None) of a list of tensors."""
    return Compiled(lambda tensors: bit.to_planes([bit.ballots(x, abstain) for x in tensors], abstain))


def pack_by(
    rule: Rule,
    abstain: bool,
    gradients: Sequence[tf.Tensor],
    states: Sequence[list[tf.Tensor]],
    warm: tf.Tensor,
    hold: tf.Tensor,
) -> tuple[list[list[tf.Tensor]], tf.Tensor, tf.Tensor | None]:
    """(new states, sign plane, nonzero plane or None) of what a worker votes on by a rule.

    Args:
        rule: not one that votes on gradients as they are.
        abstain: as everywhere.
        gradients, states: tensors, and for each a list of the states of its variable.
        warm, hold: as in `_advance`.
    """
    if not isinstance(rule, Interpolation) or rule.betas is None:
        new, voted = _advance_by_ballot(rule, gradients, states, warm, hold)
        return new, *packer(abstain)(voted)
    momenta = [m for (m,) in states]
    new, sign, nonzero = interpolate_packer(rule, abstain)(gradients, momenta, warm, hold, _nothing())
    return [[m] for m in new], sign, nonzero


def signs_by(
    rule: Rule, gradients: Sequence[tf.Tensor], states: Sequence[list[tf.Tensor]], warm: tf.Tensor
) -> tuple[list[list[tf.Tensor]], list[tf.Tensor]]:
    """(new states, signs as by `signs`) of what a worker votes on by a rule; otherwise as `pack_by`."""
    hold = tf.constant(False)
    if not isinstance(rule, Interpolation) or rule.betas is None:
        new, voted = _advance_by_ballot(rule, gradients, states, warm, hold)
        return new, signs(voted)
    momenta = [m for (m,) in states]
    new, votes = momentum_signs(rule)(gradients, momenta, warm, hold, _nothing())
    return [[m] for m in new], votes


def own_ballot(rule: Rule, gradient: tf.Tensor, states: list[tf.Tensor], hold: tf.Tensor) -> tuple[list, tf.Tensor]:
    """(new states, what is voted on) by what `rule.ballot` says, in plain operations.

    Raises:
        RuntimeError: it raises an error, or returns what it must not.
    """
    exact = tf.cast(gradient, tf.float32)
    finite = bit.is_finite(exact)

    def tensor(value: Any) -> tf.Tensor:
        value = tf.convert_to_tensor(value)
        return value if value.shape.is_fully_defined() else tf.ensure_shape(value, exact.shape)

    voted, *new = checked_ballot(rule, tf.where(finite, exact, 0.0), states, tensor, _kind)
    kept = [tf.cast(each, tf.float32) for each in new]
    new = [tf.where(finite & bit.is_finite(k) & ~hold, k, s) for k, s in zip(kept, states, strict=True)]
    voted = tf.where(finite & (voted != voted), tf.zeros_like(voted), voted)  # its own NaN: they abstain as zeros do
    return new, tf.where(finite, voted, tf.cast(exact, voted.dtype))


def _advance_by_ballot(
    rule: Rule, gradients: Sequence[tf.Tensor], states: Sequence[list[tf.Tensor]], warm: tf.Tensor, hold: tf.Tensor
) -> tuple[list, list]:
    advanced = [own_ballot(rule, g, of, hold) for g, of in zip(gradients, states, strict=True)]
    new, voted = [each for each, _ in advanced], [each for _, each in advanced]
    if rule.warmup_steps:  # as signs, since their dtypes may differ
        both = zip(signs(gradients), signs(voted), strict=True)
        voted = [tf.where(warm, tf.cast(g, tf.float32), tf.cast(v, tf.float32)) for g, v in both]
    return new, voted


def _kind(x: tf.Tensor) -> tuple[tuple[int, ...], str, bool]:
    return tuple(x.shape), x.dtype.name, x.dtype in bit.DTYPES


def _nothing() -> tf.Tensor:
    return tf.constant(0, tf.uint32)


@functools.lru_cache(maxsize=256)
def interpolate_packer(rule: Interpolation, abstain: bool) -> Compiled:
    """Compiled: (new momenta, sign plane, nonzero plane or None) of gradients, momenta, and the rest of `_advance`."""

    def pack(
        gradients: Sequence[tf.Tensor], momenta: Sequence[tf.Tensor], *when: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor | None]:
        new, ballots = _advance(rule, abstain, gradients, momenta, *when)
        return new, *bit.to_planes(ballots, abstain)

    return Compiled(pack)


@Compiled
def signs(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Compiled: -1, 0 or +1 in the dtype of each tensor; NaN is 0."""
    return [bit.to_numbers(bit.ballots(x, True), x.dtype) for x in tensors]


@functools.lru_cache(maxsize=256)
def momentum_signs(rule: Interpolation) -> Compiled:
    """Compiled: (new momenta, signs as by `signs`) of gradients, momenta, and the rest of `_advance`."""

    def advance(
        gradients: Sequence[tf.Tensor], momenta: Sequence[tf.Tensor], *when: tf.Tensor
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        new, ballots = _advance(rule, True, gradients, momenta, *when)
        return new, [bit.to_numbers(b, g.dtype) for b, g in zip(ballots, gradients, strict=True)]

    return Compiled(advance)


@Compiled
def all_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Compiled: whether no tensor has an infinity or a NaN."""
    return tf.reduce_all(tf.stack([tf.reduce_all(bit.is_finite(x)) for x in tensors]))


def _advance(
    rule: Interpolation,
    abstain: bool,
    gradients: Sequence[tf.Tensor],
    momenta: Sequence[tf.Tensor],
    warm: tf.Tensor,
    hold: tf.Tensor,
    nothing: tf.Tensor,
) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
    """(new momenta, ballots on what the worker votes on) by `rules`.

    Args:
        warm: scalar bool: votes are on the gradients (the rule's warm-up).
        hold: scalar bool: momenta stay as they are.
        nothing: the integer 0, which the compiler must not know: see `_rounded`.
    """
    assert rule.beta_state is not None  # or it would vote on gradients as they are
    new, ballots = [], []
    for gradient, m in zip(gradients, momenta, strict=True):
        g = tf.cast(gradient, tf.float32)
        finite = bit.is_finite(g)
        state = _interpolate(rule.beta_state, m, g, nothing)
        view = state if rule.beta_vote == rule.beta_state else _interpolate(rule.beta_vote, m, g, nothing)
        on_view = bit.ballots(tf.where(finite, view, g), abstain)
        ballots.append(tf.where(warm, bit.ballots(gradient, abstain), on_view))
        new.append(tf.where(finite & ~hold, state, m))
    return new, ballots


def _interpolate(beta: float, m: tf.Tensor, g: tf.Tensor, nothing: tf.Tensor) -> tf.Tensor:
    """beta m + (1 - beta) g in float32, each product and the sum rounded by itself."""
    return _rounded(m * np.float32(beta), nothing) + _rounded(g * np.float32(1.0 - beta), nothing)


def _rounded(product: tf.Tensor, nothing: tf.Tensor) -> tf.Tensor:
    """`product`, which the compiler cannot fuse with a sum into one rounding, so that momenta equal NumPy's."""
    return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, tf.uint32), nothing), tf.float32)


@functools.lru_cache(maxsize=64)
def unpacker(layout: tuple[tuple[Any, tf.DType], ...], abstain: bool) -> Any:
    """The function that gives the votes in planes as a list of tensors of `layout`, ((shape, dtype), ...)."""

    @Compiled
    def unpack(sign: tf.Tensor, nonzero: tf.Tensor) -> list[tf.Tensor]:
        votes, at = [], 0
        for shape, dtype in layout:
            stop = at + (math.prod(shape) + 63) // 64 * 8
            votes.append(bit.to_votes(sign[at:stop], nonzero[at:stop] if abstain else None, dtype))
            at = stop
        return votes

    def shaped(sign: tf.Tensor, nonzero: tf.Tensor) -> list[tf.Tensor]:
        # Outside of XLA, whose loops these shapes would break up; in a graph they cost nothing: no memory is copied.
        votes = zip(unpack(sign, nonzero), layout, strict=True)
        return [tf.reshape(tf.reshape(v, [-1])[: math.prod(shape)], shape) for v, (shape, _) in votes]

    return tf.function(shaped, autograph=False)
