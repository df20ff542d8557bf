"""What pytest-xdist's processes share out: all tests of one framework and rank count together, else files."""

import re

from xdist.scheduler import LoadScopeScheduling


class LaunchScheduling(LoadScopeScheduling):
    """pytest-xdist's scheduling by scopes, in the order of collection, with launches for scopes."""

    def _split_scope(self, nodeid: str) -> str:
        path, _, test = nodeid.partition("::")
        ranks = re.search(r"\[(\d+)ranks\b", test)
        return path if ranks is None else f"{path.split('/')[-2]} on {ranks[1]}".replace("keras", "tensorflow")
