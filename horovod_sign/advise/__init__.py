"""`python -m horovod_sign advise`: what votes would cost on these hosts, and sums, before a training is started."""
