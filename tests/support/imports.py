"""Keras without what it imports only because it is installed: scikit-learn and matplotlib, a third of its start."""

import sys


def import_keras():
    """Leaves both to be imported by whoever wants them."""
    left_out = [name for name in ("sklearn", "matplotlib") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(left_out))
    try:
        import keras  # noqa: F401
    finally:
        for name in left_out:
            del sys.modules[name]
