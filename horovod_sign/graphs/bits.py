"""From numbers to bits and back, in TensorFlow: what the native kernels do for NumPy arrays, as functions for XLA.

Signs, zeros and NaNs are told apart on the bits as integers, never by comparing floats: TensorFlow's threads flush
subnormal numbers to zero, but a subnormal gradient votes. Everything here is plain array code of static shape, meant
to be traced inside a `programs.Compiled` function, where XLA fuses it into one pass over the gradients.
"""

import numpy as np
import tensorflow as tf

_INTEGERS = {
    tf.float16: (tf.uint16, 0x7C00),
    tf.bfloat16: (tf.uint16, 0x7F80),
    tf.float32: (tf.uint32, 0x7F800000),
    tf.float64: (tf.uint64, 0x7FF0000000000000),
}
_PLACES = np.arange(8, dtype=np.uint8)

VOTES = np.uint16(256)

DTYPES = tuple(_INTEGERS)


def as_bits(x: tf.Tensor) -> tuple[tf.Tensor, int]:
    """The bits of floats as unsigned integers, and the bits of infinity of that dtype."""
    integer, infinity = _INTEGERS[x.dtype]
    return tf.bitcast(x, integer), infinity


def ballots(x: tf.Tensor, abstain: bool) -> tf.Tensor:
    """Each coordinate's ballot in a small integer: sign (uint8 0 or 1), plus 256 where it votes if `abstain` (uint16).

    For abstain=False, zero and NaN have the sign 0 of a plus. Both planes in one integer, so that XLA packs them in
    one pass over x.
    """
    bits, infinity = as_bits(x)
    top = bits.dtype.size * 8 - 1
    sign = tf.bitwise.right_shift(bits, tf.constant(top, bits.dtype))
    magnitude = tf.bitwise.bitwise_and(bits, tf.constant((1 << top) - 1, bits.dtype))
    # One comparison for two: zero wraps to the largest integer, NaN is above infinity.
    votes = magnitude - tf.constant(1, bits.dtype) < tf.constant(infinity, bits.dtype)
    if abstain:
        return tf.cast(sign, tf.uint16) + tf.where(votes, VOTES, np.uint16(0))
    return tf.where(votes, tf.cast(sign, tf.uint8), np.uint8(0))


def is_finite(x: tf.Tensor) -> tf.Tensor:
    """Whether each coordinate is neither infinite nor NaN."""
    bits, infinity = as_bits(x)
    exponent = tf.constant(infinity, bits.dtype)
    return tf.bitwise.bitwise_and(bits, exponent) != exponent


def to_planes(all_ballots: list[tf.Tensor], abstain: bool) -> tuple[tf.Tensor, tf.Tensor | None]:
    """(sign plane, nonzero plane or None) of the ballots of several variables, each in whole 64-bit words.

    Coordinate i of a variable that takes w bytes of a plane is bit i // w of byte i % w. (In NumPy's planes it is bit
    i % 8 of byte i // 8. Which it is does not matter to tallies, as long as all ranks do the same.) So a byte is made
    from 8 places w apart, and XLA's loops run along contiguous memory in vectors: twice as fast.
    """
    bytes_of = tf.concat(
        [_gather_rows(_whole_words(b, VOTES if abstain else np.uint8(0))) for b in all_ballots], axis=0
    )
    if not abstain:
        return bytes_of, None
    return tf.cast(bytes_of, tf.uint8), tf.cast(tf.bitwise.right_shift(bytes_of, np.uint16(8)), tf.uint8)


def _gather_rows(ballots: tf.Tensor) -> tf.Tensor:
    places = np.arange(8, dtype=ballots.dtype.as_numpy_dtype)[:, None]
    return tf.reduce_sum(tf.bitwise.left_shift(tf.reshape(ballots, [8, -1]), places), axis=0)


def to_numbers(all_ballots: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """-1, 0 or +1 of ballots made with abstain=True."""
    sign = 1 - 2 * tf.cast(tf.bitwise.bitwise_and(all_ballots, np.uint16(1)), tf.int8)
    return tf.cast(tf.where(all_ballots >= VOTES, sign, tf.zeros_like(sign)), dtype)


def _whole_words(x: tf.Tensor, padding: np.integer) -> tf.Tensor:
    flat = tf.reshape(x, [-1])
    missing = -flat.shape[0] % 64
    return tf.pad(flat, [[0, missing]], constant_values=tf.constant(padding, x.dtype)) if missing else flat


def gather_bits(bits: tf.Tensor) -> tf.Tensor:
    """8 n integers of which the lowest bit (of each byte) counts, as n integers: 8 bits a byte, the first lowest."""
    places = np.arange(8, dtype=bits.dtype.as_numpy_dtype)
    return tf.reduce_sum(tf.bitwise.left_shift(tf.reshape(bits, [-1, 8]), places), axis=1)


def spread_bits(plane: tf.Tensor) -> tf.Tensor:
    """n bytes as 8 n bits (uint8 0 or 1) of shape [n, 8]."""
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(plane[:, None], _PLACES), np.uint8(1))


def to_votes(sign: tf.Tensor, nonzero: tf.Tensor | None, dtype: tf.DType) -> tf.Tensor:
    """One variable's w bytes of the planes of `to_planes` as votes -1, 0 or +1, of shape [8, w], padding included."""
    # In int8, so that the one conversion to floats is the last thing and runs in vectors.
    votes = 1 - 2 * tf.cast(_spread_rows(sign), tf.int8)
    if nonzero is not None:
        votes *= tf.cast(_spread_rows(nonzero), tf.int8)
    return tf.cast(votes, dtype)


def _spread_rows(plane: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.bitwise_and(tf.bitwise.right_shift(plane[None], _PLACES[:, None]), np.uint8(1))
