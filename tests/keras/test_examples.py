"""The sparse autoencoder and the ResNet-20 among the examples, in some steps on few images."""

import keras_tasks as tasks
import numpy as np
import pytest
from cifar10 import write_cifar10
from mpi4py import MPI
from ranks import RANK

RANKS = (2,)  # enough for momenta that differ

FEW = ["--images", "60", "--features", "32", "--k", "4", "--batch-size", "16", "--log-interval", "2", "--epochs", "2"]


@pytest.mark.parametrize("optimizer", ["signum", "adam", "float32-adam"])
def test_replicas_are_identical_and_go_on_from_a_checkpoint(example, optimizer, tmp_path, capfd):
    arguments = [*FEW, "--optimizer", optimizer]
    checkpoint = MPI.COMM_WORLD.bcast(str(tmp_path / "{epoch}.keras"))
    main = example("tensorflow2/tensorflow2_keras_sparse_autoencoder").main
    net = main([*arguments, "--checkpoint", checkpoint])
    again = main([*arguments, "--resume", checkpoint.format(epoch=1)])
    printed = capfd.readouterr().out
    assert (printed.count("variance unexplained") == 3) == (RANK == 0), printed
    for each in (net, again):
        tasks.assert_replicas_identical(tasks.values(each))
        assert each.optimizer.iterations == net.optimizer.iterations > 0
        np.testing.assert_allclose(np.linalg.norm(each.decoder, axis=1), 1, rtol=1e-3)


def test_resnet20_goes_on_after_an_interruption(example, tmp_path, capfd):
    resnet20_keras = example("reproduce/resnet20_keras")
    few = ["--batch-size", "16", "--width", "4", "--blocks", "1", "--milestones", "7"]
    few += ["--cifar", str(write_cifar10(tmp_path)), "--checkpoint", MPI.COMM_WORLD.bcast(str(tmp_path / "last.keras"))]
    first = resnet20_keras.main([*few, "--epochs", "1"])
    found = resnet20_keras.resume(resnet20_keras.parse_arguments(None, few))
    for variables in (lambda model: model.variables, lambda model: model.optimizer.variables):
        assert len(variables(found)) == len(variables(first))
        for a, b in zip(variables(found), variables(first), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=b.path)
    net = resnet20_keras.main([*few, "--epochs", "2"])
    printed = capfd.readouterr().out
    assert ("from epoch 1 on" in printed and printed.count("test accuracy") == 2) == (RANK == 0), printed
    tasks.assert_replicas_identical(tasks.values(net))
    assert net.optimizer.iterations == 10
    momenta = MPI.COMM_WORLD.allgather(np.asarray(net.optimizer.variables[-1]))
    assert not np.array_equal(*momenta)


def test_resnet20_has_the_parameters_of_the_paper(example):
    variables = example("reproduce/resnet20_keras").make_model((32, 32, 3), 16, 3).trainable_variables
    assert sum(int(np.prod(v.shape)) for v in variables) == 269_722
