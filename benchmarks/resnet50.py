"""The parameters of a ResNet-50 (He et al. 2015, arXiv 1512.03385), which most benchmarks vote on."""

import math


def shapes(coordinates: float | None = None) -> list[tuple[int, ...]]:
    """Shapes of the 161 parameters for 1,000 classes, 25,557,032 coordinates, in the model's order.

    Args:
        coordinates: of a small model of 10 equal vectors instead.
    """
    if coordinates:
        return [(int(coordinates / 10),)] * 10
    found, inputs = [(7, 7, 3, 64), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            convolutions += [(1, 1, inputs, 4 * width)] if block == 0 else []
            for shape in convolutions:
                found += [shape, shape[-1:], shape[-1:]]
            inputs = 4 * width
    return [*found, (inputs, 1000), (1000,)]


def sizes(coordinates: float | None = None) -> list[int]:
    """Coordinates of each of `shapes`."""
    return [math.prod(shape) for shape in shapes(coordinates)]
