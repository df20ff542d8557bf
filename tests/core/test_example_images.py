"""The examples' CIFAR-10: its binary files, and images that are moved and mirrored."""

import numpy as np
import pytest
from cifar10 import write_cifar10


@pytest.fixture
def images(example):
    return example("reproduce/images")


def test_records_are_a_class_and_three_planes(images, tmp_path):
    write_cifar10(tmp_path, 7)
    found = images.cifar10(str(tmp_path))
    assert found.train_x.shape == (35, 32, 32, 3) and found.test_x.shape == (7, 32, 32, 3)
    third = np.frombuffer((tmp_path / "data_batch_2.bin").read_bytes(), np.uint8)[2 * 3073 : 3 * 3073]
    assert found.train_y[9] == third[0]
    # Red is first; rows are one after the other. The scale is the training set's, of each channel.
    raw = np.concatenate([images._read(tmp_path / name)[0] for name in images.TRAIN]).astype(np.float64)
    red = (third[1:1025].reshape(32, 32) - raw[..., 0].mean()) / raw[..., 0].std()
    np.testing.assert_allclose(found.train_x[9, :, :, 0], red, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.train_x.std((0, 1, 2)), 1, rtol=1e-4)


@pytest.mark.parametrize("wrong, said", [(b"\0" * 3072, "no whole number"), (b"\x0b" * 3073, "a class 11")])
def test_other_files_are_refused_in_one_sentence(images, tmp_path, wrong, said):
    write_cifar10(tmp_path, 1)
    (tmp_path / "data_batch_3.bin").write_bytes(wrong)
    with pytest.raises(ValueError, match=said):
        images.cifar10(str(tmp_path))
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks data_batch_3\.bin"):
        images.cifar10(str(tmp_path))


def test_images_are_moved_by_at_most_four_and_half_of_them_mirrored(images):
    x = np.zeros((400, 32, 32, 3), np.float32)
    x[:, 10, 20] = [1, 2, 3]
    y = images.augment(x, np.random.default_rng(0))
    where = np.argwhere(y[..., 2] == 3)
    assert y.shape == x.shape and len(where) == 400
    rows, columns = where[:, 1], where[:, 2]
    mirrored = columns < 16  # 31 - 20 = 11, give or take 4, and not 20
    assert set(rows) == set(range(6, 15)) and set(columns[~mirrored]) == set(range(16, 25))
    assert set(columns[mirrored]) == set(range(7, 16)) and 150 < mirrored.sum() < 250


def test_ranks_share_each_batch(images, tmp_path):
    found = images.cifar10(str(write_cifar10(tmp_path)))._replace(augmented=False)
    of = [images.Batches(found, 16, rank, ranks, 3) for rank, ranks in ((0, 1), (0, 2), (1, 2))]
    for (x, y), (a, b), (c, d) in zip(*(batches.epoch(2) for batches in of), strict=True):
        assert np.array_equal(x, np.concatenate([a, c])) and np.array_equal(y, np.concatenate([b, d]))
    with pytest.raises(SystemExit, match="3 ranks do not divide it"):
        images.Batches(found, 16, 0, 3, 0)
