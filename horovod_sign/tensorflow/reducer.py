"""The votes of one step as `voting.reducer` has them, in the caller's graph (or at once, when executing eagerly)."""

from collections.abc import Generator
from typing import Any

import tensorflow as tf

from horovod_sign.graphs import messages
from horovod_sign.graphs.packing import TensorBucket
from horovod_sign.graphs.places import on_host
from horovod_sign.voting.collectives import Allgather, Alltoall, IntraNode, Request
from horovod_sign.voting.hierarchy import vote_of_nodes
from horovod_sign.voting.messages import Planes
from horovod_sign.voting.nodes import Nodes
from horovod_sign.voting.protocols import Vote
from horovod_sign.voting.reducer import Reducer


class GraphReducer(Reducer):
    """In a graph all votes begin, and then all go on; when executing eagerly, one after the other."""

    def _running(self, bucket: TensorBucket) -> Generator:
        rank, size = self._collectives.rank, self._collectives.size
        return self._protocol_of(bucket)(bucket.collect(), rank, size, abstain=self._abstain, ops=messages)

    def _vote(self, bucket: TensorBucket, running: Generator) -> Vote:
        return Vote(running, self._collectives, f"{self.name}.{bucket.name}", _bytes_sent)


class NodeReducer(GraphReducer):
    """Those of nodes, on gradients that are averaged first.

    Args:
        nodes: those that vote.
        reducer: as of `Reducer`; the collectives are of nodes too.
    """

    def __init__(self, nodes: Nodes, *reducer):
        super().__init__(*reducer)
        self._nodes = nodes

    def _launch(self, bucket: TensorBucket):
        pass

    def _running(self, bucket: TensorBucket) -> Generator:
        def pack(means) -> Planes:
            if means:
                bucket.take_means(means)
            bucket.launch(self._abstain)
            return bucket.collect()

        protocol = self._protocol_of(bucket)
        return vote_of_nodes(self._nodes, bucket.to_be_averaged, pack, protocol, self._abstain, messages)


@on_host
def _bytes_sent(request: Request | IntraNode, size: int, rank: int):
    """As `voting.protocols.bytes_sent`, for lengths that are known only when the step runs."""
    if isinstance(request, IntraNode):
        return 0
    if isinstance(request, Alltoall):
        sent = tf.size(request.buffer) - request.lengths[rank]
    elif isinstance(request, Allgather):
        sent = (size - 1) * tf.size(request.buffer)
    else:
        sent = 2 * (size - 1) * 8 * request.words.shape[0] // size
    return _Bytes(tf.cast(sent, tf.int64))


class _Bytes:
    """How many bytes, known only when the step runs. What is added to it is added on the host."""

    def __init__(self, number: tf.Tensor) -> None:
        self._number = number

    @on_host
    def __add__(self, other: Any) -> "_Bytes":
        return _Bytes(self._number + (other._number if isinstance(other, _Bytes) else other))

    __radd__ = __add__

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> tf.Tensor:
        return self._number
