"""All benchmarks that need ranks, one after the other in the same processes, on few coordinates: RESULTS_FILE"""

import sys

from benchmarks import adapters, step, vote

FEW = ["--coordinates", "1e4", "--rounds", "2"]

if __name__ == "__main__":
    results = ["--json", sys.argv[1]]
    step.main([*FEW, *results, "--pause-ms", "20", "--methods", *step.METHODS])  # first: Horovod starts in it
    vote.main([*FEW, *results, "--abstain"])
    adapters.main([*FEW, "--momentum", "0.9"])
