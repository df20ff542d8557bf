"""What docs/results.md says of its records: what examples/reproduce measured, and trainings beside other methods."""

import statistics
from typing import NamedTuple

from recording import find, markdown

from benchmarks.tables import LINKS, caption, number

GOAL = 0.85  # of test images, in benchmarks/accuracy
_POWERSGD_FROM = 2  # its first steps are float32's: see benchmarks/accuracy/simulated.py


class Row(NamedTuple):
    """One line of the table: some of the checks of a script, side by side.

    Attributes:
        result: what they are of.
        script: of examples/reproduce.
        checks: their names in the records; those that only add to the one before have both names.
        derived: where the expected figures are from.
    """

    result: str
    script: str
    checks: list[str]
    derived: str = ""


def _each(numbers, form: str) -> list[str]:
    return [form.format(n) for n in numbers]


ROWS = [
    Row(
        "Toy problem ([B18], Figure A.1), 50 repeats: SGD, f at step 1,000 and 10,000",
        "toy_problem",
        _each(("1,000", "10,000"), "SGD, step {}, mean of 50"),
        "closed form",
    ),
    Row("1,000 repeats", "toy_problem", _each(("1,000", "10,000"), "SGD, step {}, mean of 1,000"), "closed form"),
    Row(
        "the same, signSGD, 50 repeats",
        "toy_problem",
        _each(("1,000", "10,000"), "signSGD, step {}, mean of 50"),
        "closed form, and exact",
    ),
    Row(
        "1,000 repeats",
        "toy_problem",
        _each(("1,000", "10,000"), "signSGD, step {}, mean of 1,000"),
        "closed form, and exact",
    ),
    Row(
        "More voters, less noise ([B18], Theorem 2): where f settles with 1, 3, 9, 27, 81 voters",
        "more_voters",
        _each((1, 3, 9, 27, 81), "{} voters, f after long"),
        "exact",
    ),
    Row("even numbers: 2, 4, 16 voters", "more_voters", _each((2, 4, 16), "{} voters, f after long"), "exact"),
    Row(
        "f falls from 3 to 81 voters by M to the power of",
        "more_voters",
        ["f falls by M to the power of (3 to 81 voters)"],
        "exact; -0.5 for many",
    ),
    Row(
        "Votes that are wrong or tie, 11 numbers of voters to 27, S = 0.1 to 1: of 132 probabilities the farthest",
        "error_probability",
        ["wrong votes and ties: 132 probabilities, the farthest"],
        "binomial tail",
    ),
    Row(
        "27 voters, 0 to 18 invert: of 114 probabilities the farthest",
        "error_probability",
        ["27 voters, some hostile: 114 probabilities, the farthest"],
        "sum of two binomials",
    ),
    Row(
        "over 1 / (√M S), and over 1 / ((1 - 2α) √M S) ([B18], [B19], Theorems 2), the largest",  # noqa: RUF001
        "error_probability",
        ["wrong votes over 1 / (sqrt(M) S), the largest", "the same over 1 / ((1 - 2 alpha) sqrt(M) S)"],
    ),
    Row(
        "skewed noise, where the vote must fail: 27 voters wrong (by 1 voter: 0.6)",
        "error_probability",
        ["skewed noise, 27 voters: vote worse than 1 voter, mean better"],
        "binomial",
    ),
    Row(
        "27 voters, some invert ([B19], toy experiment): f at step 600 for 0, 8, 12, 13, 14",
        "byzantine",
        _each((0, 8, 12, 13, 14), "{} of 27 hostile, f at step 600"),
        "exact",
    ),
    Row(
        "7 real ranks, a network ([B19]): 0, 1, 2, 3 of 7 hostile; test accuracy, %",
        "byzantine_ranks",
        _each(range(4), "vote, {} of 7 hostile: test accuracy, %"),
        "they learn",
    ),
    Row(
        "4 of 7 hostile",
        "byzantine_ranks",
        ["vote, 4 of 7 hostile: test accuracy, %"],
        "it unlearns; chance is 10",
    ),
    Row(
        "averaging: none, one of 7 sends -10 times its gradient",
        "byzantine_ranks",
        _each(("none sends", "1 sends"), "mean, {} -10 times its gradient: test accuracy, %"),
        "learns; unlearns",
    ),
    Row(
        "Ties: 2, 4, 8, 32 voters with sign(0) = +1 settle at",
        "ties_and_zeros",
        _each((2, 4, 8, 32), "{} voters, sign(0) = +1: mean of x"),
        "exact",
    ),
    Row(
        "the same with ties that are 0",
        "ties_and_zeros",
        _each((2, 4, 8, 32), "{} voters, ties are 0: mean of x"),
        "exact",
    ),
    Row(
        "a row that no batch touches, after 1,000 steps of 0.01: moved by, with ties that are 0, and with sign(0) = +1",
        "ties_and_zeros",
        [
            "row never seen, ties and zeros are 0: moved in 1,000 steps",
            "row never seen, sign(0) = +1: moved in 1,000 steps",
        ],
    ),
    Row(
        "SGD's rate ([B18]): mean of |g|₂² after 10, 100, 1,000, 3,000 steps, and its bound",
        "rates",
        _each(("10", "100", "1,000", "3,000"), "SGD, {} steps: mean of |g|_2^2"),
        "(2 (f₀ - f*) + |σ|₂²)/√K",  # noqa: RUF001
    ),
    Row(
        "the same beside what is derived",
        "rates",
        _each(("10", "100", "1,000", "3,000"), "SGD, {} steps: mean of |g|_2^2, as derived"),
        "exact",
    ),
    Row(
        "signSGD's rate ([B18], Theorem 1): mean of |g|₁, and its bound",
        "rates",
        _each(("10", "100", "1,000", "3,000"), "signSGD, {} steps: mean of |g|_1"),
    ),
    Row(
        "the same beside what is derived",
        "rates",
        _each(("10", "100", "1,000", "3,000"), "signSGD, {} steps: mean of |g|_1, as derived"),
        "exact",
    ),
    Row(
        "the vote's rate ([B18], Theorem 2 (b)): 1, 3, 27, 81 voters after 1,000 steps, and its bound",
        "rates",
        _each((1, 3, 27, 81), "{} voters, 1,000 steps: mean of |g|_1"),
    ),
    Row(
        "the same beside what is derived",
        "rates",
        _each((1, 3, 27, 81), "{} voters, 1,000 steps: mean of |g|_1, as derived"),
        "exact",
    ),
    Row(
        "Shards of one class each, 10 workers: points that SGD by means is ahead of the vote",
        "sorted_labels",
        ["one class a worker: points by which the mean is ahead of the vote"],
        "a median is no mean: [C19]",
    ),
    Row(
        "points that shuffling, or noise of each worker's own, gives the vote",
        "sorted_labels",
        ["points that shuffling gives the vote", "one class a worker: points that noise gives the vote"],
    ),
    Row(
        "Counterexample 1 ([K19]): signSGD's x (worst 1, best -1); by batches of 64",
        "counterexamples",
        ["1: signSGD, x (worst: 1, best: -1)", "1: batch 64, x"],
        "exact",
    ),
    Row("the same by a vote of 27; by Signum 0.9", "counterexamples", ["1: vote of 27, x", "1: Signum, x"]),
    Row(
        "Counterexample 2: signSGD's f (least: 0); by Signum",
        "counterexamples",
        ["2: signSGD, f (least: 0)", "2: Signum, f"],
    ),
    Row(
        "Counterexample 3: x₁ + x₂ moves by, with signSGD and a vote of 27; f (least: 0)",
        "counterexamples",
        [
            "3: signSGD, x1 + x2 moves by at most",
            "3: vote of 27, x1 + x2 moves by at most",
            "3: signSGD, f (least: 0)",
            "3: vote of 27, f",
        ],
    ),
    Row(
        "the same, f by both examples in a batch; by Signum",
        "counterexamples",
        ["3: both examples in a batch, f", "3: Signum, f"],
    ),
    Row(
        "Learning rates: SGD, signSGD by vote, Signum 0.9, Signum 0.99, Lion, signSGD with one bit at their best, %",
        "learning_rates",
        [
            f"{method}: test accuracy at its best rate, %"
            for method in (
                "SGD",
                "signSGD by vote",
                "Signum, momentum 0.9",
                "Signum, momentum 0.99",
                "Lion, betas 0.9 and 0.99",
                "signSGD, one bit",
            )
        ],
        "SGD's less 2 points",
    ),
]


def reproduced_table(records) -> str:
    """All that the scripts measured that docs/results.md is about, and how many checks they have in all."""
    lines = _named(records["reproduced.jsonl"])
    there = {(line["script"], line["what"]): line for line in lines}
    rows = [["result", "expected", "measured", "tolerance", "command"]]
    for row in ROWS:
        of = [there[row.script, check] for check in row.checks]
        derived = row.derived and f" ({row.derived})"
        cells = [", ".join(dict.fromkeys(_plain(line[key]) for line in of)) for key in ("expected", "tolerance")]
        measured = ", ".join(_plain(line["measured"]) for line in of)
        rows.append([row.result, cells[0] + derived, measured, cells[1], f"`{row.script}`"])
    hold = sum(line["holds"] for line in lines)
    all_of = f"Of all {len(lines)} checks that the scripts print, {hold} came out as expected. "
    table = markdown([[cell.replace("|", "\\|") for cell in row] for row in rows])
    return f"{table}\n\n{all_of}{caption(lines, 'reproduced.jsonl', 'examples/reproduce/all.sh')}"


def _named(lines: list[dict]) -> list[dict]:
    """With the name of the check before, where one only adds to that."""
    named, before = [], ""
    for line in lines:
        what = line["what"]
        before = before if what.startswith(" ") else what
        named.append(line if what == before else {**line, "what": f"{before}, {what.strip()}"})
    return named


def _plain(text: str) -> str:
    for old, new in (("<=", "≤"), (">=", "≥"), ("+-", "±")):
        text = text.replace(old, new)
    return text


OPTIMIZERS = {"sgd": "SGD with momentum", "adam": "Adam", "signsgd": "signSGD", "signum": "Signum"}


def resnet_table(records) -> str:
    """ResNet-20 on four ranks, all seeds."""
    lines = find(records["../results/resnet20/trainings.jsonl"], framework="torch", ranks=4)
    rows = [["ResNet-20 on 4 ranks", "test accuracy after 6 epochs", "MB sent by each rank in all"]]
    for optimizer, name in OPTIMIZERS.items():
        of = find(lines, optimizer=optimizer)
        ends = [100 * line["accuracy"][-1] for line in of]
        spread = f"{statistics.mean(ends):.1f} % ({min(ends):.1f} to {max(ends):.1f}, {len(ends)} seeds)"
        rows.append([name, spread, number(of[0]["bytes"][-1] / 1e6)])
    about = caption(lines, "trainings.jsonl", "examples/reproduce/resnet20.sh", "results/resnet20")
    return f"{markdown(rows)}\n\n{about}"


METHODS = {
    "float16": "Horovod, float16",
    "powersgd_4": "DDP, PowerSGD rank 4",
    "signum": "Signum",
    "signum_one_bit": "Signum, one bit",
    "signsgd": "SignSGD",
}


def steps_to_goal(curve: list[list[float]]) -> float | None:
    """Where the straight line between evaluations first reaches the goal; None: it does not."""
    before = (0.0, 0.1)
    for step, accuracy in curve:
        if accuracy >= GOAL:
            return before[0] + (step - before[0]) * (GOAL - before[1]) / (accuracy - before[1])
        before = (step, accuracy)
    return None


def wins_table(records) -> str:
    """Steps and seconds to the goal of some methods, and what a host sends."""
    folder = "../results/time-to-accuracy"
    curves = [line for line in records[f"{folder}/curves.jsonl"] if (line["steps"], line.get("workers", 4)) == (234, 4)]
    timed = records[f"{folder}/seconds.jsonl"]
    rows = [["", "MB a step", f"steps to {GOAL:.0%}, each seed", *(f"{link}: seconds" for link in LINKS.values())]]
    used = []
    for method, name in METHODS.items():
        runs = _at_best([line for line in curves if line["method"] == method])
        steps = [steps_to_goal(run["curve"]) for run in runs]
        of = {rate: find(timed, method=method, rate=rate)[-1] for rate in LINKS}
        used += [*runs, *of.values()]
        first = find(timed, method="float32" if method.startswith("powersgd") else method)
        cells = []
        for rate in LINKS:
            early = find(first, rate=rate)[-1]["ms"]
            seconds = [
                float("inf")
                if step is None
                else 1e-3 * (min(step, _POWERSGD_FROM) * early + max(step - _POWERSGD_FROM, 0) * of[rate]["ms"])
                for step in steps
            ]
            middle = statistics.median(seconds)
            cells.append(f"{middle:.1f}" if middle < 1e9 else "not reached")
        sent = f"{of['100mbit']['bytes'] / 1e6:.2f}"
        rows.append([name, sent, ", ".join(f"{s:.0f}" if s else "not reached" for s in steps), *cells])
    about = caption(used, "seconds.jsonl", "sudo benchmarks/accuracy/run.sh", "results/time-to-accuracy")
    return f"{markdown(rows)}\n\n{about}"


def _at_best(lines: list[dict]) -> list[dict]:
    """The runs of all seeds at the learning rate that has them all, which is the best of those tried with seed 0."""
    rates = {line["lr"] for line in lines}
    most = max(rates, key=lambda lr: len({line["seed"] for line in find(lines, lr=lr)}))
    return sorted(find(lines, lr=most), key=lambda line: line["seed"])


def demo_row(optimizer: str):
    """README's: one of the two trainings of ci/demo.sh."""

    def row(records) -> str:
        lines = find(records["demo.jsonl"], optimizer=optimizer)
        last, reached = lines[-1], next(line for line in lines if line["accuracy"] >= 0.88)
        cells = [f"{100 * last['accuracy']:.2f} %", f"{last['bytes'] / last['step']:,.0f}"]
        return " | ".join([*cells, f"{1e3 * last['seconds'] / last['step']:.0f}", f"{reached['seconds']:.0f}"])

    return row


def builds(records) -> str:
    """What Horovod's build takes: the latest of each kind, and the first of both frameworks."""
    lines = records["builds.jsonl"]
    latest = {line["frameworks"]: line for line in lines}
    each = ", ".join(
        f"{number(line['processor_s'])} s for {name}" + " alone" * (name != "both") for name, line in latest.items()
    )
    before = find(lines, frameworks="both")[0]
    return (
        f"{each} of processor time, of two cores at once (before it was changed at {latest['both']['commit']}: "
        f"{number(before['processor_s'])} s for both; {latest['both']['date']}, [builds.jsonl](figures/builds.jsonl))"
    )


FIGURES = {
    "builds": builds,
    "reproduced": reproduced_table,
    "resnet20": resnet_table,
    "wins": wins_table,
    "demo-sgd": demo_row("sgd"),
    "demo-signum": demo_row("signum"),
}
