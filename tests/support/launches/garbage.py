"""Python's garbage collector need not look at the million objects that frameworks make when imported: they live on."""

import gc


def import_without_collections():
    """Until `collect_what_comes`. A fifth of the time that imports take is collections in vain."""
    gc.disable()


def collect_what_comes():
    """Objects that there are now are left out from here on."""
    gc.freeze()
    gc.enable()
