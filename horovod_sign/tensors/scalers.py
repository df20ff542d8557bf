"""Which `torch.amp.GradScaler` steps an optimizer: torch tells an optimizer of no other way."""

import sys

import torch


def stepping_scaler() -> torch.amp.GradScaler | None:
    """The scaler in whose `step` this is called; None if it is in none."""
    frame, step = sys._getframe(1), torch.amp.GradScaler.step.__code__
    while frame is not None and frame.f_code is not step:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]
