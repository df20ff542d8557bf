"""Rules as a user of TensorFlow writes them, and what they are in NumPy."""

import numpy as np
import simulation
import tensorflow as tf

import horovod_sign.tensorflow as hvs


class Muon(hvs.Rule):
    """The sign of an orthogonalised momentum; of vectors, of the momentum itself."""

    states = ("momentum",)

    def ballot(self, gradient, momentum):
        momentum = 0.75 * momentum + gradient
        return orthogonalised(momentum), momentum


class TwoMomenta(hvs.Rule):
    """Votes on the difference of a fast and a slow momentum, after two steps on gradients."""

    states = ("fast", "slow")
    warmup_steps = 2

    def __init__(self, betas: tuple[float, float] = (0.5, 0.875)):
        self.both = betas

    def ballot(self, gradient, fast, slow):
        fast, slow = self.both[0] * fast + gradient, self.both[1] * slow + gradient
        return tf.cast(fast - slow, tf.float64), fast, slow


class Clipped(hvs.Rule):
    """Abstains where a gradient is small; no states."""

    def ballot(self, gradient):
        return gradient * tf.cast(tf.abs(gradient) > 0.5, tf.float32)


class Wrong(hvs.Rule):
    """Returns what it must not."""

    def ballot(self, gradient):
        return gradient[:1]


def orthogonalised(x: tf.Tensor) -> tf.Tensor:
    """By Newton and Schulz."""
    if len(x.shape) < 2:
        return x
    y = x / (tf.norm(x) + 1e-7)
    for _ in range(3):
        z = y @ tf.transpose(y)
        y = 3.4445 * y + (-4.775 * z + 2.0315 * z @ z) @ y
    return y


def _muon(g, m):
    m = m * np.float32(0.75) + g
    # TensorFlow's own products: in which order a library adds, and so how it rounds, is its own affair.
    return orthogonalised(tf.constant(m)).numpy(), m


MUON = simulation.Own(_muon, 1)
CLIPPED = simulation.Own(lambda g: (g * (np.abs(g) > np.float32(0.5)),), 0)
