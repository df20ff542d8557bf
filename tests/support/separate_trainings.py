"""A process that was started with others, and does not know of them, is told so once."""

import warnings

import pytest

from horovod_sign import launched


def assert_warned_of_once(monkeypatch, ask):
    """`ask` warns the first time, where the environment is that of a plain `srun -n 2`."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    launched._warn.cache_clear()
    with pytest.warns(RuntimeWarning, match="SLURM_STEP_NUM_TASKS says that 2 were started together"):
        ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask()
    launched._warn.cache_clear()
