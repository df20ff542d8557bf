"""`--quick`: what needs neither MPI nor a framework, and the tests marked quick, each on one of its rank counts."""

from launches.parent import TESTS, key_of

RANKS = 3  # a majority, chunks of unequal length; a test that does not run on 3 runs on the most that it has


class QuickPlugin:
    """Registered by conftest.py."""

    def pytest_collection_modifyitems(self, config, items):
        counts = {}
        for item in items:
            if (key := key_of(item)) is not None:
                counts.setdefault(_test(item), set()).add(key.ranks)
        wanted = [_wanted(item, counts) for item in items]
        config.hook.pytest_deselected(items=[item for item, kept in zip(items, wanted, strict=True) if not kept])
        items[:] = [item for item, kept in zip(items, wanted, strict=True) if kept]


def _test(item):
    return item.path, item.originalname


def _wanted(item, counts) -> bool:
    key = key_of(item)
    if key is None:
        in_core = item.path.relative_to(TESTS).parts[0] == "core"
        return in_core or item.get_closest_marker("quick") is not None
    among = counts[_test(item)]
    return item.get_closest_marker("quick") is not None and key.ranks == (RANKS if RANKS in among else max(among))
