"""What is voted on together: few messages, and one is packed or unpacked while another is on its way."""

from collections.abc import Iterable


def plan(sizes: Iterable[int], capacity: int) -> list[list[int]]:
    """The numbers of what goes together, in order: up to `capacity` in a bucket, which one alone may exceed."""
    buckets: list[list[int]] = []
    filled = 0
    for i, size in enumerate(sizes):
        if not buckets or filled + size > capacity:
            buckets.append([])
            filled = 0
        buckets[-1].append(i)
        filled += size
    return buckets
