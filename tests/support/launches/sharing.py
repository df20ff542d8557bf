"""What pytest-xdist's processes share out: all tests of one framework and rank count together, else files."""

import re

from xdist.scheduler import LoadScopeScheduling


def group_of(nodeid: str) -> str:
    """The launch that a test belongs to, such as "tensorflow on 3"; its file, where it has no ranks."""
    path, _, test = nodeid.partition("::")
    ranks = re.search(r"\[(\d+)ranks\b", test)
    return path if ranks is None else f"{path.split('/')[-2]} on {ranks[1]}".replace("keras", "tensorflow")


class LaunchScheduling(LoadScopeScheduling):
    """pytest-xdist's scheduling by scopes, in the order of collection, with launches for scopes."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
