"""What is learned: Fashion-MNIST by a network of 5.8 million parameters, in one pass over its images, by four workers.

The network computes little for its size, as recommenders and language models do on their accelerators, so that what
workers wait for is the network. A step takes 64 images of each worker; the learning rate falls linearly to 0.
"""

import data
import numpy as np
import torch
import torch.nn.functional as F

WORKERS, BATCH, HIDDEN = 4, 64, 2048
TESTED = 2500  # test images on the way; at the end accuracy is taken of all
MOMENTUM = 0.9  # of SGD and of Signum
# What lines mean that were written before they said so.
EARLIER = {"data": "Fashion-MNIST", "parameters": 5_824_522, "workers": WORKERS, "batch": BATCH}


class Task:
    """Images, and the order in which a seed takes them.

    Args:
        data_dir: as in the examples.
        hidden: width of the two hidden layers.
        steps: of a training; default: one pass over all images.
        batch: images of one worker in a step.
        workers: how many share a step.
    """

    def __init__(self, data_dir=None, hidden=HIDDEN, steps=None, batch=BATCH, workers=WORKERS):
        images = data.load(data_dir)
        self.name, self.hidden, self.batch, self.workers = images.name, hidden, batch, workers
        mean, deviation = images.train_x.mean(), images.train_x.std()
        self._train_x, self._test_x = (
            torch.from_numpy((x - mean) / deviation).flatten(1) for x in (images.train_x, images.test_x)
        )
        self._train_y, self._test_y = torch.from_numpy(images.train_y), torch.from_numpy(images.test_y)
        self._pass = len(self._train_x) // (batch * workers)
        self.steps = steps or self._pass
        self._some = slice(0, TESTED)
        self.tested = len(self._test_y[self._some])

    def what(self) -> dict:
        """What a line says of it, so that only what belongs together is combined."""
        parameters = sum(p.numel() for p in self.model(0).parameters())
        return {"data": self.name, "hidden": self.hidden, "parameters": parameters, "batch": self.batch}

    def passes(self) -> str:
        """In words."""
        return "one pass" if self.steps == self._pass else f"{self.steps / self._pass:.2g} passes"

    def model(self, seed: int) -> torch.nn.Module:
        """The network, with initial weights that hang on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return torch.nn.Sequential(
                torch.nn.Linear(self._train_x.shape[1], self.hidden),
                torch.nn.ReLU(),
                torch.nn.Linear(self.hidden, self.hidden),
                torch.nn.ReLU(),
                torch.nn.Linear(self.hidden, 10),
            )

    def order(self, seed: int) -> np.ndarray:
        """Which images come when: of a step the first `batch` are worker 0's, the next worker 1's, and so on."""
        random = np.random.default_rng(seed)
        passes = -(-self.steps // self._pass)
        return np.concatenate(
            [random.permutation(len(self._train_x))[: self._pass * self.batch * self.workers] for _ in range(passes)]
        )

    def loss(self, model, order: np.ndarray, step: int, worker: int | None = None) -> torch.Tensor:
        """The loss on one worker's images of a step, or on those of all."""
        of_step = order[step * self.workers * self.batch :][: self.workers * self.batch]
        chosen = of_step if worker is None else of_step[worker * self.batch :][: self.batch]
        return F.cross_entropy(model(self._train_x[chosen]), self._train_y[chosen])

    def lr(self, lr: float, step: int) -> float:
        """The learning rate of a step."""
        return lr * (1 - step / self.steps)

    @torch.no_grad()
    def accuracy(self, model, all_images=False) -> float:
        """On some of the test images, or on all."""
        some = slice(None) if all_images else self._some
        x, y = self._test_x[some], self._test_y[some]
        right = sum((model(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True))
        return right.item() / len(y)
