"""How voting should scale to thousands of ranks, on paper: python -m benchmarks scale RESULTS.jsonl

Fits the constants of cost_model.py to the results of vote and step, prints them with what the model gets wrong,
and predicts larger clusters from them. M ranks are on M/g hosts, and the g ranks of a host share its link:

    float32, ring       2 (M-1) messages, 2 (M-1)/M * 4n bytes; a ring leaves each host once
    float32, halving    the same bytes in 2 log2(M) messages (recursive halving and doubling): the best for float32
    byte allgather      M-1 messages, (M-1) n bytes: grows with M
    counts              2 (M-1) messages, 2 (M-1)/M * b n/8 bytes, b = 4 to 16 bits with M
    exchange, flat      alltoall, then a ring allgather, each M-1 messages; n/8 (M-g)/M * g + n/8 (M-1)/M bytes on a
                        host's link, since all g ranks of a host send ballots to all other hosts
    hierarchical        float32 allreduce inside each host, over memory, 2 (g-1)/g * 4n bytes; one rank of each host
                        votes for it in an exchange between hosts, 2 (M/g-1) messages, 2 n/8 bytes on a host's link;
                        the votes' n/8 bytes go round inside

Hierarchical voting is another vote: of hosts on the signs of their mean gradients, so a hostile rank can speak for its
host.

The flat exchange's latency, 2 (M-1) alpha, grows with M while its bytes do not. The model is not to be believed
beyond where that is most of the time: alpha is then not a constant (messages below a packet's 1,460 bytes, M of them at
once at one receiver, connections to all). Lines are dotted where an exchange's messages are smaller than a packet.

An alpha that was fitted to hosts which share cores holds their waiting for a core: it is several times that of a real
network, and what it says of many ranks is too slow by as much. Give yours: --alpha-us.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from recording import about, append, read

from benchmarks import cost_model as model
from horovod_sign.voting import costs

PACKET = 1460  # bytes of payload
LINES = {
    "float32, ring": "#777777",
    "float32, halving": "#bbbbbb",
    "byte allgather": "#c8a951",
    "counts": "#8c9c5a",
    "exchange, flat": "#2a6f97",
    "hierarchical": "#c1440e",
}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="files of vote and step")
    parser.add_argument("--cores", type=int, default=2, help="that all measured hosts share; default: 2")
    parser.add_argument("--burst-mb", type=float, default=1.0, help="of measured links, see hosts.sh; default: 1")
    parser.add_argument("--coordinates", type=float, default=25.6e6, help="to predict; default: 25.6e6")
    parser.add_argument("--gbits", type=float, nargs="+", default=[1, 10, 100], help="links; default: 1 10 100")
    parser.add_argument("--ranks-per-host", type=int, default=8, help="default: 8")
    parser.add_argument("--alpha-us", type=float, help="instead of the fitted alpha of TCP, as for RDMA")
    parser.add_argument("--inside-gbytes", type=float, help="instead of the fitted memory, as for NVLink: 1e9 bytes/s")
    parser.add_argument("--out", type=Path, help="folder of scale.json, scale.png, fit.png; default: of the results")
    return parser.parse_args(arguments)


def predict(constants: dict, line: str, n: int, ranks: int, per_host: int, rate: float) -> float:
    """Seconds of one reduction on real hosts, where no two ranks share a core."""
    if line == "hierarchical":
        return hierarchical(constants, n, ranks // per_host, per_host, rate)
    method = {"byte allgather": "byte_allgather", "counts": "counts", "exchange, flat": "exchange"}.get(line, "float32")
    found = model.seconds(constants, model.Setting("vote", method, n, ranks, False, rate, per_host))
    if line == "float32, halving":
        found -= constants["alpha TCP"] * 2 * (ranks - 1 - math.ceil(math.log2(ranks)))
    return found


def hierarchical(constants: dict, n: int, hosts: int, per_host: int, rate: float) -> float:
    """Seconds: four ops, two inside the host and two between hosts."""
    plane = costs.plane_bytes(n)
    inside = costs.allreduce_cost(4 * n, per_host).plus(costs.Cost(per_host - 1, plane))
    between = costs.exchange_cost(n, hosts)
    return (
        4 * constants["tau"]
        + inside.messages * constants["alpha memory"]
        + inside.bytes * constants["eta memory"]
        + between.messages * constants["alpha TCP"]
        + between.bytes * (constants["eta TCP"] + constants["beta"] / rate)
        + n * (constants["gamma pass"] + constants["gamma tally"])
    )


def curves(constants: dict, n: int, per_host: int, rate: float) -> dict:
    """For each line, the seconds at each number of ranks."""
    ranks = [2**k for k in range(1, 13) if 2**k >= 2 * per_host]
    lines = [line for line in LINES if line != "hierarchical" or per_host > 1]
    return {
        "ranks": ranks,
        **{line: [predict(constants, line, n, m, per_host, rate) for m in ranks] for line in lines},
    }


def limits(constants: dict, found: dict, n: int, per_host: int, rate: float) -> dict:
    """The first number of ranks at which the flat exchange is ... ; None: not up to the last."""

    def first(holds):
        return next((m for i, m in enumerate(found["ranks"]) if holds(i, m)), None)

    def latency(m):
        s = model.Setting("vote", "exchange", n, m, False, rate, per_host)
        cost = model.ops_and_cost(s)[1]
        wire = cost.bytes * constants["eta TCP"] + model.link_bytes(s) * constants["beta"] / rate
        return cost.messages * constants["alpha TCP"] > wire

    flat = found["exchange, flat"]
    slower = {line: first(lambda i, m, line=line: found[line][i] < flat[i]) for line in found if line in LINES}
    return {
        "more latency than bytes": first(lambda i, m: latency(m)),
        "messages below a packet": first(lambda i, m: costs.plane_bytes(n) / m < PACKET),
        **{f"slower than {line}": m for line, m in slower.items() if line != "exchange, flat"},
    }


def show_fit(fitted: model.Fit, points: list):
    print(f"{len(points)} results; the model is {rms(fitted.residuals):.0%} off (root mean square)")
    for name, value in fitted.constants.items():
        unit, factor = ("", 1) if name == "beta" else ("us", 1e6) if name[:5] in ("tau", "alpha") else ("ns", 1e9)
        error = fitted.errors[name] * factor
        print(f"  {name:28} {value * factor:10.4g} {unit:2} +- {error:.2g}" if value else f"  {name:28} not seen: 0")
    for method in sorted({(r["kind"], r["method"]) for r, _ in points}):
        mine = [e for (r, _), e in zip(points, fitted.residuals, strict=True) if (r["kind"], r["method"]) == method]
        print(f"  {' '.join(method):24} {len(mine):3} results, off by {rms(mine):5.0%}, from {min(mine):+.0%} to"
              f" {max(mine):+.0%}")  # fmt: skip


def rms(values) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def draw_fit(points: list, fitted: model.Fit, picture: Path):
    """Predicted against measured seconds, a dot a result."""
    figure, axis = plt.subplots(figsize=(6.4, 5.2))
    for method in sorted({r["method"] for r, _ in points}):
        mine = [(t, t * (1 + e)) for (r, t), e in zip(points, fitted.residuals, strict=True) if r["method"] == method]
        axis.loglog(*np.transpose(mine) * 1e3, "o", ms=4, alpha=0.7, label=method)
    ends = np.array([min(t for _, t in points), max(t for _, t in points)]) * 1e3
    axis.loglog(ends, ends, color="black", lw=1)
    axis.loglog(ends, 2 * ends, ":", ends, ends / 2, ":", color="black", lw=0.8)
    axis.set(xlabel="measured, ms", ylabel="model, ms", title="The fit (dotted: twice and half)")
    axis.legend(fontsize=7)
    save(figure, picture)


def draw_scale(panels: list[dict], n: int, picture: Path):
    """Seconds against ranks: a column for each rate of the links, a row for each number of ranks a host."""
    rates = sorted({p["gbits"] for p in panels})
    rows = sorted({p["ranks_per_host"] for p in panels})
    figure, axes = plt.subplots(
        len(rows), len(rates), figsize=(4.1 * len(rates), 3.6 * len(rows)), squeeze=False, sharex=True, sharey="row"
    )
    for panel in panels:
        axis = axes[rows.index(panel["ranks_per_host"])][rates.index(panel["gbits"])]
        for line, colour in LINES.items():
            if line in panel["seconds"]:
                draw_line(axis, panel, line, colour, n)
        axis.set_title(f"{panel['gbits']:g} Gbit/s, {panel['ranks_per_host']} rank(s) a host", fontsize=9)
        axis.set(xscale="log", yscale="log", ylim=(10, 1e4))
        axis.set_xticks([2, 8, 64, 512, 4096], ["2", "8", "64", "512", "4,096"])
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("ranks")
    for row in axes:
        row[0].set_ylabel("ms a reduction")
    handles, labels = axes[-1][-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(labels), loc="lower center")
    figure.suptitle(
        f"Model: {n / 1e6:g} M coordinates (dotted: messages below a packet, not to be believed)", fontsize=10
    )
    save(figure, picture, bottom=0.05)


def message_bytes(line: str, n: int, ranks: np.ndarray, per_host: int) -> np.ndarray:
    """Of the least messages of a line; without end for those that are not of bits."""
    pieces = {"exchange, flat": ranks, "hierarchical": ranks / per_host}.get(line, np.zeros(len(ranks)))
    return np.divide(costs.plane_bytes(n), pieces, out=np.full(len(ranks), np.inf), where=pieces > 0)


def draw_line(axis, panel: dict, line: str, colour: str, n: int):
    """A line, dotted from where its messages are smaller than a packet."""
    ranks, times = np.array(panel["seconds"]["ranks"]), 1e3 * np.array(panel["seconds"][line])
    whole = message_bytes(line, n, ranks, panel["ranks_per_host"]) >= PACKET
    axis.plot(ranks[whole], times[whole], color=colour, lw=1.6, label=line)
    rest = ~whole | np.append(~whole[1:], False)
    axis.plot(ranks[rest], times[rest], ":", color=colour, lw=1.6)


def save(figure, picture: Path, bottom: float = 0.0):
    figure.tight_layout(rect=(0, bottom, 1, 1))
    figure.savefig(picture, dpi=130)
    plt.close(figure)
    print(picture)


def main(arguments=None):
    args = parse_arguments(arguments)
    records = [line for path in args.results for line in read(path)]
    points = model.measured(records)
    fitted = model.fit([model.setting(r, args.cores, 1e6 * args.burst_mb) for r, _ in points], [t for _, t in points])
    show_fit(fitted, points)
    constants = assumed(fitted.constants, args)

    n, panels = int(args.coordinates), []
    for per_host in sorted({1, args.ranks_per_host}):
        for gbits in args.gbits:
            rate = gbits * 1e9 / 8
            found = curves(constants, n, per_host, rate)
            limit = limits(constants, found, n, per_host, rate)
            panels.append({"gbits": gbits, "ranks_per_host": per_host, "seconds": found, "flat exchange": limit})
            show_panel(panels[-1])

    out = args.out or args.results[0].parent
    out.mkdir(parents=True, exist_ok=True)
    write(out / "scale.json", args, fitted, constants, points, panels)
    draw_fit(points, fitted, out / "fit.png")
    draw_scale(panels, n, out / "scale.png")


def assumed(constants: dict, args) -> dict:
    """The constants for predictions: the fitted ones, but for those that the command line gives.

    Raises:
        SystemExit: the results do not tell a constant that is needed.
    """
    constants = dict(constants)
    if args.alpha_us is not None:
        constants["alpha TCP"] = 1e-6 * args.alpha_us
    if args.inside_gbytes is not None:
        constants.update({"alpha memory": constants.get("alpha memory", 0.0), "eta memory": 1e-9 / args.inside_gbytes})
    needed = {"alpha TCP": "--alpha-us", "eta memory": "--inside-gbytes", "beta": "results of links with a rate"}
    for name, remedy in needed.items():
        if not constants.get(name):
            raise SystemExit(f"scale: these results do not tell {name!r}: give {remedy}")
    return constants


def show_panel(panel: dict):
    seconds, ranks = panel["seconds"], panel["seconds"]["ranks"]
    shown = sorted({round(i) for i in np.linspace(0, len(ranks) - 1, 6)})
    print(f"\n{panel['gbits']:g} Gbit/s, {panel['ranks_per_host']} rank(s) a host, milliseconds")
    print(f"  {'ranks':18}" + "".join(f"{ranks[i]:12,}" for i in shown))
    for line in (line for line in LINES if line in seconds):
        print(f"  {line:18}" + "".join(f"{1e3 * seconds[line][i]:12,.1f}" for i in shown))
    found = [f"{what} from {m:,} ranks on" for what, m in panel["flat exchange"].items() if m]
    print("  the flat exchange: " + ("; ".join(found) or "bytes are most of its time, and nothing is faster"))


def write(path: Path, args, fitted: model.Fit, constants: dict, points: list, panels: list):
    """All of it as JSON."""
    shown = ("kind", "method", "rate", "ranks", "coordinates")
    results = [
        {**{k: r[k] for k in shown}, "measured_s": t, "model_s": t * (1 + float(e))}
        for (r, t), e in zip(points, fitted.residuals, strict=True)
    ]
    errors = {name: None if math.isnan(e) else float(e) for name, e in fitted.errors.items()}
    content = {
        "coordinates": int(args.coordinates),
        "constants_s": {name: float(value) for name, value in fitted.constants.items()},
        "standard_errors_s": errors,
        "used_s": {name: float(value) for name, value in constants.items()},
        "rms_relative_error": rms(fitted.residuals),
        "fit": results,
        "predictions": panels,
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(path)
    limits = [{k: p[k] for k in ("gbits", "ranks_per_host")} | p["flat exchange"] for p in panels]
    line = {"results": len(points), "rms": content["rms_relative_error"], "constants": content["constants_s"]}
    path.with_suffix(".jsonl").unlink(missing_ok=True)
    append(path.with_suffix(".jsonl"), {**line, "errors": errors, "limits": limits, **about()})
