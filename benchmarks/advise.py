"""What `python -m horovod_sign advise` predicts here, as records to compare with what step measures.

mpirun -np 4 python -m benchmarks advise --rate 1gbit --json advise.jsonl
"""

import argparse

from mpi4py import MPI

from benchmarks.measuring import save
from horovod_sign.advise import command


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__ and __doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=25.6e6, help="of the model; default: 25,600,000")
    parser.add_argument("--rate", default="unshaped", help="what the links are shaped to, for the record")
    parser.add_argument("--json", help="file to append results to")
    options = parser.parse_args(arguments)
    # On the links that are here; none are assumed.
    advice = command.advise(int(options.parameters), None, MPI.COMM_WORLD, argparse.Namespace(gbits=[]))
    what = {"kind": "advise", "rate": options.rate, "coordinates": advice["parameters"], "ranks": MPI.COMM_WORLD.size}
    (found,) = advice["predictions"]
    records = [{**what, "method": name, "ms": 1e3 * s} for name, s in found["now"].items() if s is not None]
    save(options.json, records)
    if MPI.COMM_WORLD.rank == 0:
        print(f"advise, {MPI.COMM_WORLD.size} ranks, {options.rate}, ms:",
              ", ".join(f"{r['method']} {r['ms']:,.0f}" for r in records), flush=True)  # fmt: skip
