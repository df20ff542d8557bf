"""For the tests of Keras on ranks."""

import imports
import pytest

imports.import_keras()
import keras  # noqa: E402


@pytest.fixture(autouse=True)
def names_begin_anew():
    """Keras numbers what has no name, and ranks compare names: those that a test left out have not counted as far."""
    keras.utils.clear_session(free_memory=False)
