"""A model's graphs, ready to run: sessions, bindings, the CUDA graphs captured of them, and which one runs when."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import onnx
import onnxruntime as ort
import structlog

from streamcell.card import Signature
from streamcell.service.graph.pooled import Pooled
from streamcell.service.graph.single_step import single_step
from streamcell.service.load_errors import DeviceError

from .card_lock import alone
from .options import EngineOptions
from .pool import StatePool
from .staging import CardStaging, Staged, Staging
from .time_limit import TimeLimit
from .warm_up import faster, replays_as_it_runs

_log = structlog.get_logger(__name__)
# These decide on the host what runs, or copy lengths to it: what a CUDA graph replays would not follow them.
_NOT_CAPTURED = frozenset({"If", "Loop", "Scan", "LSTM", "GRU", "RNN"})


def capturable(model: onnx.ModelProto) -> bool:
    """True if runs of `model` do the same operations for all values of their inputs, as a CUDA graph requires."""
    return not any(node.op_type in _NOT_CAPTURED for node in model.graph.node)


class Program:
    """Runs one graph over the staging buffers and the pool. Several may share these."""

    def __init__(
        self,
        name: str,
        pooled: Pooled,
        options: EngineOptions,
        *,
        staging: Staging,
        pool: StatePool,
        limit: TimeLimit,
        stream: int = 0,
        graphs: bool = False,
    ) -> None:
        """Make the session.

        Args:
            name: for logs.
            pooled: the graph.
            options: the engine's.
            staging: what its inputs and outputs are bound to.
            pool: what its states are bound to.
            limit: ends its runs, and the making of the session, when they take too long.
            stream: the CUDA stream to run on; 0: one of ONNX Runtime's own.
            graphs: whether runs can be captured.

        Raises:
            DeviceError: the device is not available, or this graph cannot be captured.
        """
        self.name = name
        self.graphs = graphs
        self._staging, self._pool = staging, pool
        self._queues = bool(stream)
        self._numbers = itertools.count(1)
        self._limit = limit
        self._plain = self._options(capture=False)
        self._session: ort.InferenceSession = options.device.session(
            pooled.model.SerializeToString(),
            intra_op_threads=options.intra_op_threads,
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
        return self._pool.keeping(staged, self._staging.runner(staged, self._session, binding, options))

    def _options(self, capture: bool) -> ort.RunOptions:
        options = self._limit.run_options()
        if capture:
            options.add_run_config_entry("gpu_graph_id", str(next(self._numbers)))
        if self._queues:
            # The copy out that follows on the same stream waits for all of it.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options


class Programs:
    """The model and, if wanted, a second form for runs of one timestep, with its recurrent operators written out."""

    def __init__(
        self,
        pooled: Pooled,
        signature: Signature,
        options: EngineOptions,
        *,
        staging: Staging,
        pool: StatePool,
        sizes: tuple[int, ...],
        graphs: bool,
        limit: TimeLimit,
        single: Pooled | None = None,
    ) -> None:
        """Make the sessions.

        Args:
            pooled: the graph.
            signature: its inputs, outputs and states.
            options: the engine's; `cell` is set, and `cuda_graphs` says whether to fail if the graph allows none.
            staging: what its inputs and outputs are bound to.
            pool: what its states are bound to.
            sizes: batch sizes to distinguish, ascending.
            graphs: capture runs of one timestep as CUDA graphs where the graph allows it.
            limit: ends runs, and the making of the sessions, when they take too long.
            single: the form for runs of one timestep if it is not for this class to write and to choose.

        Raises:
            DeviceError: the device, or the CUDA graphs, are not available.
        """
        self._options, self._staging, self._pool = options, staging, pool
        self._sizes = sizes
        self._graphs, self._forced = graphs, bool(options.cuda_graphs)
        self._limit = limit
        self._measured = options.cell == "auto" and single is None
        self._single: Program | None = None
        written_out = single
        if single is None and options.cell != "operator":
            written_out = single_step(pooled, signature.lengths)
        # What runs one timestep alone is captured; with both forms that is the written-out one.
        self._operators = self._make("operator", pooled)
        if written_out is not None:
            self._single = self._make_single(written_out)
        # The batch sizes at which runs of one timestep take the written-out cell.
        self.single_sizes = set(sizes) if self._single else set[int]()

    def _make_single(self, written_out: Pooled) -> Program | None:
        try:
            return self._make("decomposed", written_out)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if self._forced or not self._measured:
                raise
            # For example if it has no kernel for an activation in this dtype.
            _log.warning("no single steps with the cell written out", error=str(error))
            return None

    def _make(self, name: str, pooled: Pooled) -> Program:
        stream = self._staging.copies.stream if isinstance(self._staging, CardStaging) else 0

        def make(graphs: bool) -> Program:
            return Program(
                name,
                pooled,
                self._options,
                staging=self._staging,
                pool=self._pool,
                limit=self._limit,
                stream=stream,
                graphs=graphs,
            )

        graphs = self._graphs and capturable(pooled.model)
        try:
            return make(graphs)
        except DeviceError as error:
            if not graphs or self._forced:
                raise
            _log.warning("no CUDA graphs of this model", cell=name, error=str(error))
            return make(False)

    def pick(self, rows: int, steps: int) -> Program:
        """What runs `rows` sessions of up to `steps` timesteps."""
        if self._single is None or steps != 1:
            return self._operators
        size = next(size for size in self._sizes if size >= rows)
        return self._single if size in self.single_sizes else self._operators

    @property
    def untuned(self) -> bool:
        """True if `tune` has something to do."""
        return self._graphs or (self._measured and self._single is not None)

    def tune(self, stage: Callable[[int], Staged]) -> dict[int, Staged]:
        """Measure both forms of the cell at every batch size, capture CUDA graphs and check their replays.

        Args:
            stage: a batch size → buffers for that many rows of one timestep, filled to read the initial state and
                write scratch rows.

        Returns:
            the buffers by batch size, each with what runs it.

        Raises:
            DeviceError: CUDA graphs that were asked for by name give other results than the model.
        """
        tuned: dict[int, Staged] = {}
        for rows in self._sizes:
            staged = tuned[rows] = stage(rows)
            programs = [self.pick(rows, 1)]
            if self._measured and self._single is not None:
                programs = [self._operators, self._single]
            runs = [program.runner(staged, capture=program.graphs) for program in programs]
            with alone(self._options.device):  # the first runs capture
                for run in runs:
                    run()
            best = faster(runs)
            staged.go = runs[best]
            if programs[best] is self._operators:
                self.single_sizes.discard(rows)
        if self._measured and self._single is not None:
            _log.info(
                "cell chosen", device=str(self._options.device), decomposed_at=sorted(self.single_sizes)
            )
        if not self.single_sizes:
            self._single = None
        # Last of all: a replay that reads freed memory shows once others have used it.
        self._check_replays(tuned)
        return tuned

    def close(self) -> None:
        """End the sessions. Nothing may run any more."""
        self._single = None
        del self._operators

    def _check_replays(self, tuned: dict[int, Staged]) -> None:
        captured = [rows for rows in tuned if self.pick(rows, 1).graphs]
        wrong = []
        for rows in captured:
            plain = self.pick(rows, 1).runner(tuned[rows])
            with alone(self._options.device):
                right = replays_as_it_runs(tuned[rows], plain, self._pool.scratch_rows)
            if not right:
                wrong.append(rows)
                tuned[rows].go = plain
        if wrong and self._forced:
            raise DeviceError(
                f"device {self._options.device}: CUDA graphs give wrong results at batch sizes {wrong}"
            )
        if wrong:
            _log.error("CUDA graphs give wrong results and are not used", rows=wrong)
        if captured:
            _log.info(
                "CUDA graphs captured",
                device=str(self._options.device),
                rows=sorted(set(captured) - set(wrong)),
            )
