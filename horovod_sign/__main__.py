"""`python -m horovod_sign`: what this installation can do, what is wrong, and under mpirun a vote of all ranks.

python -m horovod_sign
mpirun -np 4 python -m horovod_sign
python -m horovod_sign --json
mpirun -np 4 python -m horovod_sign advise --parameters 25.6e6
"""

import argparse
import sys
import time
from typing import Any

from horovod_sign.advise import command as advise
from horovod_sign.doctor import command as doctor
from horovod_sign.launched import speaks

_AHEAD = 2.0  # seconds that the rank that speaks has before another one ends in failure: mpirun then ends all


class _Parser(argparse.ArgumentParser):
    """One that speaks on one rank only."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if speaks():
            super()._print_message(message, file)


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    options = _parser().parse_args(arguments)
    return options.run(options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m horovod_sign",
        description="Says what this installation can do, what is wrong with it and what to do. Put it in place of your "
        "program behind mpirun or horovodrun, and all ranks vote once. The exit status is 1 if no training could work.",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON, for a bug report")
    parser.set_defaults(run=lambda options: doctor.run(options.json))
    commands = parser.add_subparsers(title="commands", metavar="command")
    about = "measures the links between the ranks, and says what votes would cost a step"
    advise.add_arguments(commands.add_parser("advise", help=about, description=f"{about}.".capitalize()))
    return parser


def _exit() -> None:
    try:
        status = main()
    except SystemExit as ended:  # argparse's
        status = ended.code
    if status and not speaks():
        time.sleep(_AHEAD)
    sys.exit(status)


if __name__ == "__main__":
    _exit()
