"""`python -m horovod_sign`: what this installation can do, what is wrong with it, and what to do about it."""
