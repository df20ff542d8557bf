"""Which ranks share a node, by the numbers that Horovod gives them: any numbers of ranks, in any usual order."""

import pytest

from horovod_sign.voting.nodes import Place, by_places

# Node of each rank.
LAYOUTS = ["0", "00", "01", "0111", "0001", "0012222", "01010", "0120112", "0102203"]


def places(node_of: str) -> list[Place]:
    """As MPI_Comm_split_type by shared memory numbers them, and then MPI_Comm_split by local rank."""
    local = [node_of[:rank].count(node) for rank, node in enumerate(node_of)]
    return [
        Place(local[rank], node_of.count(node), [local[r] for r in range(rank)].count(local[rank]))
        for rank, node in enumerate(node_of)
    ]


@pytest.mark.parametrize("node_of", LAYOUTS)
def test_nodes_by_local_and_cross_ranks(node_of):
    wanted = [[r for r, other in enumerate(node_of) if other == node] for node in sorted(set(node_of))]
    assert by_places(places(node_of)) == wanted


def test_numbers_that_fit_no_nodes():
    assert by_places([Place(0, 2, 0), Place(0, 1, 1), Place(1, 2, 1)]) is None
    assert by_places([Place(0, 2, 0)]) is None
