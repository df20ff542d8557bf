"""PyTorch tensors to bit planes, and back: what knows PyTorch, and nothing of who carries votes.

`horovod_sign.torch`, over Horovod, and `horovod_sign.ddp`, over torch.distributed, are both made of it.
"""
