"""`import horovod_sign.torch as hvd` has Horovod's names: its own objects, or ours in place of them."""

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import horovod.torch
import names
import pytest

import horovod_sign.adopted
import horovod_sign.torch as hvd

REPLACED = {
    "horovod.torch": {"Compression", "DistributedOptimizer", "broadcast_parameters", "compression", "elastic"},
    "horovod.torch.elastic": {"TorchState"},
}


def test_each_of_horovods_names_is_there():
    names.assert_all_there(REPLACED, "horovod", "horovod_sign")


def test_everything_is_listed():
    names.assert_listed(hvd, horovod.torch)
    assert hvd.broadcast is horovod.torch.broadcast  # no module of ours hides a function
    assert hvd.elastic.ElasticSampler is horovod.torch.elastic.ElasticSampler


def test_the_documentation_has_them():
    names.assert_documented(REPLACED)


def test_submodules_are_imported_from_here_too():
    for name in ("mpi_ops", "functions", "sync_batch_norm", "elastic.sampler"):
        module = importlib.import_module(f"horovod_sign.torch.{name}")
        assert module is importlib.import_module(f"horovod.torch.{name}")
    assert importlib.import_module("horovod_sign.torch.compression").Compression is hvd.Compression


def test_horovods_compressions():
    assert hvd.Compression.none is horovod.torch.Compression.none
    assert hvd.Compression.fp16 is horovod.torch.Compression.fp16


def test_names_that_another_horovod_gains_or_lacks():
    """Also a function by the name of a module of ours, which must not hide it."""
    theirs = types.ModuleType("horovod.torch")
    theirs.newly, theirs.buckets, theirs.elastic = print, len, types.ModuleType("horovod.torch.elastic")
    theirs.os, theirs._private, theirs.Compression = types.ModuleType("os"), 1, object()
    namespace = {"__name__": "horovod_sign.torch", "__path__": hvd.__path__, "Compression": hvd.Compression}
    assert horovod_sign.adopted.adopt(namespace, theirs, ["Compression"]) == ["buckets", "newly"]
    assert namespace["newly"] is print and namespace["buckets"] is len
    assert namespace["Compression"] is hvd.Compression and "elastic" not in namespace
    theirs.later = types.ModuleType("horovod.torch.later")
    late = namespace["__getattr__"]
    assert late("later") is theirs.later
    for name in ("elastic", "os", "nothing", "_private"):  # ours, nobody's
        with pytest.raises(AttributeError, match=f"module 'horovod_sign.torch' has no attribute '{name}'"):
            late(name)


def test_a_horovod_without_its_library_is_one_sentence(tmp_path):
    """Horovod for PyTorch then imports, and has no names."""
    folder = tmp_path / "horovod" / "torch"
    folder.mkdir(parents=True)
    for path in (folder.parent / "__init__.py", folder / "__init__.py"):
        path.write_text("")
    program = "try:\n    import horovod_sign.torch\nexcept ImportError as error:\n    print(error)"
    path = os.pathsep.join([str(tmp_path), str(Path(horovod_sign.adopted.__file__).parents[1])])
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": path}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100).stdout
    assert said.startswith("horovod_sign.torch needs PyTorch and a Horovod built for it (") and said.count("\n") == 1
    assert "pip install" in said
