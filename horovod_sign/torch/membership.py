"""Which parameters an optimizer votes on, as all ranks have agreed, and what has become of them on this rank since.

Users freeze parameters, and change `param_groups` in place: layers grow, points are added and pruned, and a parameter
is replaced by another, whose state they move. A rank that finds its groups changed says so by its next ballots, and
then all ranks compare what they have by now.
"""

from collections.abc import Iterable

import torch

from horovod_sign.tensors.bucketing import groups_of
from horovod_sign.tensors.layout import Layout
from horovod_sign.tensors.slots import Slot
from horovod_sign.torch.arguments import check_parameters, trainable
from horovod_sign.torch.handshake import describe
from horovod_sign.voting.handshake import Item


class Membership:
    """The parameters of one optimizer.

    Attributes:
        names: what to call those that are voted on.
        layouts: where the coordinates of those are that have been voted on.

    Args:
        optimizer: the wrapped one.
        labels: names of parameters, also of some that have no vote yet.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, labels: dict[torch.Tensor, str]) -> None:
        self.names: dict[torch.Tensor, str] = {}
        self.layouts: dict[torch.Tensor, Layout] = {}
        self._optimizer, self._labels = optimizer, labels
        self._agreed: list[int] = []
        self._seen: list[int] = []

    def has_changed(self, slots: Iterable[Slot]) -> bool:
        """Whether parameters were frozen, replaced or moved here since all ranks agreed. `slots` learn their groups."""
        found = self._places()
        if found != self._seen:
            self._seen = found
            groups = groups_of(self._optimizer.param_groups)
            for slot in slots:
                slot.group = groups.get(slot.parameter)
        return found != self._agreed

    def items(self, slots: Iterable[Slot]) -> list[Item]:
        """What all ranks must have alike: those that left, and an item for each parameter. Raises TypeError."""
        parameters, groups = self.trainable(), groups_of(self._optimizer.param_groups)
        check_parameters({p: label for p, label in parameters.items() if p not in self.names})
        places = {slot.parameter: f"{slot.bucket.name}.{slot.index}" for slot in slots}
        gone = [f"{slot.label}, {places[slot.parameter]}" for slot in slots if slot.parameter not in groups]
        items = [("what is no longer there", "; ".join(gone) or "nothing")]
        for i, (p, described) in enumerate(zip(parameters, describe(parameters, self.layouts), strict=True)):
            items.append((f"parameter {i}", f"{described}, in group {groups[p]}, {places.get(p, 'new')}"))
        return items

    def trainable(self) -> dict[torch.Tensor, str]:
        """The trainable parameters in the optimizer's order, and what to call them."""
        return trainable(self._optimizer, self._labels)

    def take_in(self) -> dict[torch.Tensor, str]:
        """All ranks have agreed. Returns those that are new."""
        parameters = self.trainable()
        new = {p: label for p, label in parameters.items() if p not in self.names}
        self.names.update(new)
        for p in new:
            self.layouts.setdefault(p, Layout(p))
        self._agreed = self._places()
        return new

    def renew(self) -> dict[torch.Tensor, str]:
        """Forgets those that have left, and returns what is voted on from now on."""
        groups = groups_of(self._optimizer.param_groups)
        for p in [p for p in self.layouts if p not in groups]:
            del self.layouts[p]
            self._labels.pop(p, None)
        self.names = self.trainable()
        return self.names

    def _places(self) -> list[int]:
        """The parameters, group by group; frozen ones have another sign."""
        places = []
        for group in self._optimizer.param_groups:
            places.append(0)
            places += [id(p) if p.requires_grad else -id(p) for p in group["params"]]
        return places
