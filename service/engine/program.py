"""One graph of a model, ready to run: its session, its bindings, and the CUDA graphs captured of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import onnx
import onnxruntime as ort

from streamcell.service.graph.pooled import Pooled

from .device import Device
from .pool import StatePool
from .staging import Staged, Staging
from .time_limit import TimeLimit

# These decide on the host what runs, or copy lengths to it: what a CUDA graph replays would not follow them.
_NOT_CAPTURED = frozenset({"If", "Loop", "Scan", "LSTM", "GRU", "RNN"})


def capturable(model: onnx.ModelProto) -> bool:
    """Whether runs of `model` do the same whatever their inputs hold, as a CUDA graph does."""
    return not any(node.op_type in _NOT_CAPTURED for node in model.graph.node)


class Program:
    """Runs one graph over the staging buffers and the pool. Several may share these."""

    def __init__(
        self,
        name: str,
        pooled: Pooled,
        *,
        device: Device,
        staging: Staging,
        pool: StatePool,
        intra_op_threads: int,
        limit: TimeLimit,
        stream: int = 0,
        graphs: bool = False,
    ) -> None:
        """Make the session.

        Args:
            name: for logs.
            pooled: the graph.
            device: where it runs.
            staging: what its inputs and outputs are bound to.
            pool: what its states are bound to.
            intra_op_threads: ONNX Runtime's threads within an operator.
            limit: ends its runs, and the making of the session, when they take too long.
            stream: the CUDA stream to run on; 0: one of ONNX Runtime's own.
            graphs: whether runs can be captured.

        Raises:
            DeviceError: the device cannot be had, or this graph cannot be captured.
        """
        self.name = name
        self.graphs = graphs
        self._device, self._staging, self._pool = device, staging, pool
        self._queues = bool(stream)
        self._numbers = itertools.count(1)
        self._limit = limit
        self._plain = self._options(capture=False)
        self._session: ort.InferenceSession = device.session(
            pooled.model.SerializeToString(),
            intra_op_threads=intra_op_threads,
            stream=stream,
            graphs=graphs,
            limit=limit,
        )

    def runner(self, staged: Staged, *, capture: bool = False) -> Callable[[], None]:
        """What runs the graph on `staged`.

        Args:
            staged: the buffers.
            capture: its first run is captured as a CUDA graph, which the later ones replay. ONNX Runtime runs the
                graph more than once to capture it, so the first run must write scratch rows only.
        """
        binding = self._session.io_binding()
        self._staging.bind(staged, self._session, binding)
        self._pool.bind(binding)
        options = self._options(capture) if capture and self.graphs else self._plain
        return self._staging.runner(staged, self._session, binding, options)

    def _options(self, capture: bool) -> ort.RunOptions:
        options = self._limit.run_options()
        if capture:
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        if self._queues:
            # The copy out that follows on the same stream waits for all of it.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options
