"""What the kernels compute, in NumPy: the oracle of the tests. Clear rather than fast, one tensor at a time.

Planes are uint8 arrays of whole 64-bit words, coordinate i being bit i % 8 of byte i / 8; padding after the last
coordinate has sign 0 and nonzero 1. bfloat16 arrays are known by their dtype's name, and only their bits are used.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

SIGNBIT, ABSTAIN, ONEBIT = 0, 1, 2

_INFINITY = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF0000000000000}


def bits_of(x: np.ndarray) -> np.ndarray:
    """The bits of floating-point numbers, as unsigned integers of the same width."""
    return np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}")


def classify(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sign bit, is +-0, is NaN) of each number, as bool arrays."""
    bits = bits_of(x)
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    magnitude = bits & ~top
    return (bits & top) != 0, magnitude == 0, magnitude > bits.dtype.type(_INFINITY[x.dtype.name])


def plane(bits: np.ndarray, padding: bool) -> np.ndarray:
    """Bools as a plane of whole words."""
    padded = np.full((len(bits) + 63) // 64 * 64, padding, bool)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little")


def bools(packed: np.ndarray | None, n: int) -> np.ndarray:
    """The first n coordinates of a plane; all True where there is no plane."""
    if packed is None:
        return np.ones(n, bool)
    return np.unpackbits(packed, count=n, bitorder="little").astype(bool)


def votes(sign: np.ndarray, nonzero: np.ndarray | None, n: int) -> np.ndarray:
    """The first n votes of a ballot: int8 -1, 0 or +1."""
    return np.where(bools(nonzero, n), np.where(bools(sign, n), -1, 1), 0).astype(np.int8)


def planes(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sign plane, nonzero plane) of an array of votes."""
    return plane(v < 0, False), plane(v != 0, True)


def pack(x: np.ndarray, mode: int) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """(sign plane, nonzero plane or None, zeros, NaNs); the last three for ABSTAIN only (else None, 0, 0)."""
    sign, zero, nan = classify(x)
    if mode == SIGNBIT:
        return plane(sign, False), None, 0, 0
    if mode == ONEBIT:
        return plane(sign & ~zero & ~nan, False), None, 0, 0
    return plane(sign, False), plane(~zero & ~nan, True), int(zero.sum()), int(nan.sum())


def to_float32(x: np.ndarray) -> np.ndarray:
    """float16, bfloat16, float32 or float64 as float32."""
    if x.dtype.name == "bfloat16":
        return (bits_of(x).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(np.float32)


def from_float32(x: np.ndarray, dtype: Any) -> np.ndarray:
    """float32 rounded to nearest even; a NaN stays one, with its sign."""
    if dtype.name != "bfloat16":
        with np.errstate(over="ignore", invalid="ignore"):
            return x.astype(dtype)
    bits = bits_of(x)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return np.where(classify(x)[2], (bits >> 16) | np.uint32(0x40), rounded).astype(np.uint16).view(dtype)


def interpolate(g: np.ndarray, m: np.ndarray, beta_vote: float, beta_state: float) -> tuple[np.ndarray, np.ndarray]:
    """(v, new m) in float32; each product and sum is rounded by itself."""

    def mix(beta: float, g: np.ndarray) -> np.ndarray:
        return np.float32(beta) * m + np.float32(1.0 - beta) * g

    g = to_float32(g)
    finite = (bits_of(g) & np.uint32(0x7F800000)) != np.uint32(0x7F800000)
    with np.errstate(all="ignore"):
        v, new = mix(beta_vote, g), mix(beta_state, g)
    return np.where(finite, v, g), np.where(finite, new, m)


def interpolate_pack(
    g: np.ndarray, m: np.ndarray, beta_vote: float, beta_state: float, mode: int, warm: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int, int]:
    """(new m, then what `pack` returns) for the interpolation, or for g itself."""
    v, new = interpolate(g, m, beta_vote, beta_state)
    return new, *pack(g if warm else v, mode)


def tally(
    signs: Sequence[np.ndarray], nonzeros: Sequence[np.ndarray | None], n: int, one_bit: bool = False
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(sign plane, nonzero plane or None, ties) of the majority of ballots over n coordinates, without padding."""
    total: Any = sum(votes(s, z, n).astype(np.int64) for s, z in zip(signs, nonzeros, strict=True))
    sign, nonzero = (np.packbits(x, bitorder="little") for x in (total < 0, total != 0))
    return sign, None if one_bit else nonzero, int((total == 0).sum())


def unpack(sign: np.ndarray, nonzero: np.ndarray | None, n: int, dtype: Any) -> np.ndarray:
    """Votes in a floating-point dtype."""
    exact = votes(sign, nonzero, n).astype(np.float32)
    return exact.astype(dtype) if dtype == np.float64 else from_float32(exact, dtype)


def apply(
    x: np.ndarray, sign: np.ndarray, nonzero: np.ndarray | None, lr: float, weight_decay: float = 0.0
) -> np.ndarray:
    """x - lr (vote + weight_decay x), computed in float32 (float64 for float64), each operation rounded by itself."""
    work = np.float64 if x.dtype == np.float64 else np.float32
    wide = x if work is np.float64 else to_float32(x)
    step = votes(sign, nonzero, len(x)).astype(work)
    with np.errstate(all="ignore"):
        if weight_decay != 0:
            step = step + work(weight_decay) * wide
        result = wide - work(lr) * step
    return result if work is np.float64 else from_float32(result, x.dtype)


def encode_counts(bits: int, sign: np.ndarray, nonzero: np.ndarray | None, n: int) -> np.ndarray:
    """Fields sign + 1, `bits` bits each, little endian, as uint8."""
    fields = votes(sign, nonzero, n).astype(np.int64) + 1
    each = (fields[:, None] >> np.arange(bits)) & 1
    return np.packbits(each.astype(bool).ravel(), bitorder="little")


def decode_counts(
    bits: int, fields: np.ndarray, voters: int, n: int, one_bit: bool = False
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """(sign plane, nonzero plane or None, ties) from n summed fields."""
    each = np.unpackbits(fields, count=n * bits, bitorder="little").reshape(n, bits).astype(np.int64)
    total = (each << np.arange(bits)).sum(axis=1) - voters
    sign, nonzero = planes(np.sign(total))
    return sign, None if one_bit else nonzero, int((total == 0).sum())


def agreement(
    sign_a: np.ndarray, nonzero_a: np.ndarray | None, sign_b: np.ndarray, nonzero_b: np.ndarray | None, n: int
) -> int:
    """The number of coordinates where both vote and vote alike."""
    return int((votes(sign_a, nonzero_a, n).astype(int) * votes(sign_b, nonzero_b, n) == 1).sum())
