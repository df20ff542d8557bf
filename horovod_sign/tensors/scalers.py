"""What the wrappers know of a `torch.amp.GradScaler`: whether it is one, and which steps an optimizer."""

import sys

import torch


def check_scaler(grad_scaler: object) -> None:
    """Raises TypeError unless it is a scaler, or None."""
    if grad_scaler is not None and not isinstance(grad_scaler, torch.amp.GradScaler):
        raise TypeError(f"grad_scaler must be a torch.amp.GradScaler, got {type(grad_scaler).__name__}")


def stepping_scaler() -> torch.amp.GradScaler | None:
    """The scaler in whose `step` this is called; None if it is in none. Torch tells an optimizer of no other way."""
    frame, step = sys._getframe(1), torch.amp.GradScaler.step.__code__
    while frame is not None and frame.f_code is not step:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["self"]
