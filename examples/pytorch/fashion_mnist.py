"""What the PyTorch examples on Fashion-MNIST share: the network and the images."""

import data
import torch
from torch.utils.data import TensorDataset


def make_model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 7 * 7, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )


def read_sets(args) -> tuple[str, TensorDataset, TensorDataset]:
    """What the images are, and those for training and for tests."""
    images = data.load(args.data_dir)
    sets = ((images.train_x, images.train_y), (images.test_x, images.test_y))
    return images.name, *(TensorDataset(torch.from_numpy(x).unsqueeze(1), torch.from_numpy(y)) for x, y in sets)
