"""The three collectives of a vote as Horovod ops in the caller's graph (or at once, when executing eagerly)."""

import horovod.tensorflow as hvd
import tensorflow as tf

from horovod_sign.graphs.places import host, on_host
from horovod_sign.tensorflow import farewell
from horovod_sign.tensorflow.repeated import at_each_run
from horovod_sign.voting.collectives import Allgather, Alltoall, AtOnce, Average, IntraNode, Request
from horovod_sign.voting.hierarchy import op_name
from horovod_sign.voting.nodes import Nodes


class _Op:
    """A request that is carried out.

    Attributes:
        result: of it.
        left: scalar bool tensor: whether a rank has said farewell in it; None: none does in such a one.
    """

    def __init__(self, result, left=None):
        self.result, self.left = result, left


class GraphCollectives(AtOnce):
    """`voting.collectives.Collectives` of the votes of one step. In a graph all are to be begun before any goes on.

    Args:
        process_set: Horovod's, of the ranks that vote; where nodes do, of their first ranks.
        rank, size: this rank, or its node, among those that vote, and how many they are.
    """

    def __init__(self, process_set, rank: int, size: int):
        self.rank, self.size, self.ordered = rank, size, tf.executing_eagerly()
        self._process_set = process_set
        self._unheard: list[_Op] = []

    def start(self, request: Request, name: str) -> _Op:
        op = self._perform(request, name)
        if op.left is not None:
            self._unheard.append(op)
        return op

    @on_host
    def finish(self, op: _Op):
        if self._unheard:
            ops, self._unheard = self._unheard, []
            heard = farewell.unless_left([each.result for each in ops], [each.left for each in ops])
            for each, result in zip(ops, heard, strict=True):
                each.result = result
        return op.result

    @on_host
    def _perform(self, request: Request, name: str) -> _Op:
        options = {"ignore_name_scope": True, "process_set": self._process_set, "name": name}
        if isinstance(request, Alltoall):
            buffer = at_each_run(request.buffer)
            received, lengths = hvd.alltoall(buffer, request.lengths, **options)
            return _Op(received, farewell.left_in_messages(received, lengths))
        if isinstance(request, Allgather):
            return _Op(hvd.allgather(at_each_run(request.buffer), **options))
        summed = hvd.allreduce(at_each_run(request.words), op=hvd.Sum, **options)
        return _Op(tf.ensure_shape(summed, request.words.shape), farewell.left_in_counts(summed))


class NodeCollectives(GraphCollectives):
    """Those of nodes, for whose votes all have been asked who is there."""

    def __init__(self, nodes: Nodes):
        super().__init__(nodes.cross_set, nodes.number, nodes.count)
        self._nodes = nodes

    def start(self, request: Request | IntraNode, name: str) -> _Op:
        name = op_name(request, name, self.rank)
        if isinstance(request, IntraNode):
            return _Op(self._within(request.request, name))
        return self._perform(request, name)

    def _within(self, request: Allgather | Average, name: str):
        """The result of a request among the ranks of this node."""
        options = {"ignore_name_scope": True, "process_set": self._nodes.local_set}
        if isinstance(request, Allgather):
            with host():
                return hvd.allgather(at_each_run(request.buffer), name=name, **options)
        tensors = [at_each_run(tensor) for tensor in request.tensors]
        means = hvd.grouped_allreduce(tensors, name=name, op=hvd.Average, **options)
        return [tf.ensure_shape(mean, tensor.shape) for mean, tensor in zip(means, request.tensors, strict=True)]
