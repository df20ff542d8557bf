"""How fast the kernels are, next to plain loops over the same memory.

    python -m benchmarks kernels [--coordinates N] [--rounds N] [--set avx2] [--threads N] [--only NAME]

Each kernel is timed in turn with its *limit*: loops that only read, or read and write back, the bytes that the kernel
must move. `ratio` is the limit's time divided by the kernel's, both measured next to each other: 1.00 means that the
kernel is as fast as memory. The table gives the kernel's best time, its GB/s (bytes that must be moved, planes
included), the ratio of best times, and the median and the quartiles of the ratio over the rounds. The limits run on one
thread, and so do the kernels unless --threads says otherwise: then ratios above 1 are what the other cores add.

Ballots to tally lie one after the other in one buffer, at odd distances, as messages do that were received together.
Where all planes start at the same place in their pages ("aligned"), they compete for the same lines of the L1 cache.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from progress import Progress
from recording import about, append

from horovod_sign.algebra import native


@dataclass
class Case:
    """A kernel, its limit, and the bytes that the kernel moves."""

    name: str
    run: Callable
    limit: Callable
    nbytes: int
    of: str


def split(n, parts):
    """n as `parts` lengths of very different sizes, like a network's tensors."""
    weights = 1.0 / (1 + np.arange(parts)) + 0.002
    lengths = np.maximum(1, (n * weights / weights.sum()).astype(np.int64))
    lengths[0] += n - lengths.sum()
    return np.random.default_rng(1).permutation(lengths)


def cases(kernels, n):
    """The benchmark's cases over n coordinates."""
    rng = np.random.default_rng(0)
    g = rng.standard_normal(n, dtype=np.float32)
    m = rng.standard_normal(n, dtype=np.float32)
    x = rng.standard_normal(n, dtype=np.float32)
    scratch = np.ones(n, np.float32)
    flat = native.Segments([(g, n)])
    lengths = split(n, 160)
    starts = np.cumsum(lengths) - lengths
    many = native.Segments([(g.ctypes.data + 4 * int(s), int(k)) for s, k in zip(starts, lengths, strict=True)])
    size = many.plane_bytes
    sign, nonzero = np.zeros(size, np.uint8), np.full(size, 0xFF, np.uint8)
    received = rng.integers(0, 256, 64 * (size + 1), dtype=np.uint8)
    ballots = [received[i * (size + 1) + 1 :][:size] for i in range(64)]
    signs, nonzeros = ballots[:8], ballots[8:16]
    stride = (size + 4095) // 4096 * 4096
    pages = rng.integers(0, 256, 8 * stride, dtype=np.uint8)
    aligned = [pages[i * stride :][:size] for i in range(8)]
    fields = np.zeros(n, np.uint8)
    small = np.zeros(size * 4, np.uint8)
    data = 4 * n

    def read(*arrays):
        for a in arrays:
            kernels.read_loop(a, a.nbytes)

    def pack(segments, mode):
        kernels.pack("float32", mode, segments, sign, nonzero)

    def interpolate():
        kernels.interpolate_pack("float32", native.ABSTAIN, flat, [m], 0.9, 0.99, sign, nonzero)

    def read_and_update():
        kernels.read_loop(g, data)
        kernels.read_write_loop(scratch, data)

    def apply(votes, weight_decay):
        kernels.apply("float32", flat.with_pointers([x]), sign, votes, 1e-4, weight_decay)

    def update():
        kernels.read_write_loop(scratch, data)

    return [
        Case("pack signbit", lambda: pack(flat, native.SIGNBIT), lambda: read(g), data + size, "read"),
        Case("pack abstain", lambda: pack(flat, native.ABSTAIN), lambda: read(g), data + 2 * size, "read"),
        Case("pack onebit", lambda: pack(flat, native.ONEBIT), lambda: read(g), data + size, "read"),
        Case(
            "pack 160 tensors",
            lambda: pack(many, native.ABSTAIN),
            lambda: pack(flat, native.ABSTAIN),
            data + 2 * size,
            "one tensor",
        ),
        Case("interpolate_pack", interpolate, read_and_update, 3 * data + 2 * size, "read + read-write"),
        Case("apply", lambda: apply(None, 0.0), update, 2 * data + size, "read-write"),
        Case("apply decay, abstain", lambda: apply(nonzero, 0.01), update, 2 * data + 2 * size, "read-write"),
        Case(
            "tally of 8",
            lambda: kernels.tally(signs, None, size, sign, nonzero),
            lambda: read(*signs),
            10 * size,
            "read",
        ),
        Case(
            "tally of 8, abstain",
            lambda: kernels.tally(signs, nonzeros, size, sign, nonzero),
            lambda: read(*signs, *nonzeros),
            18 * size,
            "read",
        ),
        Case(
            "tally of 8, aligned",
            lambda: kernels.tally(aligned, None, size, sign, nonzero),
            lambda: read(*aligned),
            10 * size,
            "read",
        ),
        Case(
            "tally of 64",
            lambda: kernels.tally(ballots, None, size, sign, nonzero),
            lambda: read(*ballots),
            66 * size,
            "read",
        ),
        Case(
            "unpack_int8",
            lambda: kernels.unpack_int8(sign, nonzero, n, fields),
            lambda: kernels.read_write_loop(fields, n),
            n + 2 * size,
            "read-write",
        ),
        Case(
            "encode_counts 4",
            lambda: kernels.encode_counts(4, sign, nonzero, n, small),
            lambda: kernels.read_write_loop(small, small.nbytes),
            small.nbytes + 2 * size,
            "read-write",
        ),
        Case(
            "decode_counts 4",
            lambda: kernels.decode_counts(4, small, 2, n, sign, nonzero),
            lambda: read(small),
            small.nbytes + 2 * size,
            "read",
        ),
        Case(
            "encode_counts 8",
            lambda: kernels.encode_counts(8, sign, nonzero, n, fields),
            lambda: kernels.read_write_loop(fields, n),
            n + 2 * size,
            "read-write",
        ),
        Case(
            "decode_counts 8",
            lambda: kernels.decode_counts(8, fields, 2, n, sign, nonzero),
            lambda: read(fields),
            n + 2 * size,
            "read",
        ),
        Case("all_ones", lambda: kernels.all_ones(nonzero, size), lambda: read(nonzero), size, "read"),
        Case(
            "agreement",
            lambda: kernels.agreement(signs[0], nonzeros[0], signs[1], nonzeros[1], n),
            lambda: read(signs[0], signs[1], nonzeros[0], nonzeros[1]),
            4 * size,
            "read",
        ),
    ]


def seconds(function):
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(case, rounds):
    """Times of the kernel and of its limit, taken in turn, each first in every other round."""
    case.run(), case.limit()
    kernel, limit = np.empty(rounds), np.empty(rounds)
    for i in range(rounds):
        if i % 2:
            limit[i], kernel[i] = seconds(case.limit), seconds(case.run)
        else:
            kernel[i], limit[i] = seconds(case.run), seconds(case.limit)
    ratio = limit / kernel
    low, median, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    return {
        "kernel": case.name,
        "ms": 1e3 * kernel.min(),
        "gb_per_s": case.nbytes / kernel.min() / 1e9,
        "limit": case.of,
        "limit_ms": 1e3 * limit.min(),
        "ratio_of_best": limit.min() / kernel.min(),
        "ratio_median": median,
        "ratio_quartiles": [low, high],
    }


def main(arguments=None):
    """Parses arguments, runs the cases, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.split("\n")[0])
    parser.add_argument("--coordinates", type=float, default=25.6e6, help="float32; default: 25,600,000")
    parser.add_argument("--rounds", type=int, default=31, help="of which medians are taken; default: 31")
    parser.add_argument(
        "--set", choices=native.supported(), default=native.kernels().name, help="of kernels; default: the best here"
    )
    parser.add_argument("--threads", type=int, default=1, help="of the kernels; default: 1")
    parser.add_argument("--only", default="", help="run only the kernels whose name has this in it")
    parser.add_argument("--json", help="file to append results to")
    arguments = parser.parse_args(arguments)

    n = int(arguments.coordinates)
    kernels = native.Kernels(arguments.set)
    kernels.threads = arguments.threads
    what = f"kernel set {kernels.name}, {kernels.threads} thread(s), {platform.processor() or 'CPU'}"
    print(f"{n} float32 coordinates, {what}")
    print(f"{'kernel':22s} {'ms':>8s} {'GB/s':>6s} {'ratio':>6s} {'median':>7s} {'quartiles':>12s}  limit (its ms)")
    rows = []
    chosen = [case for case in cases(kernels, n) if arguments.only in case.name]
    for case in Progress(chosen, "kernels", unit="kernel"):
        row = measure(case, arguments.rounds)
        rows.append(row)
        low, high = row["ratio_quartiles"]
        print(
            f"{row['kernel']:22s} {row['ms']:8.3f} {row['gb_per_s']:6.1f} {row['ratio_of_best']:6.2f} "
            f"{row['ratio_median']:7.2f} {low:5.2f} - {high:4.2f}  {row['limit']} ({row['limit_ms']:.3f})",
            flush=True,
        )
    if arguments.json:
        what, when = {"set": kernels.name, "threads": kernels.threads, "coordinates": n}, about()
        for row in rows:
            append(Path(arguments.json), {**what, **row, **when})
