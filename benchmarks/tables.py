"""What the documentation says of the records in docs/figures: for each mark a function of the records to text."""

import math
from collections.abc import Callable

from recording import find, markdown, origin

NAMES = {
    "float32": "Horovod, float32",
    "float16": "Horovod, float16",
    "byte_allgather": "one byte a sign, allgather",
    "bit_allgather": "one bit a sign, allgather",
    "counts": "votes by counts",
    "exchange": "votes by exchange",
    "signsgd": "`SignSGD`",
    "signum": "`Signum`",
    "signum_one_bit": "`Signum`, `abstain=False`",
    "signsgd_one_bit": "`SignSGD`, `abstain=False`",
    "one_bit_alone": "the same, voting with nobody",
}
HOSTS = 4  # of the long tables
# Slowest first.
LINKS = {"100mbit": "0.1 Gbit/s", "1gbit": "1 Gbit/s", "10gbit": "10 Gbit/s", "shared memory": "shared memory"}
RESNET = 25e6  # coordinates, at least


def number(value: float) -> str:
    """Whole from 10 on, else with a digit or two behind the point."""
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def spread(value: float, quartiles: list[float] | None) -> str:
    """A median with its quartiles, if they were kept."""
    return number(value) + (f" ({number(quartiles[0])} to {number(quartiles[1])})" if quartiles else "")


class Steps:
    """Of one setting, what each method adds to a backward alone."""

    def __init__(self, lines: list[dict], alone: str = "backward", **where):
        self.lines = {line["method"]: line for line in find(lines, **where)}
        self.backward = self.lines[alone]["ms"] if alone in self.lines else 0.0

    def __contains__(self, method: str) -> bool:
        return method in self.lines

    def adds(self, method: str) -> float:
        return self.lines[method]["ms"] - self.backward

    def cell(self, method: str) -> str:
        """Milliseconds and quartiles."""
        if method not in self:
            return "not run"
        quartiles = self.lines[method].get("ms_quartiles")
        return spread(self.adds(method), quartiles and [each - self.backward for each in quartiles])

    def less(self, method: str) -> str:
        """How many times less than float32."""
        if method not in self or "float32" not in self:
            return ""
        return "1" if method == "float32" else f"{self.adds('float32') / self.adds(method):.1f} x less"

    def communication(self, method: str) -> str:
        """What share of a step of one bit is not there when a rank votes with nobody; 0 if noise is larger."""
        return f"{max(0, 1 - self.lines['one_bit_alone']['ms'] / self.lines[method]['ms']):.0%}".replace("%", " %")


def caption(lines: list[dict], file: str, command: str, folder: str = "figures") -> str:
    """Where figures are from: a file in a folder that lies there as seen from the page."""
    notes = "".join(f" {note}" for note in dict.fromkeys(line["note"] for line in lines if "note" in line))
    return f"{origin(lines)}: [{file}]({folder}/{file}), by `{command}`.{notes}"


def _steps(records) -> list[dict]:
    return [line for line in find(records["results.jsonl"], kind="step") if line["coordinates"] > RESNET]


def step_table(records) -> str:
    """Four hosts: all methods, without and with a sleeping backward, at 1 and at 10 Gbit/s."""
    lines = find(_steps(records), ranks=HOSTS)
    busy, slept, fast = (
        Steps(lines, rate=rate, pause_ms=pause) for rate, pause in (("1gbit", 0.0), ("1gbit", 200.0), ("10gbit", 0.0))
    )
    after = f"after a backward of {slept.backward:,.0f} ms"
    rows = [["", f"adds to {busy.backward:,.0f} ms", "", after, "", "sent per host, MB", "at 10 Gbit/s, ms", ""]]
    for method, name in NAMES.items():
        if method in busy:
            sent = f"{busy.lines[method]['bytes'] / 1e6:.1f}" if method != "one_bit_alone" else "0"
            cells = [busy.cell(method), busy.less(method), slept.cell(method).partition(" (")[0], slept.less(method)]
            rows.append([name, *cells, sent, fast.cell(method).partition(" (")[0], fast.less(method)])
    about = [*busy.lines.values(), *slept.lines.values(), *fast.lines.values()]
    return f"{markdown(rows)}\n\n{caption(about, 'results.jsonl', 'sudo benchmarks/run.sh')}"


def communication(records) -> str:
    """A sentence on the same records."""
    lines = find(_steps(records), ranks=HOSTS, rate="1gbit")
    shares = [
        " and ".join((here.communication("one_bit_no_overlap"), here.communication("signsgd_one_bit")))
        for here in (Steps(lines, pause_ms=0.0), Steps(lines, pause_ms=200.0))
    ]
    return (
        f"{shares[0]} of a step (without overlap, and with it) where backward keeps the cores busy, {shares[1]} where "
        "it leaves them to others"
    )


def hosts_table(records) -> str:
    """Other numbers of hosts, other links."""
    lines = _steps(records)
    wheres = list(dict.fromkeys((line["rate"], line["ranks"], line["pause_ms"]) for line in lines))
    wheres.sort(key=lambda where: (list(LINKS).index(where[0]), where[2], where[1]))
    methods = ["float32", "float16", "signsgd", "signsgd_one_bit", "one_bit_alone"]
    rows = [["", *(NAMES[method] for method in methods)]]
    for rate, ranks, pause in wheres:
        here = Steps(lines, rate=rate, ranks=ranks, pause_ms=pause)
        what = f"{ranks} ranks, {LINKS[rate]}" if rate == "shared memory" else f"{ranks} hosts, {LINKS[rate]}"
        what += f", backward sleeps {pause:g} ms" if pause else ""
        rows.append([what, *(here.cell(method).partition(" (")[0] for method in methods)])
    return f"{markdown(rows)}\n\n{caption(lines, 'results.jsonl', 'sudo benchmarks/run.sh')}"


def vote_table(records) -> str:
    """The vote alone, four hosts at 1 Gbit/s."""
    lines = find(records["results.jsonl"], kind="vote", ranks=HOSTS, rate="1gbit")
    sizes = sorted({line["coordinates"] for line in lines})
    rows = [["", *(f"{n / 1e6:g} million" for n in sizes)]]
    for method, name in NAMES.items():
        here = [find(lines, method=method, coordinates=n) for n in sizes]
        if any(here):
            rows.append([name, *(spread(r[-1]["ms"], r[-1].get("ms_quartiles")) if r else "not run" for r in here)])
    return f"{markdown(rows)}\n\n{caption(lines, 'results.jsonl', 'python -m benchmarks vote')}"


def small_table(records) -> str:
    """Small models, two ranks in shared memory."""
    lines = records["small.jsonl"]
    methods = {
        "float32": NAMES["float32"],
        "signsgd_exchange": "votes by Horovod's engine",
        "signsgd_counts": "votes by counts",
        "signsgd": '`transport="auto"`, by MPI itself',
    }
    rows = [["coordinates", *methods.values()]]
    for n in sorted({line["coordinates"] for line in lines}):
        here = Steps(lines, coordinates=n)
        rows.append([f"{n:,}", *(f"{here.adds(method):.2f}" for method in methods)])
    return f"{markdown(rows)}\n\n{caption(lines, 'small.jsonl', 'benchmarks/run.sh')}"


def kernels_table(records) -> str:
    """The kernels beside plain loops."""
    lines = records["kernels.jsonl"]
    threads = sorted({line["threads"] for line in lines})
    heads = [f"{n} thread{'s' * (n > 1)}: share; ms" for n in threads]
    rows = [["", "beside", *heads]]
    for line in find(lines, threads=threads[0]):
        cells = []
        for n in threads:
            (here,) = find(lines, threads=n, kernel=line["kernel"])
            cells.append(f"{here['ratio_median']:.2f}" + (f"; {here['ms']:.3g}" if "ms" in here else ""))
        rows.append([line["kernel"], line["limit"], *cells])
    what = f"Set {lines[0]['set']}, {lines[0]['coordinates'] / 1e6:g} million float32 coordinates. "
    return f"{markdown(rows)}\n\n{what}{caption(lines, 'kernels.jsonl', 'python -m benchmarks kernels')}"


def scale_text(records) -> str:
    """How far off the model of larger clusters is, and where it says that an exchange's messages tell."""
    (line,) = records["scale.jsonl"]
    fit = (
        f"Fitted to {line['results']} results, from which it is {line['rms']:.0%} off (root mean square): "
        f"{1e3 * line['constants']['tau']:.2g} ms for a Horovod op, {1e6 * line['constants']['alpha TCP']:.2g} µs, "
        f"give or take {1e6 * line['errors']['alpha TCP']:.2g}, for a message."
    ).replace("%", " %")
    rows = [["link", "ranks a host", "messages take longer than bytes from", "`hierarchical=True` is faster from"]]
    for limit in line["limits"]:
        cells = [
            "not kept" if each not in limit else f"{limit[each]:,} ranks on" if limit[each] else "never, up to 4,096"
            for each in ("more latency than bytes", "slower than hierarchical")
        ]
        cells[1] = cells[1] if limit["ranks_per_host"] > 1 else "does not apply"
        rows.append([f"{limit['gbits']:g} Gbit/s", str(limit["ranks_per_host"]), *cells])
    command = "python -m benchmarks scale"
    return f"{fit}\n\n{markdown(rows)}\n\n{caption([line], 'scale.jsonl', command)}"


# Methods of `advise`, and what step calls them.
ADVISED = {
    "float32": "float32",
    "float16": "float16",
    "counts": "signsgd_counts",
    "exchange": "signsgd_exchange",
    "one bit": "signsgd_one_bit",
}


def advise_table(records) -> str:
    """What advise predicted, before and after what was measured, and how far off it was."""
    lines = records["advise.jsonl"]
    rates = sorted({line["rate"] for line in lines}, key=list(LINKS).index)
    rows = [["ms", *(head for rate in rates for head in (f"{LINKS[rate]}: predicted", "measured"))]]
    ratios = []
    for method, measured in ADVISED.items():
        cells = []
        for rate in rates:
            here = Steps(find(lines, kind="step", rate=rate))
            predicted = [line["ms"] for line in find(lines, kind="advise", rate=rate, method=method)]
            cells += ["; ".join(map(number, predicted)), here.cell(measured)]
            ratios += [ms / here.adds(measured) for ms in predicted]
        rows.append([method, *cells])
    near = sum(0.5 <= ratio <= 2 for ratio in ratios)
    off = math.exp(math.sqrt(sum(math.log(ratio) ** 2 for ratio in ratios) / len(ratios)))
    verdict = (
        f"{near} of {len(ratios)} predictions were between half and twice what was measured; they are from "
        f"{min(ratios):.2g} to {max(ratios):.2g} times it ({off:.2f} times or one part in that, root mean square of "
        "the logarithms)."
    )
    about = caption(lines, "advise.jsonl", "sudo benchmarks/run.sh")
    return f"{markdown(rows)}\n\n{verdict} {about}"


def gpu_step_table(records) -> str:
    """What votes add to a step of ResNet-50 on a GPU."""
    lines = find(records["gpu.jsonl"], kind="gpu step")
    wheres = sorted({(line["ranks"], line["batch"]) for line in lines})
    heres = [Steps(lines, "alone", ranks=ranks, batch=batch) for ranks, batch in wheres]
    heads = [
        f"{ranks} ranks on the GPU, batch {batch}, a step alone {here.backward:.1f} ms"
        for (ranks, batch), here in zip(wheres, heres, strict=True)
    ]
    rows = [["", *heads]]
    for method in ("float16", "float32", "signsgd", "signum", "signsgd_one_bit"):
        rows.append([NAMES[method], *(here.cell(method) for here in heres)])
    return f"{markdown(rows)}\n\n{caption(lines, 'gpu.jsonl', 'mpirun -np 2 python -m benchmarks gpu step')}"


def gpu_kernels_table(records) -> str:
    """The kernels on a GPU, as a share of the bandwidth of a copy."""
    lines = find(records["gpu.jsonl"], kind="gpu kernels")
    heads = [f"{line['dtype']}, {line['coordinates'] / 1e6:.3g} M" for line in lines]
    rows = [["161 tensors", *heads]]
    for name in lines[0]["share"]:
        rows.append([name, *(f"{line['share'][name]:.2f}" for line in lines)])
    return f"{markdown(rows)}\n\n{caption(lines, 'gpu.jsonl', 'python -m benchmarks gpu kernels')}"


def headline(records) -> str:
    """README's line."""
    here = Steps(find(_steps(records), ranks=HOSTS, rate="1gbit", pause_ms=0.0))
    gpu = Steps(find(records["gpu.jsonl"], kind="gpu step", ranks=2), "alone")
    votes, on_gpu = (
        " to ".join(number(end(each.adds(m) for m in methods)) for end in (min, max))
        for each, methods in (
            (here, ("signsgd", "signum_one_bit", "signsgd_one_bit")),
            (gpu, ("signsgd", "signum", "signsgd_one_bit")),
        )
    )
    return (
        f"on {HOSTS} hosts at 1 Gbit/s a ResNet-50's step waits {number(here.adds('float16'))} ms for float16, "
        f"{number(here.adds('float32'))} for float32, {votes} for votes; two ranks on one H200 wait "
        f"{number(gpu.adds('float16'))}, {number(gpu.adds('float32'))}, and {on_gpu}."
    )


def check(name: str) -> Callable:
    """A sentence on what ci/sanitize.sh, ci/soak.sh or the property tests found."""

    def said(records) -> str:
        lines = find(records["checks.jsonl"], check=name)
        return f"{lines[-1]['found']} ({origin(lines[-1:])})." if lines else "not run."

    return said


FIGURES: dict[str, Callable] = {
    "step": step_table,
    "communication": communication,
    "hosts": hosts_table,
    "vote": vote_table,
    "small": small_table,
    "kernels": kernels_table,
    "scale": scale_text,
    "advise": advise_table,
    "gpu-step": gpu_step_table,
    "gpu-kernels": gpu_kernels_table,
    "headline": headline,
    "sanitize": check("sanitize"),
    "properties": check("properties"),
    "soak": check("soak"),
}
