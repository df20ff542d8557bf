"""The kernels of csrc/, loaded with ctypes: see csrc/kernels.h for what each computes.

    kernels = native.kernels()                         # the set for this processor
    segments = native.Segments([(x.ctypes.data, x.size)])
    sign, nonzero = planes of segments.plane_bytes bytes
    zeros, nans = kernels.pack("float32", native.ABSTAIN, segments, sign, nonzero)

Everywhere a *buffer* is an address (an int), None for "none", or a C-contiguous NumPy array. Addresses are trusted: it
is the caller who knows how long the memory behind them is. ctypes releases the GIL for the duration of each call.

The environment variable HOROVOD_SIGN_KERNELS=scalar|avx2|avx512|neon forces one set.
"""

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

Buffer = int | np.ndarray | None
Buffers = Sequence[Buffer] | np.ndarray

SIGNBIT, ABSTAIN, ONEBIT = 0, 1, 2
"""Modes of `Kernels.pack`: the sign bit alone; zeros and NaNs abstain; zeros and NaNs count as plus."""

DTYPES = {"float16": 0, "bfloat16": 1, "float32": 2, "float64": 3}
"""The kernels' numbers of the element types, by name."""

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

_ABI_VERSION = 2
_VARIABLE = "HOROVOD_SIGN_KERNELS"

_pointer, _int, _long = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_SIGNATURES: dict[str, tuple] = {
    "pack": (None, _int, _int, _int, _long, _pointer, _pointer, _pointer, _pointer, _pointer, _pointer),
    "interpolate_pack": (None, _int, _int, _int, _long, *[_pointer] * 5, _int, _pointer, _pointer, _pointer),
    "tally": (_long, _int, _long, _pointer, _pointer, _long, _pointer, _pointer),
    "unpack_int8": (None, _int, _pointer, _pointer, _long, _pointer),
    "unpack": (None, _int, _int, _long, *[_pointer] * 5),
    "apply": (None, _int, _int, _long, *[_pointer] * 7),
    "encode_counts": (None, _int, _int, _pointer, _pointer, _long, _pointer),
    "decode_counts": (_long, _int, _int, _pointer, _long, _long, _pointer, _pointer),
    "all_ones": (_int, _pointer, _long),
    "agreement": (_long, _int, _pointer, _pointer, _pointer, _pointer, _long),
    "read_loop": (ctypes.c_uint64, _pointer, _long),
    "read_write_loop": (None, _pointer, _long),
}


class _Table(ctypes.Structure):
    """struct HsKernels: a name, then one function pointer for each signature, in this order."""

    _fields_ = [("name", ctypes.c_char_p), *[(name, _pointer) for name in _SIGNATURES]]


def _not_built(name: str, here: str) -> str:
    """What to do about kernels that are not there: often Python has taken a checkout for the installed package."""
    for entry in sys.path:
        folder = os.path.join(os.path.abspath(entry), "horovod_sign", "algebra")
        if folder != here and os.path.exists(os.path.join(folder, name)):
            return (
                f"Python takes horovod_sign from the checkout {here.removesuffix('/horovod_sign/algebra')}, since it "
                f"comes first in sys.path (with `python -m` that is the current folder), and its kernels are not "
                f"built; the package installed in {entry} has them: run from another folder, or `pip install -e .` here"
            )
    return (
        f"horovod_sign's kernels are not built ({name} is missing in {here}): run `pip install -e .` in its checkout, "
        "which needs a C++17 compiler."
    )


def _load() -> ctypes.CDLL:
    """The library next to this file."""
    name = "_kernels.so"
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), name)
    if not os.path.exists(path):
        raise ImportError(_not_built(name, os.path.dirname(path)))
    library = ctypes.CDLL(path)
    library.hs_supported.restype = ctypes.c_char_p
    library.hs_kernels.argtypes = [ctypes.c_char_p]
    library.hs_kernels.restype = ctypes.POINTER(_Table)
    if library.hs_abi_version() != _ABI_VERSION:
        raise ImportError("horovod_sign's kernels were built from other sources: run `pip install -e .` again.")
    return library


_library = _load()


def supported() -> tuple[str, ...]:
    """Names of the kernel sets that this processor runs, best first."""
    return tuple(_library.hs_supported().decode().split())


def address(buffer: Buffer) -> int:
    """The address of a buffer: an int as it is, 0 for None, or where a C-contiguous NumPy array's data starts."""
    if type(buffer) is int:
        return buffer
    if buffer is None:
        return 0
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise ValueError("the kernels need C-contiguous arrays")
        return buffer.__array_interface__["data"][0]
    return int(buffer)


def _addresses(buffers: Buffers) -> np.ndarray:
    """A uint64 array of addresses, from one or from a sequence of buffers."""
    if isinstance(buffers, np.ndarray) and buffers.dtype == np.uint64:
        return np.ascontiguousarray(buffers)
    return np.array([address(b) for b in buffers], np.uint64)


class Segments:
    """Where k tensors are, and where their signs go in a plane.

    pointers      uint64 array: address of each tensor's first element
    lengths       int64 array: number of elements of each
    offsets       int64 array: byte in the plane where each one's words start, a multiple of 8
    plane_bytes   length of the plane
    coordinates   total number of elements, padding not counted

    Tensor i fills ceil(lengths[i] / 64) words of 8 bytes. Unless `offsets` says otherwise, tensors follow each other.
    """

    def __init__(self, tensors: Iterable[tuple[Buffer, int]], offsets: Sequence[int] | None = None) -> None:
        """tensors: a sequence of (address or array, number of elements)."""
        tensors = list(tensors)
        lengths = [int(n) for _, n in tensors]
        if min(lengths, default=0) < 0:
            raise ValueError("a tensor cannot have a negative number of elements")
        filled = [(n + 63) // 64 * 8 for n in lengths]
        if offsets is None:
            offsets = [0, *itertools.accumulate(filled)][: len(filled)]
        if len(offsets) != len(lengths) or any(offset < 0 or offset % 8 for offset in offsets):
            raise ValueError("offsets must be one for each tensor, and multiples of 8 bytes")
        self.lengths, self.offsets = np.array(lengths, np.int64), np.array(offsets, np.int64)
        self.plane_bytes = int(max((start + size for start, size in zip(offsets, filled, strict=True)), default=0))
        self.coordinates = sum(lengths)
        self.k = len(tensors)
        self._lengths, self._offsets = address(self.lengths), address(self.offsets)
        self._point([p for p, _ in tensors])

    def _point(self, pointers: Buffers) -> None:
        self.pointers = _addresses(pointers)
        if self.pointers.shape != (self.k,):
            raise ValueError(f"{self.k} tensors were laid out, but {len(self.pointers)} addresses were given")
        self._pointers = address(self.pointers)

    def with_pointers(self, pointers: Buffers) -> "Segments":
        """The same layout over other memory: one address (or array) for each tensor."""
        other = object.__new__(Segments)
        for name in ("lengths", "offsets", "plane_bytes", "coordinates", "k", "_lengths", "_offsets"):
            setattr(other, name, getattr(self, name))
        other._point(pointers)
        return other

    def subset(self, indices: Any, pointers: Buffers) -> "Segments":
        """The layout of some of the tensors, in the same plane, over other memory: one address for each of them."""
        other = object.__new__(Segments)
        other.lengths, other.offsets = self.lengths[indices], self.offsets[indices]
        other.plane_bytes, other.coordinates, other.k = self.plane_bytes, int(other.lengths.sum()), len(indices)
        other._lengths, other._offsets = address(other.lengths), address(other.offsets)
        other._point(pointers)
        return other


def dtype_code(dtype: Any) -> int:
    """The kernels' number of an element type: its name, its NumPy dtype, or the number itself. TypeError for others."""
    if type(dtype) is int:
        return dtype
    name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
    if name not in DTYPES:
        raise TypeError(f"votes are taken on float16, bfloat16, float32 and float64 numbers, not on {name}")
    return DTYPES[name]


def _check_bits(bits: int) -> None:
    if bits not in (2, 4, 8, 16):
        raise ValueError(f"fields are 2, 4, 8 or 16 bits wide, not {bits}")


def _per_segment(values: Any, k: int) -> np.ndarray:
    """k doubles, from one number for all segments or one for each."""
    array = np.asarray(values, np.float64)
    if array.ndim == 0:
        return np.full(k, array)
    if array.shape != (k,):
        raise ValueError(f"{k} segments need one value or {k}, not {array.size}")
    return np.ascontiguousarray(array)


def given_threads() -> int:
    """How many threads this process was given: OMP_NUM_THREADS, or the cores that it may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if given.isdecimal() and int(given) > 0:
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Kernels:
    """One kernel set, by name. `dtype` is a name such as "bfloat16", a NumPy dtype, or a number of DTYPES.

    Attributes:
        threads: how many threads work on large tensors; may be set at any time, and no result depends on it.
    """

    if TYPE_CHECKING:  # the kernels, which __init__ looks up

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, name: str) -> None:
        table = _library.hs_kernels(name.encode())
        if not table:
            raise ValueError(f"no kernel set {name!r} on this processor; available: {', '.join(supported())}")
        self.name, self.threads = name, given_threads()
        for function, (restype, *argtypes) in _SIGNATURES.items():
            pointer = getattr(table.contents, function)
            setattr(self, "_" + function, ctypes.CFUNCTYPE(restype, *argtypes)(pointer))

    def __repr__(self) -> str:
        return f"Kernels({self.name!r})"

    def pack(self, dtype: Any, mode: int, segments: Segments, sign: Buffer, nonzero: Buffer = None) -> tuple[int, int]:
        """Writes the segments' sign plane (and nonzero plane in mode ABSTAIN). Returns (zeros, NaNs) of ABSTAIN."""
        counts = (_long * 2)()
        if mode == ABSTAIN and nonzero is None:
            raise ValueError("mode ABSTAIN needs a nonzero plane")
        self._pack(
            self.threads,
            dtype_code(dtype),
            mode,
            segments.k,
            segments._pointers,
            segments._lengths,
            segments._offsets,
            address(sign),
            address(nonzero),
            ctypes.addressof(counts),
        )
        return counts[0], counts[1]

    def interpolate_pack(
        self,
        dtype: Any,
        mode: int,
        segments: Segments,
        momenta: Buffers,
        beta_vote: float,
        beta_state: float,
        sign: Buffer,
        nonzero: Buffer = None,
        warm: bool = False,
    ) -> tuple[int, int]:
        """Updates float32 momenta (one buffer per segment) and packs the interpolation, or the gradients themselves.

        v = beta_vote m + (1 - beta_vote) g and m <- beta_state m + (1 - beta_state) g in float32, each operation
        rounded by itself; an infinite or NaN g has v = g and leaves m alone. Returns (zeros, NaNs) as `pack` does.
        """
        if mode == ABSTAIN and nonzero is None:
            raise ValueError("mode ABSTAIN needs a nonzero plane")
        counts = (_long * 2)()
        momenta = _addresses(momenta)
        if momenta.shape != (segments.k,):
            raise ValueError(f"{segments.k} segments need as many momenta, not {len(momenta)}")
        self._interpolate_pack(
            self.threads,
            dtype_code(dtype),
            mode,
            segments.k,
            segments._pointers,
            address(momenta),
            segments._lengths,
            segments._offsets,
            ctypes.addressof(_coefficients(float(beta_vote), float(beta_state))),
            bool(warm),
            address(sign),
            address(nonzero),
            ctypes.addressof(counts),
        )
        return counts[0], counts[1]

    def tally(
        self,
        signs: Buffers,
        nonzeros: Buffers | None,
        nbytes: int,
        out_sign: Buffer,
        out_nonzero: Buffer = None,
        one_bit: bool = False,
    ) -> int:
        """The majority of ballots over nbytes bytes; returns the number of coordinates with as many pluses as minuses.

        signs, nonzeros: a sequence of buffers, or a uint64 array of addresses (0: abstains nowhere). nonzeros may be
        None when no ballot has one. Pad bits are counted like all others. With one_bit, out_nonzero is not written.
        """
        signs = _addresses(signs)
        m = len(signs)
        if m == 0:
            raise ValueError("a majority needs at least one ballot")
        nonzeros = np.zeros(m, np.uint64) if nonzeros is None else _addresses(nonzeros)
        if len(nonzeros) != m:
            raise ValueError(f"{m} sign planes but {len(nonzeros)} nonzero planes")
        if out_nonzero is None and not one_bit:
            raise ValueError("a nonzero plane to write is needed unless one_bit is set")
        out_nonzero = 0 if one_bit else address(out_nonzero)
        return self._tally(self.threads, m, address(signs), address(nonzeros), nbytes, address(out_sign), out_nonzero)

    def unpack_int8(self, sign: Buffer, nonzero: Buffer, n: int, out: Buffer) -> None:
        """Writes n votes as int8 -1, 0, +1."""
        self._unpack_int8(self.threads, address(sign), address(nonzero), n, address(out))

    def unpack(self, dtype: Any, segments: Segments, sign: Buffer, nonzero: Buffer = None) -> None:
        """Writes the votes -1, 0, +1 into the segments."""
        self._unpack(
            self.threads,
            dtype_code(dtype),
            segments.k,
            segments._pointers,
            segments._lengths,
            segments._offsets,
            address(sign),
            address(nonzero),
        )

    def apply(
        self, dtype: Any, segments: Segments, sign: Buffer, nonzero: Buffer, lr: Any, weight_decay: Any = 0.0
    ) -> None:
        """x <- x - lr (vote + weight_decay x) for all segments; lr and weight_decay: one number, or one per segment."""
        lr, weight_decay = _per_segment(lr, segments.k), _per_segment(weight_decay, segments.k)
        self._apply(
            self.threads,
            dtype_code(dtype),
            segments.k,
            segments._pointers,
            segments._lengths,
            segments._offsets,
            address(sign),
            address(nonzero),
            address(lr),
            address(weight_decay),
        )

    def encode_counts(self, bits: int, sign: Buffer, nonzero: Buffer, n: int, fields: Buffer) -> None:
        """Writes n votes as fields of `bits` bits (0 minus, 1 abstains, 2 plus): ceil(n bits / 8) bytes."""
        _check_bits(bits)
        self._encode_counts(self.threads, bits, address(sign), address(nonzero), n, address(fields))

    def decode_counts(
        self,
        bits: int,
        fields: Buffer,
        voters: int,
        n: int,
        out_sign: Buffer,
        out_nonzero: Buffer = None,
        one_bit: bool = False,
    ) -> int:
        """Planes (whole words) of the majority from n summed fields; returns the number of ties."""
        _check_bits(bits)
        if out_nonzero is None and not one_bit:
            raise ValueError("a nonzero plane to write is needed unless one_bit is set")
        out_nonzero = 0 if one_bit else address(out_nonzero)
        return self._decode_counts(self.threads, bits, address(fields), voters, n, address(out_sign), out_nonzero)

    def all_ones(self, plane: Buffer, nbytes: int) -> bool:
        """Whether a nonzero plane abstains nowhere in its first nbytes bytes."""
        return bool(self._all_ones(address(plane), nbytes))

    def agreement(self, sign_a: Buffer, nonzero_a: Buffer, sign_b: Buffer, nonzero_b: Buffer, n: int) -> int:
        """Of the first n coordinates, the number where both ballots vote and vote alike."""
        return self._agreement(
            self.threads, address(sign_a), address(nonzero_a), address(sign_b), address(nonzero_b), n
        )

    def read_loop(self, data: Buffer, nbytes: int) -> int:
        """Reads memory as fast as this set can; returns a checksum."""
        return self._read_loop(address(data), nbytes)

    def read_write_loop(self, data: Buffer, nbytes: int) -> None:
        """Inverts every bit of some memory, as fast as this set can."""
        self._read_write_loop(address(data), nbytes)


@functools.lru_cache(maxsize=64)
def _coefficients(beta_vote: float, beta_state: float) -> ctypes.Array:
    """The floats {beta_vote, 1 - beta_vote, beta_state, 1 - beta_state}, each rounded once, from a double."""
    return (ctypes.c_float * 4)(beta_vote, 1.0 - beta_vote, beta_state, 1.0 - beta_state)


def _choose() -> Kernels:
    """The set that HOROVOD_SIGN_KERNELS names, or the best one."""
    forced = os.environ.get(_VARIABLE, "")
    if forced and forced not in supported():
        raise ImportError(
            f"{_VARIABLE}={forced!r} names no kernel set that this processor runs; available: {', '.join(supported())}"
        )
    return Kernels(forced or supported()[0])


_chosen = _choose()


def kernels() -> Kernels:
    """The kernel set in use: the best one, unless HOROVOD_SIGN_KERNELS named another when this module was imported."""
    return _chosen
