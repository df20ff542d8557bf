"""Ballots and votes as NumPy arrays: packing signs, counting majorities, unpacking, summable fields.

A ballot is a sign plane (1 bit per coordinate, 1 = minus) and, only where something abstains, a nonzero plane (1 =
votes). Planes are uint8 arrays of whole 64-bit words, little endian in bytes and bits, like
`numpy.packbits(..., bitorder="little")`; the bits after the last coordinate have sign 0 and nonzero 1.

`native` has the same operations over raw memory, for adapters; `reference` says in plain NumPy what they compute.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import native
from .native import dtype_code, kernels, supported

__all__ = [
    "all_ones",
    "counts_bits",
    "decode_counts",
    "dtype_code",
    "encode_counts",
    "field_bytes",
    "get_field",
    "kernels",
    "pack_ballot",
    "pack_signs",
    "plane_bytes",
    "put_field",
    "supported",
    "tally",
    "unpack_signs",
    "unpack_votes",
]


def plane_bytes(n: int) -> int:
    """The length in bytes of a plane of n coordinates: 8 ceil(n / 64)."""
    return (n + 63) // 64 * 8


def _floats(x: Any) -> tuple[np.ndarray, str]:
    """x as a flat C-contiguous array in native byte order, and its dtype's name; TypeError if not floating point."""
    x = np.asarray(x)
    dtype_code(x.dtype)
    if not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    return np.ascontiguousarray(x).reshape(-1), x.dtype.name


def _plane(plane: Any, n: int, what: str) -> Any:
    """A plane checked to be uint8 and to hold n coordinates, made contiguous; None stays None."""
    if plane is None:
        return None
    plane = np.asarray(plane)
    if plane.dtype != np.uint8 or plane.ndim != 1:
        raise TypeError(f"{what} must be a one-dimensional uint8 array, not {plane.dtype} of shape {plane.shape}")
    if 8 * plane.size < n:
        raise ValueError(f"{what} of {plane.size} bytes is too short for {n} coordinates")
    return np.ascontiguousarray(plane)


def _check_count(n: int) -> None:
    if n < 0:
        raise ValueError(f"the number of coordinates cannot be negative, but is {n}")


def pack_signs(x: ArrayLike) -> np.ndarray:
    """The sign bits of an array: uint8 array of ceil(n / 8) bytes, for n = x.size.

    Bit i % 8 of byte i / 8 is 1 where x[i], in C order, has its IEEE sign bit set (so -0.0 packs as minus, and so does
    a NaN whose sign bit is set); unused bits are 0. x: any shape and strides, float16, bfloat16, float32 or float64;
    TypeError for anything else.
    """
    x, name = _floats(x)
    sign = np.empty(plane_bytes(x.size), np.uint8)
    kernels().pack(name, native.SIGNBIT, native.Segments([(x, x.size)]), sign)
    return sign[: (x.size + 7) // 8]


def unpack_signs(packed: np.ndarray, n: int) -> np.ndarray:
    """The first n packed signs: int8 array of +1 (bit 0) and -1 (bit 1).

    TypeError if `packed` is not a one-dimensional uint8 array, ValueError if it is too short or n is negative.
    """
    return unpack_votes(packed, None, n)


def pack_ballot(x: ArrayLike, abstain: bool = True) -> tuple[np.ndarray, np.ndarray | None, int, int]:
    """(sign plane, nonzero plane or None, zeros, NaNs) of an array of any shape.

    abstain=True: coordinates that are +-0 or NaN abstain, and are counted; the nonzero plane is None when there are
    none. abstain=False: every coordinate votes, plus unless x < 0; zeros and NaNs vote plus and are not counted.
    """
    x, name = _floats(x)
    segments = native.Segments([(x, x.size)])
    sign = np.empty(segments.plane_bytes, np.uint8)
    if not abstain:
        kernels().pack(name, native.ONEBIT, segments, sign)
        return sign, None, 0, 0
    nonzero = np.empty(segments.plane_bytes, np.uint8)
    zeros, nans = kernels().pack(name, native.ABSTAIN, segments, sign, nonzero)
    return sign, nonzero if zeros + nans else None, zeros, nans


def tally(
    signs: Sequence[np.ndarray], nonzeros: Sequence[np.ndarray | None] | None = None, one_bit: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """(sign plane, nonzero plane or None) of the majority of M >= 1 ballots.

    signs: sequence of M sign planes of one length. nonzeros: sequence of M nonzero planes, each may be None (that
    ballot abstains nowhere), or None for all of them. With P and N the numbers of voters for plus and minus, a
    coordinate's sign bit is N > P and its nonzero bit N != P; the nonzero plane is None if there are no
    ties. one_bit: ties are plus, and the nonzero plane is always None.
    """
    if len(signs) == 0:
        raise ValueError("a majority needs at least one ballot")
    size = np.asarray(signs[0]).size
    signs = [_plane(s, 0, "a sign plane") for s in signs]
    nonzeros = [None] * len(signs) if nonzeros is None else [_plane(z, 0, "a nonzero plane") for z in nonzeros]
    if any(p is not None and p.size != size for p in [*signs, *nonzeros]):
        raise ValueError("ballots differ in length")
    sign = np.empty(size, np.uint8)
    nonzero = None if one_bit else np.empty(size, np.uint8)
    ties = kernels().tally(signs, nonzeros, size, sign, nonzero, one_bit)
    return sign, nonzero if ties else None


def all_ones(plane: np.ndarray) -> bool:
    """Whether a nonzero plane, or a piece of one, abstains nowhere."""
    plane = _plane(plane, 0, "a nonzero plane")
    return kernels().all_ones(plane, plane.size)


def unpack_votes(sign: np.ndarray, nonzero: np.ndarray | None, n: int) -> np.ndarray:
    """The first n votes of a ballot or of a majority: int8 array of +1, -1, and 0 where the nonzero bit is 0."""
    _check_count(n)
    out = np.empty(n, np.int8)
    kernels().unpack_int8(_plane(sign, n, "a sign plane"), _plane(nonzero, n, "a nonzero plane"), n, out)
    return out


def counts_bits(voters: int) -> int:
    """The narrowest field, of 2, 4, 8 or 16 bits, that holds the sum of this many encoded votes (0 to 2 * voters)."""
    if not 1 <= voters <= 32767:
        raise ValueError(f"votes are counted in at most 16 bits, for 1 to 32767 voters, not {voters}")
    return next(bits for bits in (2, 4, 8, 16) if 2**bits - 1 >= 2 * voters)


def field_bytes(bits: int, n: int) -> int:
    """The length in bytes of n fields: ceil(n bits / 8)."""
    return (n * bits + 7) // 8


def encode_counts(
    bits: int, sign: np.ndarray, nonzero: np.ndarray | None, n: int, out: np.ndarray | None = None
) -> np.ndarray:
    """n votes as fields that can be summed: uint8 array of ceil(n bits / 8) bytes.

    Field i = vote + 1 (0 minus, 1 abstains, 2 plus) takes bits i * bits to (i + 1) * bits - 1 of the array, lowest bit
    of byte 0 first. out: a longer array to write into, for fields of one's own after the n (see `put_field`).
    """
    _check_count(n)
    out = np.zeros(field_bytes(bits, n), np.uint8) if out is None else out
    if out.dtype != np.uint8 or out.size < field_bytes(bits, n):
        raise ValueError(f"{n} fields of {bits} bits need a uint8 array of {field_bytes(bits, n)} bytes")
    kernels().encode_counts(bits, _plane(sign, n, "a sign plane"), _plane(nonzero, n, "a nonzero plane"), n, out)
    return out


def decode_counts(
    bits: int, fields: np.ndarray, voters: int, n: int, one_bit: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """(sign plane, nonzero plane or None) from n fields, each the sum over `voters` encoded ballots.

    A field above `voters` is plus, below minus, equal a tie. The nonzero plane is None if there are no ties.
    one_bit: ties are plus, and the nonzero plane is always None.
    """
    _check_count(n)
    fields = _plane(fields, n * bits, "an array of fields")
    if not 0 <= voters < 2**bits:
        raise ValueError(f"fields of {bits} bits cannot count {voters} voters")
    sign = np.empty(plane_bytes(n), np.uint8)
    nonzero = None if one_bit else np.empty(plane_bytes(n), np.uint8)
    ties = kernels().decode_counts(bits, fields, voters, n, sign, nonzero, one_bit)
    return sign, nonzero if ties else None


def put_field(fields: np.ndarray, bits: int, index: int, value: int) -> None:
    """Sets field `index` of an array of fields to `value`."""
    if not 0 <= value < 2**bits:
        raise ValueError(f"{value} does not fit in {bits} bits")
    if bits == 16:
        fields[2 * index : 2 * index + 2] = (value & 0xFF, value >> 8)
        return
    byte, shift = divmod(index * bits, 8)
    fields[byte] = (int(fields[byte]) & ~((2**bits - 1) << shift)) | value << shift


def get_field(fields: np.ndarray, bits: int, index: int) -> int:
    """The value of field `index` of an array of fields."""
    if bits == 16:
        return int(fields[2 * index]) | int(fields[2 * index + 1]) << 8
    byte, shift = divmod(index * bits, 8)
    return int(fields[byte]) >> shift & (2**bits - 1)
