"""The advice as text."""

from horovod_sign.advise.verdict import verdict

ACCURACY = (
    "Beside training steps on links of 0.1, 1 and 10 Gbit/s 22 of 30 predictions were between half and twice what was\n"
    "measured (docs/advise.md). Collectives are timed by MPI: NCCL may be faster for floats."
)
_COLUMNS = (2, 4, 8, 16, 64, 256, 1024)


def lines(advice: dict) -> list[str]:
    """What `command.advise` found, to be printed."""
    parameters, step = advice["parameters"], advice["step_s"]
    said = [
        f"{parameters:,} parameters; the rest of a step: {'not given' if step is None else f'{1e3 * step:,.1f} ms'}"
    ]
    for each in advice["predictions"]:
        said += ["", each["where"], *_table(each), *verdict(each["now"] or each["at"][str(_COLUMNS[2])], step)]
    return [*said, "", ACCURACY]


def _table(each: dict) -> list[str]:
    """A row for each method: milliseconds at some numbers of ranks, and megabytes, steps and hours at this number."""
    now, sent = each["now"], each["sent_bytes"]
    ranks = [number for number in each["at"] if int(number) in _COLUMNS]
    head = [f"{'ms a step, at ranks':22}", *([f"{'these ' + str(each['ranks']):>10}"] if now else [])]
    rows = ["".join([*head, *(f"{int(number):>9,}" for number in ranks), f"{'MB sent':>10}", f"{'steps/h':>16}"])]
    for method, there in each["at"][ranks[-1]].items():
        if there is None and not (now and now[method] is not None):
            continue
        cells = [f"{method:22}", *([_cell(now[method], 10)] if now else [])]
        cells += [_cell(each["at"][number][method], 9) for number in ranks]
        rows.append("".join([*cells, f"{sent[method] / 1e6:>10,.2f}", f"{each['steps_an_hour'][method]:>16}"]))
    return rows


def _cell(seconds: float | None, width: int) -> str:
    return f"{'-' if seconds is None else f'{1e3 * seconds:,.1f}':>{width}}"
