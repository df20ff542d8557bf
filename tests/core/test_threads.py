"""Kernels on several threads: the same bits as on one, from any thread and after a fork."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from horovod_sign.algebra import native

# Parts end at words: lengths that do not, and enough coordinates for several parts.
LENGTHS = [1, 63, 700_001, 64, 0, 500_007, 65, 1_100_000]
THREADS = (2, 3, 8)


@pytest.fixture(params=native.supported())
def kernels(request):
    return native.Kernels(request.param)


def numbers(dtype, n):
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    x[::1001], x[::1003], x[::1007] = 0.0, np.nan, np.inf
    return x


def cut(x):
    starts = np.cumsum(LENGTHS) - LENGTHS
    return native.Segments([(x[a : a + n], n) for a, n in zip(starts, LENGTHS, strict=True)])


def on(kernels, threads, run):
    """What `run` returns with so many threads."""
    kernels.threads = threads
    return run()


def assert_alike(kernels, run):
    """`run` makes new outputs each time, and returns them and what the kernel said."""
    *expected, said = on(kernels, 1, run)
    for threads in THREADS:
        *outputs, says = on(kernels, threads, run)
        assert says == said
        for output, wanted in zip(outputs, expected, strict=True):
            np.testing.assert_array_equal(output.view(np.uint8), wanted.view(np.uint8))


def planes(n, count=2):
    return [np.random.default_rng(i).integers(0, 256, (n + 63) // 64 * 8, dtype=np.uint8) for i in range(count)]


def empty_planes(segments):
    return np.zeros(segments.plane_bytes, np.uint8), np.zeros(segments.plane_bytes, np.uint8)


@pytest.mark.parametrize("mode", [native.SIGNBIT, native.ABSTAIN, native.ONEBIT])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_pack_with_and_without_momentum(kernels, dtype, mode):
    g, m = numbers(dtype, sum(LENGTHS)), numbers("float32", sum(LENGTHS))
    segments = cut(g)

    def pack():
        sign, nonzero = empty_planes(segments)
        return sign, nonzero, kernels.pack(dtype, mode, segments, sign, nonzero)

    def interpolate():
        sign, nonzero = empty_planes(segments)
        state = m.copy()
        momenta = cut(state).pointers
        counts = kernels.interpolate_pack(dtype, mode, segments, momenta, 0.9, 0.8, sign, nonzero)
        return sign, nonzero, state, counts

    assert_alike(kernels, pack)
    assert_alike(kernels, interpolate)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_unpack_and_step(kernels, dtype):
    x = numbers(dtype, sum(LENGTHS))
    sign, nonzero = planes(64 * cut(x).plane_bytes // 8)

    def unpack():
        out = x.copy()
        kernels.unpack(dtype, cut(out), sign, nonzero)
        return out, None

    def step():
        out = x.copy()
        kernels.apply(dtype, cut(out), sign, nonzero, 0.1, np.arange(len(LENGTHS)) / 10)
        return out, None

    assert_alike(kernels, unpack)
    assert_alike(kernels, step)


@pytest.mark.parametrize("m", [1, 8, 16, 21])
@pytest.mark.parametrize("abstaining", [False, True])
def test_tally(kernels, m, abstaining):
    nbytes = 1_500_001 // m + 3_000_000 // 8
    ballots = planes(8 * nbytes, 2 * m)

    def tally():
        sign, nonzero = np.zeros(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
        nonzeros = [b if i % 2 else None for i, b in enumerate(ballots[m:])] if abstaining else None
        return sign, nonzero, kernels.tally(ballots[:m], nonzeros, nbytes, sign, nonzero)

    assert_alike(kernels, tally)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_fields_and_bytes(kernels, bits):
    n = 3_000_000 + 37
    (sign, nonzero), voters = planes(n), 1

    def encode():
        fields = np.zeros(n * bits // 8 + 16, np.uint8)
        kernels.encode_counts(bits, sign, nonzero, n, fields)
        return fields, None

    def decode():
        out = np.zeros_like(sign), np.zeros_like(sign)
        return *out, kernels.decode_counts(bits, encode()[0], voters, n, *out)

    def unpack():
        out = np.zeros(n, np.int8)
        kernels.unpack_int8(sign, nonzero, n, out)
        return out, None

    for run in (encode, decode, unpack):
        assert_alike(kernels, run)


def test_agreement(kernels):
    n = 20_000_037
    four = planes(n, 4)
    assert_alike(kernels, lambda: (kernels.agreement(*four, n),))


def test_threads_are_those_given(monkeypatch):
    for given, expected in (("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert native.given_threads() == (expected or len(os.sched_getaffinity(0)))


def test_threads_are_made_when_needed_and_kept():
    kernels, n = native.Kernels(native.supported()[0]), 8_000_000
    plane, out = planes(n, 1)[0], np.zeros(n, np.int8)

    def after(threads, coordinates):
        kernels.threads = threads
        kernels.unpack_int8(plane, None, coordinates, out)
        return len(tasks())

    after(4, n)
    many = after(4, n)
    assert after(4, n) == many
    assert after(6, n) == many + 2 or many > 6  # an earlier test may have made more
    assert after(100, 1000) == after(1, n)


def tasks() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_signals_are_for_the_threads_of_the_process():
    """Threads of the pool block all signals: a handler must not run there, nor a wait of the program miss one."""
    kernels, n = native.Kernels(native.supported()[0]), 16_000_000
    before, plane, out = tasks(), planes(n, 1)[0], np.zeros(n, np.int8)
    kernels.threads = 12  # more than any other test makes
    kernels.unpack_int8(plane, None, n, out)
    new = tasks() - before
    assert new
    for task in new:
        with open(f"/proc/self/task/{task}/status") as status:
            blocked = int(next(line for line in status if line.startswith("SigBlk:")).split()[1], 16)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGALRM):
            assert blocked >> (each - 1) & 1, f"thread {task} takes {each.name}"


RACES = Path(__file__).with_name("races.cpp")
SOURCES = Path(__file__).parents[2] / "csrc"
PLAIN = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # ci/sanitize.sh's, of another sanitizer


@pytest.fixture(scope="module")
def races(tmp_path_factory):
    """races.cpp, built with ThreadSanitizer."""
    compiler, program = os.environ.get("CXX", "g++"), tmp_path_factory.mktemp("races") / "races"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", "-fno-exceptions", "-fno-rtti", "-Wno-psabi"]
    sources = [RACES, SOURCES / "isa_scalar.cpp", SOURCES / "threads.cpp"]
    try:
        subprocess.run(
            [compiler, *flags, f"-I{SOURCES}", *sources, "-o", program], check=True, capture_output=True, env=PLAIN
        )
    except (OSError, subprocess.CalledProcessError) as error:
        if b"error:" in (getattr(error, "stderr", b"") or b""):
            raise  # of our own sources
        pytest.skip(f"{compiler} has no ThreadSanitizer: {error}")
    return program


def test_no_race_between_threads(races):
    """By what orders memory accesses, not by chance: a sum without atomics is found though it comes out right."""
    done = subprocess.run([races], capture_output=True, text=True, timeout=100, check=False, env=PLAIN)
    if "FATAL: ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert done.returncode == 0, done.stdout + done.stderr[:3000]


def test_calls_from_several_threads_at_once():
    kernels, n = native.Kernels(native.supported()[0]), 4_000_000
    kernels.threads = 3
    cases = [planes(n, 1)[0] ^ np.uint8(i) for i in range(6)]

    def unpack(plane):
        out = np.zeros(n, np.int8)
        kernels.unpack_int8(plane, None, n, out)
        return out

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(5):
            for plane, out in zip(cases, pool.map(unpack, cases), strict=True):
                np.testing.assert_array_equal(np.packbits(out < 0, bitorder="little"), plane)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own():
    """A DataLoader's worker, for example: the parent's threads are not there, and must not be waited for."""
    kernels, n = native.Kernels(native.supported()[0]), 4_000_000
    kernels.threads = 3
    plane, out = planes(n, 1)[0], np.zeros(n, np.int8)
    kernels.unpack_int8(plane, None, n, out)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.alarm(20)
            out[:] = 0
            alone = len(os.listdir("/proc/self/task"))  # 1, or more where an emulator has threads of its own
            kernels.unpack_int8(plane, None, n, out)
            right = np.array_equal(np.packbits(out < 0, bitorder="little"), plane)
            os._exit(0 if right and len(os.listdir("/proc/self/task")) == alone + kernels.threads - 1 else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
