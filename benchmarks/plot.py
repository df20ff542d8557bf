"""Draws the results of vote and step, one PNG a table, beside the file: python -m benchmarks plot RESULTS.jsonl"""

import argparse
import itertools
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from recording import read

COLOURS = {"float32": "#777777", "float16": "#aaaaaa", "byte_allgather": "#c8a951", "bit_allgather": "#8c9c5a"}
OURS = "#2a6f97"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="file that vote and step wrote by --json")
    path = parser.parse_args(arguments).results
    records = read(path)
    key = lambda r: (r["kind"], r["rate"], r.get("pause_ms", 0.0))  # noqa: E731
    for (kind, rate, pause), group in itertools.groupby(sorted(records, key=key), key):
        where = f"{rate}, backward sleeps {pause:g} ms" if pause else rate
        name = f"{kind}-{rate}-pause-{pause:g}ms" if pause else f"{kind}-{rate}"
        picture = path.with_name(f"{name.replace(' ', '-')}.png")
        draw(kind, where, list(group), picture)
        print(picture)


def draw(kind: str, where: str, records: list[dict], picture: Path):
    """Bars by method, one panel for each number of ranks and of coordinates in milliseconds."""
    panels = sorted({(r["coordinates"], r["ranks"]) for r in records})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(max(3.2 * len(panels) + 1.6, 7), 3.4), squeeze=False, sharey=True
    )
    for axis, (coordinates, ranks) in zip(axes[0], panels, strict=True):
        rows = [r for r in records if (r["coordinates"], r["ranks"]) == (coordinates, ranks)]
        alone = next((r["ms"] for r in rows if r["method"] == "backward"), 0.0)
        rows = [r for r in rows if r["method"] != "backward"]
        names, times = [r["method"] for r in rows], [max(r["ms"] - alone, 0.01) for r in rows]
        bars = axis.barh(names, times, color=[COLOURS.get(name, OURS) for name in names])
        axis.bar_label(bars, [f"{t:,.0f}" if t >= 10 else f"{t:.2g}" for t in times], padding=3, fontsize=8)
        axis.set(title=f"{coordinates / 1e6:.3g} M coordinates, {ranks} ranks", xlabel="ms")
        axis.set_xlim(0, max(times) * 1.2)
        axis.title.set_fontsize(9)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    what = "the vote alone" if kind == "vote" else "what the optimizer adds to a backward alone"
    figure.suptitle(f"{what}, {where} (median; less is better)", fontsize=10)
    figure.tight_layout()
    figure.savefig(picture, dpi=130)
    plt.close(figure)
