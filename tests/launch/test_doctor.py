"""What `python -m horovod_sign` says is wrong, and what to do, for each thing that can be; the exit status; JSON."""

import json
import os
import sys
import types
from pathlib import Path

import doctor_facts
import pytest
from launching import launch

import horovod_sign
from horovod_sign.doctor import command, facts
from horovod_sign.doctor.findings import ERROR, NOTE, WARNING, Finding, examine, examine_ranks
from horovod_sign.doctor.tested import TESTED

ROOT = Path(__file__).resolve().parents[2]
BROKEN = {"works": False, "why_not": "it needs PyTorch (no module): pip install torch", "framework": True}
MISSING = {**BROKEN, "framework": False}
MPIRUN = {"by": "OMPI_COMM_WORLD_SIZE", "started": 2}


def changed(**parts) -> dict:
    """Facts where all is well, but for these; `launch` and the like are changed in part."""
    facts = doctor_facts.healthy()
    return facts | {name: facts[name] | value for name, value in parts.items()}


def variables(launch=None, **values):
    return changed(launch={**(launch or {}), "variables": values})


def built(**features):
    facts = doctor_facts.healthy()
    return {"built_with": facts["horovod"]["built_with"] | features}


WRONG = {
    "one framework": (
        changed(adapters={"torch": BROKEN}),
        WARNING,
        "torch does not work: it needs PyTorch",
        "pip inst",
    ),
    "every framework": (
        changed(adapters={"torch": BROKEN, "tensorflow": BROKEN, "tensorflow.keras": BROKEN}),
        ERROR,
        "horovod_sign.tensorflow does not work",
        "pip install torch",
    ),
    "no framework, no MPI": (
        changed(
            adapters={"torch": MISSING, "tensorflow": MISSING, "tensorflow.keras": MISSING},
            mpi={"library": None, "why_not": "mpi4py is not installed: pip install mpi4py"},
        ),
        ERROR,
        "neither PyTorch nor TensorFlow",
        "pip install torch",
    ),
    "no Horovod": (
        changed(horovod={"installed": False, "built_with": None}),
        ERROR,
        "Horovod is not inst",
        "HOROVOD_CMAKE",
    ),
    "Horovod without MPI": (changed(horovod=built(mpi=False), launch=MPIRUN), ERROR, "built without it", "horovodrun"),
    "Horovod without Gloo": (
        changed(horovod=built(gloo=False), launch={"by": "HOROVOD_SIZE", "started": 2}),
        ERROR,
        "built without Gloo",
        "HOROVOD_WITH_GLOO=1",
    ),
    "crash": (variables(MPIRUN, HOROVOD_CPU_OPERATIONS="gloo"), ERROR, "CPU_OPERATIONS=gloo", "unset HOROVOD_CPU_OP"),
    "Slurm": (variables(SLURM_NTASKS="4"), NOTE, "Slurm gave 4 tasks", "srun --mpi=pmix"),
    "elastic": (variables(HOROVOD_ELASTIC="1"), WARNING, "no elastic job", "unset HOROVOD_ELASTIC"),
    "another MPI": (
        changed(mpi={"library": None, "why_not": "mpi4py would load libmpi.so.12 and crash: unset X", "another": True}),
        WARNING,
        "of another MPI than Horovod",
        "unset X",
    ),
    "no mpi4py": (
        changed(mpi={"library": None, "why_not": "mpi4py is not installed: pip install mpi4py", "all_threads": None}),
        NOTE,
        "small models vote faster with mpi4py",
        "pip install mpi4py",
    ),
    "threads of MPI": (changed(mpi={"all_threads": False}), WARNING, "by several threads", "MPI_THREAD_MULTIPLE"),
    "threads of kernels": (changed(kernels={"threads": 8}), NOTE, "run 8 threads", "OMP_NUM_THREADS=2"),
    "GPUs unseen": (changed(gpus={"in_machine": 2}), WARNING, "2 NVIDIA GPUs", "pip install torch"),
    "GPUs hidden": (
        changed(gpus={"in_machine": 2, "torch_cuda": "13.0"}),
        WARNING,
        "sees none",
        "CUDA_VISIBLE_DEVICES",
    ),
    "Horovod for CPUs": (
        changed(gpus={"names": ["H100"], "in_machine": 1, "torch_cuda": "13.0"}),
        WARNING,
        "Horovod was built for CPUs",
        "HOROVOD_GPU_OPERATIONS=NCCL",
    ),
    "Horovod for GPUs": (changed(horovod=built(cuda=True)), WARNING, "Horovod was built for GPUs", "for CUDA"),
    "forced kernels": (
        changed(kernels={"in_use": "scalar"}, launch={"variables": {"HOROVOD_SIGN_KERNELS": "scalar"}}),
        NOTE,
        "keeps the faster avx2 kernels",
        "unset HOROVOD_SIGN_KERNELS",
    ),
    "slow kernels": (changed(kernels={"in_use": "scalar", "supported": ["scalar"]}), NOTE, "packs bits slowly", ""),
    "untested": (changed(versions={"torch": "2.1.0"}), NOTE, "torch 2.1.0 (tested: 2.13)", "mpirun -np 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_a_remedy(what):
    facts, level, words, remedy = WRONG[what]
    found = [each for each in examine(facts) if words in each.what]
    assert len(found) == 1 and found[0].level == level and remedy in found[0].remedy, examine(facts)
    levels = [each.level for each in examine(facts)]
    assert levels == sorted(levels, key=(ERROR, WARNING, NOTE).index)
    assert level == ERROR or ERROR not in levels


def test_nothing_is_said_where_nothing_is_wrong():
    for by in ({}, MPIRUN, {"by": "HOROVOD_SIZE", "started": 2}, {"by": "PMIX_RANK", "started": 1}):
        assert examine(doctor_facts.healthy(**by)) == []
    of_gpus = changed(
        gpus={"names": ["H100"], "in_machine": 1, "torch_cuda": "13.0"}, horovod=built(nccl=True, cuda=True)
    )
    assert examine(of_gpus) == []


@pytest.mark.parametrize(
    ("launch", "mpi", "horovod", "words"),
    [
        (MPIRUN, 2, 2, None),
        (MPIRUN, 2, None, None),
        ({"by": "PMIX_RANK", "started": 1}, 4, 4, None),
        ({"by": "HOROVOD_SIZE", "started": 2}, None, 2, None),
        (MPIRUN, 1, 1, "this process is alone"),
        (MPIRUN, 2, 1, "mpi4py sees 2 ranks, and Horovod 1"),
        (
            {"by": "SLURM_STEP_NUM_TASKS", "started": 4},
            2,
            2,
            "says that 4 processes were started, but 2 ranks are here",
        ),
    ],
)
def test_sizes_are_compared(monkeypatch, launch, mpi, horovod, words):
    for name in ("HOROVOD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(launch["started"]))
    found = examine_ranks(doctor_facts.healthy(**launch), mpi, horovod)
    assert (found == []) == (words is None), found
    assert words is None or (words in found[0].what and found[0].level == ERROR and found[0].remedy)


def test_ranks_of_other_hosts_are_heard():
    common, rare = Finding(NOTE, "slow", "wait"), Finding(WARNING, "odd", "mend")
    merged = command._merge([[common], [common, rare], [common, rare]])
    assert merged == [common, rare._replace(what="rank 1, 2: odd")]
    versions = [doctor_facts.healthy()["versions"] for _ in range(3)]
    assert command._unlike(versions) == []
    versions[2]["torch"] = "2.1.0"
    assert [each.what for each in command._unlike(versions)] == ["torch is 2.13.1 on rank 0 and 2.1.0 on rank 2"]


def test_the_tested_versions_are_those_that_are_installed_for_tests():
    pinned = dict(line.split("==") for line in (ROOT / "ci" / "requirements.txt").read_text().split() if "==" in line)
    pinned["tensorflow"] = pinned["tensorflow-cpu"]
    for name in ("torch", "tensorflow", "mpi4py"):
        assert ".".join(pinned[name].split(".")[:2]) in TESTED[name]


def run(*command, **environment):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "HOROVOD_S"))}
    return launch(command, 100, env={**inherited, **environment}, cwd=ROOT)


@pytest.fixture(scope="module")
def reports():
    """As JSON, with what is printed while frameworks are imported; advice; for people: each of the same two ranks."""
    worker = ROOT / "tests" / "launch" / "reports_worker.py"
    each = ("--json", "advise --parameters 1e5 --json", "")
    status, output = run(ROOT / "ci" / "run", "2", sys.executable, worker, *each, PYTHONPATH=str(ROOT))
    texts = output.split("exit status 0\n")
    assert status == 0 and len(texts) == 4 and texts[3] == "", output
    return texts


def test_json_of_two_ranks(reports):
    told = json.loads(reports[0])  # once, and nothing besides
    assert told["ok"] and told["findings"] == [], reports
    assert told["self_test"] == {"tried": ["exchange", "counts"], "failed": [], "ranks": 2, "over": "MPI"}
    assert told["launch"]["started"] == 2 and told["versions"]["horovod"] == "0.28.1"


def test_report_and_self_test_under_mpirun(reports):
    report = reports[2]
    assert report.count(f"horovod_sign v{horovod_sign.__version__}") == 1
    for row in ("[X] PyTorch", "[X] TensorFlow", "[X] Horovod", "[X] mpi", "[X] scalar", "mpi4py 4"):
        assert row in report, report
    assert "Nothing is in the way of a training." in report, report
    said = "Self-test of 2 ranks over MPI: votes by exchange and counts are those of NumPy, bit for bit"
    assert report.count(said) == 1 and "this process is alone" not in report, report


def test_one_host_without_horovod_is_told_by_all():
    """And no rank waits in a collective of Horovod's for the one that has none."""
    with_it, without_it = "-m horovod_sign", "tests/launch/without.py horovod.torch horovod.tensorflow"
    program = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec {sys.executable} {without_it}; exec {sys.executable} {with_it}'
    status, output = run(ROOT / "ci" / "run", "2", "sh", "-c", program)
    assert status == 1 and "ERROR: rank 1: " in output and "Self-test of 2 ranks over MPI: votes by" in output, output


def test_ranks_that_never_answer_are_given_up():
    program = (
        "import time; from horovod_sign.doctor import command\nwith command._given_up_after(0.3, []): time.sleep(60)"
    )
    status, output = run(sys.executable, "-c", program)
    assert status == 1 and "ERROR: not all ranks have answered within 0.3 s" in output, output
    program = program.replace("time.sleep(60)", "pass") + "\ntime.sleep(1)"
    assert run(sys.executable, "-c", program) == (0, "")


def test_separate_trainings_have_an_exit_status():
    """As `srun` without --mpi=pmix starts them; by PyTorch alone. Nothing but the report is printed."""
    program = (sys.executable, "tests/launch/without.py", "horovod_sign.tensorflow")
    status, output = run(*program, PMI_SIZE="2", PMI_RANK="0")
    assert status == 1 and "ERROR: this process is alone (rank 0 of 1), though PMI_SIZE says that 2" in output, output
    assert output.startswith("horovod_sign v") and "absl" not in output, output
    status, output = run(*program, PMI_SIZE="2", PMI_RANK="1")
    assert (status, output) == (1, "")


@pytest.mark.parametrize(
    ("argument", "words"),
    [("nonsense", "argument command: invalid choice: 'nonsense'"), ("--sense", "unrecognized arguments: --sense")],
)
def test_unknown_arguments_are_refused_once(argument, words):
    status, output = run(ROOT / "ci" / "run", "2", sys.executable, "-m", "horovod_sign", argument)
    assert status == 2 and output.count(words) == 1, output


def test_advice_on_two_ranks(reports):
    """Measured, and printed once."""
    advice = json.loads(reports[1])
    assert advice["parameters"] == 100_000 and len(advice["predictions"]) == 1
    measured = advice["predictions"][0]
    assert measured["ranks"] == 2 and measured["now"]["one bit"] > 0 and measured["speeds"]["inside"]["alltoall"]


def test_a_horovod_for_one_framework_alone_is_asked_by_that(monkeypatch):
    """`horovod.torch` can be imported, empty, where Horovod was built without PyTorch."""
    works = types.ModuleType("horovod.tensorflow")
    works.mpi_built = lambda: True
    monkeypatch.setitem(sys.modules, "horovod.torch", types.ModuleType("horovod.torch"))
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", works)
    facts.import_binding()
    assert facts.binding() is works and facts.binding_over_mpi() is works
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    assert facts.binding() is None and facts.binding_over_mpi() is None
