"""All benchmarks by one command: python -m benchmarks NAME [OPTIONS], under mpirun where ranks are needed."""

import importlib
import sys

NAMES = {
    "kernels": "the kernels for CPUs beside plain loops over the same memory (one process)",
    "vote": "the vote alone, six ways side by side (mpirun)",
    "step": "a training step of a ResNet-50-sized model, ways side by side (mpirun)",
    "adapters": "a vote and a step by the PyTorch and by the TensorFlow adapter (mpirun)",
    "walk": "which files one gradient enters from its hook to the update (mpirun)",
    "gpu": "kernels and training steps on a GPU (see --help)",
    "accuracy": "time to a test accuracy, votes beside float16, DDP and PowerSGD (see --help)",
    "advise": "what `python -m horovod_sign advise` predicts, as records (mpirun)",
    "figures": "writes the documentation's tables from records in docs/figures (one process)",
    "plot": "draws what vote and step measured (one process)",
    "scale": "fits a cost model to what vote and step measured, and predicts thousands of ranks (one process)",
}


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in NAMES:
        listed = "\n".join(f"  {each:10}{what}" for each, what in NAMES.items())
        print(f"python -m benchmarks NAME [OPTIONS]\n\n{listed}\n\nEach has a --help. benchmarks/run.sh runs vote and "
              "step on hosts that it makes, with links of several rates.")  # fmt: skip
        sys.exit(0 if name in ("--help", "-h") else f"there is no benchmark {name!r}")
    sys.argv[:2] = [f"python -m benchmarks {name}"]
    importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
