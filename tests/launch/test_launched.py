"""Launchers and MPI libraries that do not understand each other: said in one sentence, and no segmentation fault."""

import os
import sys
import warnings
from pathlib import Path

import pytest
from launching import launch

from horovod_sign import launched

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MPICH = ROOT / ".venv-mpich" / "bin" / "mpiexec"


def environment(**variables) -> dict:
    """The user's, as outside of any launch."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PRTE_", "HOROVOD_S"))}
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**inherited, **root, "PYTHONPATH": str(ROOT), **variables}


ALONE = {
    "srun": {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"},
    "srun --mpi=pmi2, or mpiexec of MPICH": {"PMI_SIZE": "2", "PMI_RANK": "1"},
    "another Open MPI": {"OMPI_COMM_WORLD_SIZE": "2"},
    "srun for many mpirun of 1": {"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"},
}
NOT_ALONE = {
    "no launcher": {},
    "a batch step": {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},
    "one rank": {"OMPI_COMM_WORLD_SIZE": "1", "PMI_SIZE": "1"},
    "horovodrun with one rank in a job step": {"HOROVOD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"},
    "no number": {"PMI_SIZE": "many"},
}


@pytest.fixture
def clean(monkeypatch):
    """No launcher's variables, and no warning given yet."""
    for name in ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    launched._warn.cache_clear()
    yield monkeypatch
    launched._warn.cache_clear()


@pytest.mark.parametrize("case", ALONE)
def test_n_separate_trainings_are_noticed_once(clean, case):
    for name, value in ALONE[case].items():
        clean.setenv(name, value)
    with pytest.warns(RuntimeWarning, match=r"alone \(rank 0 of 1\), though \w+ says that 2 were started"):
        launched.warn_if_alone(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        launched.warn_if_alone(1)  # once is enough
        launched._warn.cache_clear()
        launched.warn_if_alone(2)  # all is well


@pytest.mark.parametrize("case", NOT_ALONE)
def test_no_false_alarm(clean, case):
    for name, value in NOT_ALONE[case].items():
        clean.setenv(name, value)
    assert launched.alone_among_many(1) is None


@pytest.mark.fault("separate", "torch")
@pytest.mark.skipif(not MPICH.exists(), reason="no environment with MPICH (ci/mpich.sh --setup)")
def test_report_under_the_mpiexec_of_another_mpi():
    command = [MPICH, "-n", "2", sys.executable, HERE / "without.py", "horovod_sign.torch", "horovod_sign.tensorflow"]
    status, output = launch(command, 100, env=environment(), cwd=ROOT)
    assert status == 1, output
    assert output.count("ERROR: this process is alone (rank 0 of 1), though PMI_SIZE says that 2 were") == 1, output


@pytest.fixture(scope="module")
def foreign():
    """Two ranks of Open MPI whose mpi4py was told to load MPICH."""
    paths = f"{MPICH.parents[1] / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    variables = environment(MPI4PY_MPIABI="mpich", LD_LIBRARY_PATH=paths)
    command = [ROOT / "ci" / "run", "2", sys.executable, HERE / "foreign_mpi_worker.py"]
    status, output = launch(command, 200, env=variables, cwd=ROOT)
    assert status == 0, output
    return output


@pytest.mark.fault("another-mpi", "torch")
def test_an_mpi4py_of_another_mpi_is_not_loaded(foreign):
    assert "would load libmpi.so.12" in foreign and "unset MPI4PY_MPIABI" in foreign
    assert "wrapping: 1 warning: votes go by Horovod's engine alone: mpi4py would load" in foreign, foreign
    assert "stepped to [-0.1" in foreign and "on 2" in foreign, foreign
    assert "majority_vote: ImportError: majority_vote needs mpi4py: mpi4py would load" in foreign, foreign
    assert "node_process_sets: ValueError: hvs.node_process_sets() needs mpi4py: mpi4py would load" in foreign


def test_the_report_then_votes_by_horovod(foreign):
    assert "[ ] mpi4py, which horovod_sign.majority_vote needs (mpi4py would load" in foreign, foreign
    assert foreign.count("Self-test of 2 ranks over MPI, by Horovod: votes by exchange and counts are") == 1, foreign


@pytest.mark.fault("not-initialised", "torch")
def test_horovod_not_initialised_is_one_sentence(foreign):
    assert "before init: ValueError: Horovod is not initialised: call hvd.init() before" in foreign, foreign
