"""What the votes of a rank tell its user, once each: gradients with NaN, and that it disagrees with all others.

The graph finds out, and calls Python only when there is something to tell, so a step neither waits nor returns for it.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from horovod_sign.statistics import MARGIN, PATIENCE, chance_agreement, nan_report, systematic_disagreement


def call_if(condition: tf.Tensor, function: Callable[[], Any]) -> None:
    """Calls a function in the graph, for what it does, where `condition` is true."""

    def call() -> None:
        function()

    tf.cond(condition, call, lambda: None)


class Reports:
    """The reports of one optimizer's or compression's votes.

    Attributes:
        voter: who votes here: "rank 3".
    """

    def __init__(self) -> None:
        self.voter = ""
        self._said: set[str] = set()

    def tell_nans(self, nans: tf.Tensor, labels: list[str], sizes: list[int]) -> None:
        """Names the first gradient that has NaN. For a branch of the graph that is taken only if one has.

        Args:
            nans: int64 vector, of each gradient.
            labels, sizes: what they are of, and their coordinates.
        """

        def tell(counts: np.ndarray) -> None:
            i = int(np.flatnonzero(counts)[0])
            self._warn("nans", nan_report(self.voter, labels[i], int(counts[i]), sizes[i]))

        tf.numpy_function(tell, [nans], [])

    def tell_disagreement(self, measured: tf.Tensor, mean: tf.Tensor, size: int, abstain: bool) -> None:
        """Looks, after a step, whether this rank agrees with the vote less than random votes would.

        Args: as of `statistics.systematic_disagreement`.
        """
        if size <= 2:  # nobody can tell which of two is wrong
            return

        def tell(measured: np.ndarray, mean: np.ndarray) -> None:
            text = systematic_disagreement(self.voter, size, abstain, int(measured), float(mean))
            if text is not None:
                self._warn("disagrees", text)

        suspicious = (measured >= PATIENCE) & (mean < chance_agreement(size, abstain) - MARGIN)
        call_if(suspicious, lambda: tf.numpy_function(tell, [measured, mean], []))

    def _warn(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(text, RuntimeWarning, stacklevel=2)
