"""The kernels for GPUs, in Triton: each reads every gradient, momentum and parameter of a batch once, in one launch.

Tensors of a batch lie anywhere in memory. A launch finds them by two tables: `tiles`, which cuts all of them into
pieces of at most TILE coordinates, and `addresses`. Signs, zeros and NaN are told apart by integers, and a product is
rounded before it is added (no fused multiply-add), so that the results are those of csrc/, bit for bit.
"""

import torch
import triton
import triton.language as tl

from horovod_sign.tensors.devices.batches import TILE, Batch
from horovod_sign.tensors.devices.resident import WORDS

_FEW, _MANY = 4, 8  # warps a program, by measurement: to pack takes much in each thread, to update much of memory
_FEWEST = 2  # of 16-bit numbers, so that a thread packs as many bytes as of others; not measured
_TALLIED = 64  # words of a chunk that a program tallies, a lane for each bit of them

_BFLOAT16 = tl.constexpr("bfloat16")
_FLOAT16 = tl.constexpr("float16")
_FLOAT64 = tl.constexpr("float64")


@triton.jit
def _piece(tiles, addresses, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """This program's tile: (address of its first coordinate, how many are left, its word, its number)."""
    record = tiles + tl.program_id(0).to(tl.int64) * 5
    tensor, start = tl.load(record), tl.load(record + 1)
    address = tl.load(addresses + tensor) + start * WIDTH
    return address, tl.load(record + 3), tl.load(record + 2), tl.load(record + 4)


@triton.jit
def _coordinates(COLUMNS: tl.constexpr, TILE: tl.constexpr):
    """The tile's coordinates, so many in a row."""
    return tl.arange(0, TILE // COLUMNS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


@triton.jit
def _at(address, coordinates, ELEMENT: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointers to elements of a tensor; with ALIGNED its address is a multiple of 16, and loads are as wide."""
    start = address.to(tl.pointer_type(ELEMENT))
    if ALIGNED:
        start = tl.multiple_of(start, 16)
    return start + coordinates


@triton.jit
def _load(place, coordinates, left, other, TILE: tl.constexpr):
    """The elements of a tile, and `other` after the last. A whole tile has no mask, which would narrow its loads."""
    if left >= TILE:  # noqa: SIM108 (Triton has no such expression)
        x = tl.load(place)
    else:
        x = tl.load(place, mask=coordinates < left, other=other)
    return x


@triton.jit
def _store(place, x, coordinates, left, TILE: tl.constexpr):
    """Writes the elements of a tile."""
    if left >= TILE:
        tl.store(place, x)
    else:
        tl.store(place, x, mask=coordinates < left)


@triton.jit
def _widened(bits, WIDTH: tl.constexpr):
    """16 bits as the upper half of 32, which the processor computes with; others as they are."""
    if WIDTH == 2:
        bits = bits.to(tl.int32) << 16
    return bits


@triton.jit
def _single(bits, DTYPE: tl.constexpr):
    """The float32 values of elements, from their bits, widened."""
    if DTYPE == _FLOAT16:
        return (bits >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    elif DTYPE == _FLOAT64:
        return bits.to(tl.float64, bitcast=True).to(tl.float32)
    else:
        return bits.to(tl.float32, bitcast=True)


@triton.jit
def _brain(x):
    """The bits of bfloat16, rounded to nearest even; a NaN keeps its sign and upper payload and becomes quiet."""
    bits = x.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, rounded, (bits >> 16) | 0x40).to(tl.int16)


@triton.jit
def _put_ballot(bits, left, word, number, sign, nonzero, counts, INFINITY: tl.constexpr, MAGNITUDE: tl.constexpr,
                UNSIGNED: tl.constexpr, ONE_BIT: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Writes the planes of what is voted on, given its bits as signed integers, and counts what abstains.

    What is after the last coordinate must be a number above zero: its bits are then those of padding. A row is 16
    coordinates, whose bits of both planes are added up at once, as halves of one word.
    """
    weights = 1 << tl.arange(0, 16)[None, :]
    rows = tl.arange(0, TILE // 16)
    inside = rows * 16 < (left + 63) // 64 * 64
    if ONE_BIT:
        # Of all patterns, those from the least number below zero to -infinity.
        minus = (bits.to(UNSIGNED, bitcast=True) + MAGNITUDE) < INFINITY
        halves = tl.sum(tl.where(minus, weights, 0), axis=1)
        tl.store(sign + word * 2 + rows, halves.to(tl.int16), mask=inside)
    else:
        magnitude = (bits & MAGNITUDE).to(UNSIGNED, bitcast=True)
        idle = magnitude - 1 >= INFINITY  # 0 - 1 is the greatest
        halves = tl.sum(tl.where(bits < 0, weights, 0) + tl.where(idle, weights << 16, 0), axis=1)
        tl.store(sign + word * 2 + rows, halves.to(tl.int16), mask=inside)
        halves = halves >> 16
        tl.store(nonzero + word * 2 + rows, (~halves).to(tl.int16), mask=inside)
        if tl.max(halves & 0xFFFF, axis=0) != 0:
            zeros_nans = (magnitude == 0).to(tl.int32) + ((magnitude > INFINITY).to(tl.int32) << 16)
            zeros_nans = tl.sum(tl.sum(zeros_nans, axis=1), axis=0)  # in one sum: a tile has fewer coordinates
            tl.store(counts + number * 2, zeros_nans & 0xFFFF)
            tl.store(counts + number * 2 + 1, zeros_nans >> 16)


@triton.jit
def _put_ballot_of_pairs(address, word, number, sign, nonzero, counts, INFINITY: tl.constexpr, ONE_BIT: tl.constexpr,
                         TILE: tl.constexpr):  # fmt: skip
    """As `_put_ballot`, of a whole tile of 16-bit numbers, two of them in each word that is loaded and computed with.

    Of each half, bit 15 says whether it votes: its magnitude is above 0, and not above infinity. Neither sum carries
    into the upper half. Of a row of four pairs, bit 2 k is then the k-th one's lower half, and bit 16 + 2 k the upper.
    """
    pairs, rows = tl.arange(0, 4)[None, :], tl.arange(0, TILE // 8)
    halves = tl.load(_at(address, rows[:, None] * 4 + pairs, tl.int32, True))
    magnitude = halves & 0x7FFF7FFF
    above_zero, nan = magnitude + 0x7FFF7FFF, magnitude + (0x7FFF - (INFINITY >> 16)) * 0x10001
    votes, shift, place = above_zero & ~nan, 15 - 2 * pairs, 0x10001 << (2 * pairs)
    minus = halves
    if ONE_BIT:
        minus = halves & votes
    bits = tl.sum((minus >> shift) & place, axis=1)
    tl.store(sign.to(tl.pointer_type(tl.int8)) + word * 4 + rows, (bits | (bits >> 15)).to(tl.int8))
    if not ONE_BIT:
        bits = tl.sum((votes >> shift) & place, axis=1)
        tl.store(nonzero.to(tl.pointer_type(tl.int8)) + word * 4 + rows, (bits | (bits >> 15)).to(tl.int8))
        if tl.min(bits, axis=0) != 0x00550055:
            zeros = tl.sum(tl.sum((~above_zero >> 15) & 0x10001, axis=1), axis=0)
            nans = tl.sum(tl.sum((nan >> 15) & 0x10001, axis=1), axis=0)
            tl.store(counts + number * 2, (zeros & 0xFFFF) + (zeros >> 16))
            tl.store(counts + number * 2 + 1, (nans & 0xFFFF) + (nans >> 16))


@triton.jit
def pack(tiles, addresses, sign, nonzero, counts, INTEGER: tl.constexpr, UNSIGNED: tl.constexpr, WIDTH: tl.constexpr,
         INFINITY: tl.constexpr, MAGNITUDE: tl.constexpr, ONE_BIT: tl.constexpr, ALIGNED: tl.constexpr,
         TILE: tl.constexpr):  # fmt: skip
    """The ballot of gradients."""
    address, left, word, number = _piece(tiles, addresses, WIDTH, TILE)
    if WIDTH == 2 and ALIGNED and left >= TILE:
        _put_ballot_of_pairs(address, word, number, sign, nonzero, counts, INFINITY, ONE_BIT, TILE)
    else:
        coordinates = _coordinates(16, TILE)
        bits = _load(_at(address, coordinates, INTEGER, ALIGNED), coordinates, left, 1, TILE)
        bits = _widened(bits, WIDTH)
        _put_ballot(bits, left, word, number, sign, nonzero, counts, INFINITY, MAGNITUDE, UNSIGNED, ONE_BIT, TILE)


@triton.jit
def interpolate_pack(tiles, addresses, momenta, sign, nonzero, counts, beta_vote, rest_vote, beta_state, rest_state,
                     DTYPE: tl.constexpr, INTEGER: tl.constexpr, UNSIGNED: tl.constexpr, WIDTH: tl.constexpr,
                     INFINITY: tl.constexpr, MAGNITUDE: tl.constexpr, SAME: tl.constexpr, WARM: tl.constexpr,
                     ONE_BIT: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """v = beta_vote m + rest_vote g;  m <- beta_state m + rest_state g;  the ballot of v, or while WARM of g.

    Where g is not finite, v = g and m stays. SAME: both betas are one, so that v is the new m.
    """
    address, left, word, number = _piece(tiles, addresses, WIDTH, TILE)
    momentum, _, _, _ = _piece(tiles, momenta, 4, TILE)
    coordinates = _coordinates(16, TILE)
    bits = _load(_at(address, coordinates, INTEGER, ALIGNED), coordinates, left, 1, TILE)
    bits = _widened(bits, WIDTH)
    place = _at(momentum, coordinates, tl.float32, ALIGNED)
    m, g = _load(place, coordinates, left, 0.0, TILE), _single(bits, DTYPE)
    finite = (g.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000
    kept = m * beta_state + g * rest_state
    _store(place, tl.where(finite, kept, m), coordinates, left, TILE)
    if WARM:
        _put_ballot(bits, left, word, number, sign, nonzero, counts, INFINITY, MAGNITUDE, UNSIGNED, ONE_BIT, TILE)
    else:
        if not SAME:
            kept = m * beta_vote + g * rest_vote
        voted = tl.where(finite, kept, g).to(tl.int32, bitcast=True)
        if left < TILE:
            voted = tl.where(coordinates < left, voted, 1)
        _put_ballot(voted, left, word, number, sign, nonzero, counts, 0x7F800000, 0x7FFFFFFF, tl.uint32, ONE_BIT, TILE)


@triton.jit
def _votes(sign, nonzero, word, left, TIES: tl.constexpr, TILE: tl.constexpr):
    """The votes of a tile as float32, -1, 0 or +1, put together from bits."""
    rows, shift = tl.arange(0, TILE // 32), 31 - tl.arange(0, 32)[None, :]
    inside = rows * 32 < left
    minus = tl.load(sign + word + rows, mask=inside, other=0)[:, None] << shift
    votes = (minus & -0x80000000) | 0x3F800000
    if TIES:
        votes = votes & ((tl.load(nonzero + word + rows, mask=inside, other=0)[:, None] << shift) >> 31)
    return votes.to(tl.float32, bitcast=True)


@triton.jit
def _put(address, coordinates, left, x, DTYPE: tl.constexpr, INTEGER: tl.constexpr, ALIGNED: tl.constexpr,
         TILE: tl.constexpr):  # fmt: skip
    """Writes float32 or float64 values to elements, each rounded once."""
    place = _at(address, coordinates, INTEGER, ALIGNED)
    if DTYPE == _BFLOAT16:
        bits = _brain(x)
    elif DTYPE == _FLOAT16:
        bits = x.to(tl.float16).to(tl.int16, bitcast=True)
    else:
        bits = x.to(INTEGER, bitcast=True)
    _store(place, bits, coordinates, left, TILE)


@triton.jit
def unpack(tiles, addresses, sign, nonzero, DTYPE: tl.constexpr, INTEGER: tl.constexpr, WIDTH: tl.constexpr,
           TIES: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """Writes votes as numbers."""
    address, left, word, _ = _piece(tiles, addresses, WIDTH, TILE)
    votes = _votes(sign, nonzero, word, left, TIES, TILE)
    if DTYPE == _FLOAT64:
        votes = votes.to(tl.float64)
    _put(address, _coordinates(32, TILE), left, votes, DTYPE, INTEGER, ALIGNED, TILE)


@triton.jit
def apply(tiles, addresses, sign, nonzero, scalars, DTYPE: tl.constexpr, INTEGER: tl.constexpr, WIDTH: tl.constexpr,
          TIES: tl.constexpr, DECAY: tl.constexpr, ALIGNED: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    """x <- x - lr (vote + weight_decay x), with (lr, weight_decay) in `scalars`."""
    address, left, word, _ = _piece(tiles, addresses, WIDTH, TILE)
    coordinates = _coordinates(32, TILE)
    step = _votes(sign, nonzero, word, left, TIES, TILE)
    bits = _load(_at(address, coordinates, INTEGER, ALIGNED), coordinates, left, 0, TILE)
    lr, decay = tl.load(scalars), tl.load(scalars + 1)
    if DTYPE == _FLOAT64:
        x, step = bits.to(tl.float64, bitcast=True), step.to(tl.float64)
    else:
        x, lr, decay = _single(_widened(bits, WIDTH), DTYPE), lr.to(tl.float32), decay.to(tl.float32)
    if DECAY:
        step = x * decay + step
    _put(address, coordinates, left, x - step * lr, DTYPE, INTEGER, ALIGNED, TILE)


@triton.jit
def tally(rows, decided, words, length, MESSAGES, TIES: tl.constexpr, BLOCK: tl.constexpr):
    """The majority of ballots of so many words of 32 bits; each begins `length` words after the one before."""
    at, lanes = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 32)[None, :]
    inside = at < words
    total = tl.zeros((BLOCK, 32), tl.int32)
    for _ in range(MESSAGES):
        votes = 1 - 2 * ((tl.load(rows + at, mask=inside, other=0)[:, None] >> lanes) & 1)
        if TIES:
            votes = votes * ((tl.load(rows + words + at, mask=inside, other=0)[:, None] >> lanes) & 1)
        else:
            votes = votes & tl.load(rows + words)  # 0 of a rank that does not vote, else all ones
        total += votes
        rows += length
    tl.store(decided + at, tl.sum(tl.where(total < 0, 1 << lanes, 0), axis=1), mask=inside)
    if TIES:
        tl.store(decided + words + at, tl.sum(tl.where(total != 0, 1 << lanes, 0), axis=1), mask=inside)


@triton.jit
def _population(x):
    """How many bits of all words are set."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return tl.sum((x + (x >> 16)) & 0x3F, axis=0)


@triton.jit
def compare(sign, nonzero, decided_sign, decided_nonzero, found, words, ABSTAINS: tl.constexpr, TIES: tl.constexpr,
            BLOCK: tl.constexpr):  # fmt: skip
    """Counts where neither a ballot nor a vote is 0, where then they are the same, and where the vote is 0."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < words
    both, tied = tl.where(inside, -1, 0), tl.zeros((BLOCK,), tl.int32)
    alike = ~(tl.load(sign + at, mask=inside, other=0) ^ tl.load(decided_sign + at, mask=inside, other=0))
    if ABSTAINS:
        both = both & tl.load(nonzero + at, mask=inside, other=0)
    if TIES:
        votes = tl.load(decided_nonzero + at, mask=inside, other=-1)
        both, tied = both & votes, ~votes
    row = found + tl.program_id(0) * 3
    tl.store(row, _population(both))
    tl.store(row + 1, _population(alike & both))
    tl.store(row + 2, _population(tied))


# Of 16 bits in the upper half of 32, infinity lies as in 32.
_ELEMENTS = {
    "float16": {
        "INTEGER": tl.int16,
        "UNSIGNED": tl.uint32,
        "WIDTH": 2,
        "INFINITY": 0x7C000000,
        "MAGNITUDE": 0x7FFFFFFF,
    },
    "bfloat16": {
        "INTEGER": tl.int16,
        "UNSIGNED": tl.uint32,
        "WIDTH": 2,
        "INFINITY": 0x7F800000,
        "MAGNITUDE": 0x7FFFFFFF,
    },
    "float32": {
        "INTEGER": tl.int32,
        "UNSIGNED": tl.uint32,
        "WIDTH": 4,
        "INFINITY": 0x7F800000,
        "MAGNITUDE": 0x7FFFFFFF,
    },
    "float64": {
        "INTEGER": tl.int64,
        "UNSIGNED": tl.uint64,
        "WIDTH": 8,
        "INFINITY": 0x7FF0000000000000,
        "MAGNITUDE": 0x7FFFFFFFFFFFFFFF,
    },
}


class TritonKernels:
    """One launch for each call. See `devices.Kernels`."""

    def pack(self, batch: Batch, gradients, out, one_bit: bool):
        """As in `devices.Kernels`."""
        at = batch.addresses(gradients)
        options = {"ONE_BIT": one_bit, "ALIGNED": at.aligned, **_ELEMENTS[batch.dtype]}
        self._launch(pack, batch, at.table, *_halves(out), out.counts, **options)

    def interpolate_pack(self, batch: Batch, gradients, momenta, betas, warm: bool, out, one_bit: bool):
        """As in `devices.Kernels`."""
        at, m = batch.addresses(gradients), batch.addresses(momenta)
        vote, state = betas
        self._launch(
            interpolate_pack,
            batch,
            at.table,
            m.table,
            *_halves(out),
            out.counts,
            vote,
            1.0 - vote,
            state,
            1.0 - state,
            DTYPE=batch.dtype,
            SAME=vote == state,
            WARM=warm,
            ONE_BIT=one_bit,
            ALIGNED=at.aligned and m.aligned,
            **_ELEMENTS[batch.dtype],
        )

    def unpack(self, batch: Batch, outputs, decided):
        """As in `devices.Kernels`."""
        self._write(unpack, batch, outputs, decided)

    def apply(self, batch: Batch, parameters, decided, scalars, decay: bool):
        """As in `devices.Kernels`."""
        self._write(apply, batch, parameters, decided, scalars, DECAY=decay)

    def tally(self, messages, decided):
        """As in `devices.Kernels`."""
        words = messages.chunk // 4
        rows, into = messages.rows.view(torch.int32), decided.rows.view(torch.int32)
        options = {"TIES": messages.ties, "BLOCK": _TALLIED, "num_warps": _FEW}
        self._start(tally, -(-words // _TALLIED), rows, into, words, rows.shape[1], len(rows), **options)

    def compare(self, ballot, decided, found):
        """As in `devices.Kernels`."""
        sign, nonzero = (plane.view(torch.int32) for plane in (ballot.planes[0], ballot.planes[-1]))
        voted, ties = (plane.view(torch.int32) for plane in (decided.planes[0], decided.planes[-1]))
        options = {"ABSTAINS": ballot.nonzero is not None, "TIES": decided.nonzero is not None, "BLOCK": WORDS}
        self._start(compare, len(found), sign, nonzero, voted, ties, found, len(sign), num_warps=_FEW, **options)

    def _write(self, kernel, batch: Batch, tensors, decided, *scalars, **options):
        at = batch.addresses(tensors)
        elements = {k: _ELEMENTS[batch.dtype][k] for k in ("INTEGER", "WIDTH")}
        planes = [plane.view(torch.int32) for plane in decided.planes]
        options |= {"DTYPE": batch.dtype, "TIES": len(planes) > 1, "ALIGNED": at.aligned, **elements}
        self._launch(kernel, batch, at.table, planes[0], planes[-1], *scalars, **options)

    @staticmethod
    def _launch(kernel, batch: Batch, *arguments, **options):
        # Fused, a product would not be rounded before it is added to.
        options |= {"num_warps": warps_of(kernel, options["WIDTH"]), "enable_fp_fusion": False, "TILE": TILE}
        TritonKernels._start(kernel, batch.tile_count, batch.tiles, *arguments, **options)

    @staticmethod
    def _start(kernel, programs: int, *arguments, **options):
        kernel[(programs,)](*arguments, **options)


def warps_of(kernel, width: int) -> int:
    """How many warps run a program of a kernel on numbers of so many bytes."""
    if kernel is not pack:
        return _MANY
    return _FEW if width > 2 else _FEWEST


def _halves(out) -> list[torch.Tensor]:
    """Both planes as words of 16 bits."""
    return [plane.view(torch.int16) for plane in out.planes]
