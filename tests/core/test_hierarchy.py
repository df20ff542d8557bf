"""Votes of nodes: the names of their ops, which ranks that do not have the same requests must give alike."""

import numpy as np

from horovod_sign.voting.collectives import Allgather, Allreduce, Alltoall, Average, IntraNode
from horovod_sign.voting.hierarchy import op_name


def test_names_are_those_of_the_kind_and_not_of_the_number():
    """The first rank of a node has three requests or four, the others two: what all have in common comes last."""
    words = np.zeros(2, np.int64)
    among = [Alltoall(words, [1, 1]), Allgather(words), Allreduce(words)]
    within = [IntraNode(Average([])), IntraNode(Allgather(words))]
    names = {number: [op_name(each, f"vote.0.{number}", 3) for each in among + within] for number in (0, 7)}
    kinds = ["Alltoall", "Allgather", "Allreduce", "node3.mean", "node3.share"]
    assert names[0] == names[7] == [f"vote.0.{kind}" for kind in kinds]
