"""What a rank sends in a step, for the examples of all frameworks."""


def float32_bytes(coordinates: int, ranks: int) -> int:
    """What a ring allreduce of float32 gradients sends, of each rank."""
    return 2 * (ranks - 1) * coordinates * 4 // ranks


def describe_bytes(sent: int | None, coordinates: int, ranks: int) -> str:
    """What one rank sent in a step, beside what a float32 ring allreduce would have sent (None: that)."""
    float32 = float32_bytes(coordinates, ranks)
    sent = float32 if sent is None else sent
    ratio = f", {float32 / sent:.1f}x less than float32's {float32:,}" if 0 < sent < float32 else ""
    return f"bytes sent per step and rank: {sent:,}{ratio} ({coordinates:,} coordinates, {ranks} ranks)"
