"""The functions of `voting.messages` for TensorFlow tensors: the same bytes travel, cut and read inside a graph.

How many planes a message carries is known only when the step runs, so lengths and positions are tensors. Arithmetic is
compiled by XLA, which needs static shapes; cutting and joining buffers, whose lengths vary, is left outside. All of it
is on the host.
"""

import functools

import numpy as np
import tensorflow as tf

from horovod_sign.graphs import bits as bit
from horovod_sign.graphs.places import on_host
from horovod_sign.graphs.programs import Compiled
from horovod_sign.voting.messages import Planes


@on_host
def split(ballot: Planes, bounds: list[tuple[int, int]]) -> tuple[tf.Tensor, tf.Tensor]:
    """As `voting.messages.split`; the lengths are an int32 tensor."""
    widths = [stop - start for start, stop in bounds]
    if ballot.nonzero is None:
        pieces = [piece for a, b in bounds for piece in (np.array([1], np.uint8), ballot.sign[a:b])]
        return tf.concat(pieces, axis=0), tf.constant([1 + width for width in widths], tf.int32)
    second = _abstains_somewhere(tuple(bounds))(ballot.nonzero)
    lengths = 1 + tf.constant(widths, tf.int32) * (1 + second)
    pieces = []
    for r, (a, b) in enumerate(bounds):
        header = tf.cast(1 + second[r : r + 1], tf.uint8)
        pieces += [header, ballot.sign[a:b], ballot.nonzero[a : a + (b - a) * second[r]]]
    return tf.concat(pieces, axis=0), lengths


@on_host
def parse(buffer: tf.Tensor, chunk_lengths: list[int]) -> list[Planes]:
    """As `voting.messages.parse`; every chunk has a nonzero plane, all ones where its message carries none."""
    chunks, at = [], tf.constant(0, tf.int32)
    for length in chunk_lengths:
        second = length * (tf.cast(buffer[at], tf.int32) - 1)
        middle = at + 1 + length
        ones = tf.fill([length - second], np.uint8(255))
        nonzero = tf.concat([buffer[middle : middle + second], ones], axis=0)
        chunks.append(Planes(tf.ensure_shape(buffer[at + 1 : middle], [length]), tf.ensure_shape(nonzero, [length])))
        at = middle + second
    return chunks


@on_host
def tally(ballots: list[Planes], *, abstain: bool) -> Planes:
    """As `voting.messages.tally`."""
    if len(ballots) > 1:
        signs, nonzeros = zip(*ballots, strict=True)
        return Planes(*_majority(abstain)(list(signs), list(nonzeros)))
    (ballot,) = ballots
    if not abstain and ballot.nonzero is not None:
        return Planes(tf.bitwise.bitwise_and(ballot.sign, ballot.nonzero))
    return ballot


@on_host
def join(chunks: list[Planes]) -> Planes:
    """As `voting.messages.join`; there is always a nonzero plane."""
    signs, nonzeros = zip(*chunks, strict=True)
    return Planes(tf.concat(signs, axis=0), tf.concat(nonzeros, axis=0))


@on_host
def encode_fields(ballot: Planes, bits: int) -> tf.Tensor:
    """As `voting.messages.encode_fields`."""
    return _encode_fields(bits)(ballot.sign, ballot.nonzero)


@on_host
def decode_fields(words: tf.Tensor, bits: int, *, abstain: bool) -> Planes:
    """As `voting.messages.decode_fields`."""
    return Planes(*_decode_fields(bits, abstain)(words))


@functools.lru_cache(maxsize=256)
def _abstains_somewhere(bounds: tuple[tuple[int, int], ...]) -> Compiled:
    """Compiled: for each chunk of a nonzero plane, 1 if it has a clear bit, else 0."""

    def abstains(nonzero: tf.Tensor) -> tf.Tensor:
        return tf.stack([_has_clear_bit(nonzero[a:b]) for a, b in bounds])

    return Compiled(abstains)


def _has_clear_bit(plane: tf.Tensor) -> tf.Tensor:
    if plane.shape[0] == 0:
        return tf.constant(0, tf.int32)
    words = tf.bitcast(tf.reshape(plane, [-1, 8]), tf.uint64)
    return tf.cast(tf.reduce_min(words) < tf.constant(2**64 - 1, tf.uint64), tf.int32)


@functools.lru_cache(maxsize=256)
def _majority(abstain: bool) -> Compiled:
    """Compiled: (sign, nonzero or None) of the sign planes and the nonzero planes of M ballots."""

    def majority(signs: list[tf.Tensor], nonzeros: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor | None]:
        # Counters cut into planes themselves, so that one operation on a byte counts 8 coordinates. A counter adds
        # sign + 1, that is 0, 1 or 2; the vote is plus where it is above M, minus below.
        counter = [tf.zeros_like(signs[0]) for _ in range((2 * len(signs)).bit_length())]
        for sign, nonzero in zip(signs, nonzeros, strict=True):
            zero = tf.bitwise.invert(nonzero)
            plus = tf.bitwise.bitwise_and(tf.bitwise.invert(sign), nonzero)
            # A ballot adds 1 or 2, never both, so the carry out of the lowest plane and the 2 never meet.
            carry = tf.bitwise.bitwise_and(counter[0], zero)
            counter[0] = tf.bitwise.bitwise_xor(counter[0], zero)
            carry = tf.bitwise.bitwise_or(carry, plus)
            for k in range(1, len(counter)):
                total = tf.bitwise.bitwise_xor(counter[k], carry)
                counter[k], carry = total, tf.bitwise.bitwise_and(counter[k], carry)
        below, equal = _compare(counter, len(signs))
        return below, tf.bitwise.invert(equal) if abstain else None

    return Compiled(majority)


def _compare(counter: list[tf.Tensor], number: int) -> tuple[tf.Tensor, tf.Tensor]:
    """(below, equal): the bits of the coordinates whose counter is below, or equal to, a number."""
    equal = tf.fill(counter[0].shape, np.uint8(255))
    below = tf.zeros_like(counter[0])
    for k in reversed(range(len(counter))):
        if number >> k & 1:
            below = tf.bitwise.bitwise_or(below, tf.bitwise.bitwise_and(equal, tf.bitwise.invert(counter[k])))
            equal = tf.bitwise.bitwise_and(equal, counter[k])
        else:
            equal = tf.bitwise.bitwise_and(equal, tf.bitwise.invert(counter[k]))
    return below, equal


@functools.lru_cache(maxsize=256)
def _encode_fields(bits: int) -> Compiled:
    def encode(sign: tf.Tensor, nonzero: tf.Tensor | None) -> tf.Tensor:
        fields = 2 * (1 - bit.spread_bits(sign))
        if nonzero is not None:
            fields = tf.where(bit.spread_bits(nonzero) == 1, fields, np.uint8(1))
        if bits == 16:
            packed = tf.bitcast(tf.cast(fields, tf.uint16), tf.uint8)
        else:
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            packed = tf.reduce_sum(tf.bitwise.left_shift(tf.reshape(fields, [-1, 8 // bits]), shifts), axis=1)
        words = tf.bitcast(tf.reshape(packed, [-1, 8]), tf.int64)
        return tf.concat([words, tf.ones([1], tf.int64)], axis=0)

    return Compiled(encode)


@functools.lru_cache(maxsize=256)
def _decode_fields(bits: int, abstain: bool) -> Compiled:
    integer = tf.uint16 if bits == 16 else tf.uint8

    def decode(words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | None]:
        voters = tf.cast(words[-1], integer)
        packed = tf.reshape(tf.bitcast(words[:-1], tf.uint8), [-1])
        if bits == 16:
            fields = tf.bitcast(tf.reshape(packed, [-1, 2]), tf.uint16)
        else:
            shifts = np.arange(0, 8, bits, dtype=np.uint8)
            fields = tf.bitwise.bitwise_and(tf.bitwise.right_shift(packed[:, None], shifts), np.uint8(2**bits - 1))
        minus = bit.gather_bits(tf.cast(fields < voters, tf.uint8))
        return minus, bit.gather_bits(tf.cast(fields != voters, tf.uint8)) if abstain else None

    return Compiled(decode)
