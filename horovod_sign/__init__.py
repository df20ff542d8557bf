"""horovod_sign: train with one bit per gradient coordinate, by majority vote, under unmodified Horovod.

The core, for NumPy and mpi4py, is here; `horovod_sign.torch` and `horovod_sign.tensorflow` are the adapters.
"""

from horovod_sign.algebra import pack_signs, unpack_signs
from horovod_sign.version import __version__
from horovod_sign.voting.mpi import majority_vote

__all__ = ["__version__", "majority_vote", "pack_signs", "unpack_signs"]
