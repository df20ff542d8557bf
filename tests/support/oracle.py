"""The vote by NumPy, as its definition says, and the inputs that break other implementations."""

import ml_dtypes
import numpy as np

DTYPES = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]


def vote(all_x, abstain: bool = True) -> np.ndarray:
    """The vote of ranks that bring the arrays `all_x`: int8, by the rules of abstain=True or False."""
    x = np.stack([np.asarray(x).astype(np.float64) for x in all_x])
    if abstain:
        signs = np.sign(np.nan_to_num(x, nan=0.0))
        return np.sign(signs.sum(0)).astype(np.int8)
    signs = np.where(x < 0, -1, 1)
    return np.where(signs.sum(0) < 0, -1, 1).astype(np.int8)


def edge_values(dtype) -> np.ndarray:
    """Zeros, NaN and infinities of both signs, the least and the greatest numbers."""
    info = ml_dtypes.finfo(dtype)
    least, greatest = info.smallest_subnormal, info.max
    values = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, least, -least, greatest, -greatest, 1.0, -1.0]
    return np.array(values, dtype)


def gradients(rank: int, n: int, dtype, seed: int = 0, edges: bool = True) -> np.ndarray:
    """Random numbers of a rank, every third or so an edge value."""
    random = np.random.default_rng([seed, rank, n])
    x = random.standard_normal(n).astype(dtype)
    if edges and n:
        special = random.random(n) < 0.3
        x[special] = random.choice(edge_values(dtype), special.sum())
    return x
