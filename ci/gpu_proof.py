"""Shows what a build of Horovod for GPUs has in it, and votes once on CPU tensors: no GPU is needed.

    mpirun -np 2 python ci/gpu_proof.py torch|tensorflow

Two rounds: a vote of horovod_sign's, against NumPy, and Horovod's own float32 average. Every rank checks its own
results; rank 0 prints.
"""

import sys

import numpy as np

N = 10_001


def gradient(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal(N).astype(np.float32)


def prove_torch():
    import horovod.torch as hvd
    import torch

    import horovod_sign.torch as hvs

    hvd.init()
    x = torch.nn.Parameter(torch.zeros(N))
    optimizer = hvs.DistributedOptimizer(hvs.SignSGD([x], lr=1.0), named_parameters=[("x", x)])
    (x * torch.from_numpy(gradient(hvd.rank()))).sum().backward()
    optimizer.step()
    mean = hvd.allreduce(torch.from_numpy(gradient(hvd.rank())), name="mean")
    gpu = f"CUDA {torch.version.cuda}, a GPU here: {'yes' if torch.cuda.is_available() else 'no'}"
    return hvd, f"torch {torch.__version__}, {gpu}", -x.detach().numpy(), mean.numpy()


def prove_tensorflow():
    import horovod.tensorflow as hvd
    import tensorflow as tf

    import horovod_sign.tensorflow as hvs

    hvd.init()
    x = tf.Variable(tf.zeros(N))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(x * gradient(hvd.rank()))
    tape = hvs.DistributedGradientTape(tape, compression=hvs.Compression.signsgd())
    vote = tape.gradient(loss, [x])[0]
    mean = hvd.allreduce(tf.constant(gradient(hvd.rank())), name="mean")
    built = tf.sysconfig.get_build_info()
    gpu = f"CUDA {built.get('cuda_version')}, a GPU here: {'yes' if tf.config.list_physical_devices('GPU') else 'no'}"
    return hvd, f"tensorflow {tf.__version__}, {gpu}", vote.numpy(), mean.numpy()


def main():
    hvd, framework, vote, mean = {"torch": prove_torch, "tensorflow": prove_tensorflow}[sys.argv[1]]()
    gradients = np.stack([gradient(rank) for rank in range(hvd.size())])
    np.testing.assert_array_equal(vote, np.sign(np.sign(gradients).sum(0)))
    np.testing.assert_allclose(mean, gradients.mean(0), atol=1e-6)
    assert hvd.nccl_built() and hvd.cuda_built() and hvd.mpi_built(), "not a build with NCCL, CUDA and MPI"
    if hvd.rank() == 0:
        built = ", ".join(f"{part} {getattr(hvd, part + '_built')()}" for part in ("mpi", "gloo", "nccl", "cuda"))
        print(f"{framework}; horovod: {built}")
        print(f"{hvd.size()} ranks: a vote on {N:,} coordinates equals NumPy's, Horovod's average too", flush=True)
    hvd.shutdown()


if __name__ == "__main__":
    main()
