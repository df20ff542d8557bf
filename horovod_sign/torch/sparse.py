"""Votes for an optimizer that takes sparse gradients alone."""


def make_sparse(param_groups: list[dict]) -> None:
    """Leaves of the votes, which are the gradients now, the rows in which one is not 0: all others stay as they are."""
    for group in param_groups:
        for p in group["params"]:
            if p.grad is not None and not p.grad.is_sparse:
                p.grad = p.grad.to_sparse(min(1, p.dim()))
