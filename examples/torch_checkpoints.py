"""Checkpoints of the PyTorch examples: network, optimizer and scheduler after an epoch, in one file."""

import os

import horovod.torch as hvd
import torch


def write(path: str, epoch: int, model, of_optimizer: dict, scheduler):
    """On rank 0, all that is needed to go on; whole, so that an interrupted one never looks like a checkpoint.

    Args:
        of_optimizer: its state dict.
    """
    if hvd.rank() == 0:
        states = {"model": model.state_dict(), "optimizer": of_optimizer, "scheduler": scheduler.state_dict()}
        torch.save({"epoch": epoch, **states}, f"{path}.part")
        os.replace(f"{path}.part", path)


def resume(path: str, model, optimizer, scheduler, missing_ok: bool = False) -> int:
    """Loads on all ranks what rank 0 reads; the number of epochs that are done: of a file that may be missing, 0."""
    saved = None
    if hvd.rank() == 0 and not (missing_ok and not os.path.exists(path)):
        saved = torch.load(path, map_location="cpu", weights_only=True)
    saved = hvd.broadcast_object(saved, name="checkpoint")
    if saved is None:
        return 0
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    return saved["epoch"]
