"""One run of a model over a batch: staging buffers, bindings made once for each shape, states updated in place."""

from __future__ import annotations

import gc
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import structlog

from streamcell.card import Signature
from streamcell.service.errors import RunTimeout
from streamcell.service.graph.int8_pooled import int8_pooled
from streamcell.service.graph.pooled import Pooled
from streamcell.service.graph.rows import INITIAL_ROW

from .card_lock import alone
from .cuda_copies import CudaError
from .options import Arithmetic, Cell, EngineOptions
from .pool import StatePool
from .programs import Programs
from .staging import Staged, resting, staging
from .time_limit import TimeLimit

__all__ = ["Cell", "Engine", "EngineOptions", "Staged", "fixed_sizes"]

_BINDINGS_KEPT = 512
_log = structlog.get_logger(__name__)


def fixed_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, … up to and including `most`: the sizes that padding rounds up to."""
    sizes = []
    size = 1
    while size < most:
        sizes.append(size)
        size *= 2
    return (*sizes, most)


def _closed() -> None:
    raise RuntimeError("the engine is closed")


class Engine:
    """A loaded model on its device.

    Not thread-safe: one thread warms it up and runs it.
    """

    def __init__(
        self,
        pooled: Pooled,
        signature: Signature,
        options: EngineOptions,
        *,
        limit: TimeLimit | None = None,
    ) -> None:
        """Build the sessions and the pool.

        Args:
            pooled: the graph with its states gathered from and scattered to the pool.
            signature: the model's inputs, outputs and states.
            options: how it is to run.
            limit: ends runs, and the making of the sessions, when they take too long; None: nothing does.

        Raises:
            DeviceError: the device, or the CUDA graphs that were asked for, are not available.
        """
        self.signature = signature
        self.device = device = options.device
        # True if a failed run leaves all states unchanged.
        self.commits_last = pooled.commits_last
        # A graph with a fixed batch takes that batch and no other.
        self.fixed_batch = pooled.fixed_batch
        most_rows = self.fixed_batch or min(options.max_batch, signature.max_batch or options.max_batch)
        rows = options.spilling_rows if signature.states else None
        self.max_batch = most_rows
        if rows is not None:
            # A step of a session in a journal reads one row and writes another.
            self.max_batch = min(most_rows, rows if options.make_journal is None else rows // 2)
        self.max_chunk = options.max_chunk if signature.has_time else 1
        options.check()
        self.fixed_shapes = options.pads
        self._batch_sizes = (self.fixed_batch,) if self.fixed_batch else fixed_sizes(self.max_batch)
        self._chunk_sizes = fixed_sizes(self.max_chunk) if signature.lengths else None
        with alone(device):
            self.pool = StatePool(
                pooled.pools,
                slots=options.max_sessions if signature.states else 0,
                scratch=most_rows,
                device=device,
                rows=rows,
                make_journal=options.make_journal,
            )
        # True if slots must become rows before a run, by `place`.
        self.spills = rows is not None
        self._written = [pool for pool in pooled.pools if pool.written]
        self.limit = limit or TimeLimit()
        # One for each input; `Staged.values` has the outputs after them.
        self._resting = [resting(tensor) for tensor in signature.inputs]
        self._resting_given = [
            np.frombuffer(resting(value).tobytes(), np.uint8) for value in signature.open_inputs
        ]
        # What products by weights that the file stores in int8 are computed in.
        self.arithmetic: Arithmetic = "float32"
        single: Pooled | None = None
        if options.arithmetic == "int8" and (forms := int8_pooled(pooled, signature.lengths)):
            pooled, single = forms
            self.arithmetic = "int8"
        self._graphs, self._graphs_forced = self._wants_graphs(options.cuda_graphs), bool(options.cuda_graphs)
        make: Callable[..., Programs] = partial(
            Programs,
            pooled,
            signature,
            replace(options, cell=options.cell or self._default_cell(pooled)),
            pool=self.pool,
            sizes=self._measured_sizes(),
            limit=self.limit,
            single=single,
        )
        self._staged: OrderedDict[tuple[int, int], Staged] = OrderedDict()
        self._build(make)
        # Until warm-up is over, for another attempt; it holds the graph with its weights.
        self._make_programs: Callable[..., Programs] | None = make

    def _build(self, make: Callable[..., Programs]) -> None:
        with alone(self.device):
            most = len(self.pool.scratch_rows)
            self._staging = staging(self.signature, self.device, most, self.max_chunk, self._written)
            self._programs = make(staging=self._staging, graphs=self._graphs)

    def _measured_sizes(self) -> tuple[int, ...]:
        """Where shapes are fixed all batch sizes, else 1, 8, 64, … and the largest."""
        sizes = self._batch_sizes
        return sizes if self.fixed_shapes else tuple(dict.fromkeys((*sizes[::3], sizes[-1])))

    def _default_cell(self, pooled: Pooled) -> Cell:
        ops = {node.op_type for node in pooled.model.graph.node}
        return "auto" if not self.device.on_host or ops & {"GRU", "RNN"} else "operator"

    def _wants_graphs(self, asked: bool | None) -> bool:
        if asked is not None or self.device.on_host:
            return bool(asked)
        if not self.device.replays_safely:
            _log.warning(
                "CUDA graphs are off: this onnxruntime may replay them wrongly; upgrade it, or ask for them",
                device=str(self.device),
            )
            return False
        return self.fixed_shapes

    def stage(self, rows: int, steps: int) -> Staged:
        """The buffers for a run of `rows` sessions of up to `steps` timesteps; padding rows are ready to run.

        The caller fills the first `rows` rows of `inputs`, `read`, `write` and `lengths`, and of `given` those that
        read the initial state.
        """
        if self.fixed_shapes or self.fixed_batch:
            rows = next(size for size in self._batch_sizes if size >= rows)
            if self.fixed_shapes and self._chunk_sizes:
                steps = next(size for size in self._chunk_sizes if size >= steps)
        staged = self._staged.get((rows, steps))
        if staged is None:
            staged = self._staged[rows, steps] = self._staging.buffers(rows, steps)
            staged.go = self._programs.pick(rows, steps).runner(staged)
            if not self.device.on_host:
                self._first_alone(staged)
            if len(self._staged) > _BINDINGS_KEPT:
                # If there are others, those of single steps stay: they may be captured.
                longer = (shape for shape in self._staged if shape[1] != 1)
                del self._staged[next(longer, next(iter(self._staged)))]
        return staged

    def _first_alone(self, staged: Staged) -> None:
        """Have the first run on `staged`, which may allocate, wait for other models' captures."""
        go = staged.go

        def first() -> None:
            with alone(self.device):
                go()
            staged.go = go

        staged.go = first

    def pad(self, staged: Staged, used: int) -> None:
        """Make the rows from `used` on harmless: each reads the initial state and writes a scratch row of its own."""
        if used < staged.rows:
            staged.read[used:] = INITIAL_ROW
            staged.write[used:, 0] = self.pool.scratch_rows[used : staged.rows]
            staged.lengths[used:] = 1
        if not self.device.on_host:
            self._clear_padding(staged, used)

    def _clear_padding(self, staged: Staged, used: int) -> None:
        """Clear integer inputs in padding: what another shape of run left there may be no token of a table."""
        for view, value in zip(staged.given, self._resting_given, strict=True):
            view[used:] = value
        for array, step in zip(staged.values, self._resting, strict=False):
            if array.dtype.kind not in "iu":
                continue
            array[used:] = step
            if self.signature.lengths and staged.steps > 1:
                array[:used][np.arange(staged.steps) >= staged.lengths[:used, None]] = step

    def place(self, staged: Staged, used: int) -> None:
        """If the engine `spills`: replace the slots of the first `used` rows by the pool's rows.

        Raises:
            EngineFailed: a session could not be brought back, or the rows do not fit. All states are unchanged.
        """
        spilling = self.pool.spilling
        assert spilling is not None
        spilling.place(staged.read[:used], staged.write[:used, 0])

    def run(self, staged: Staged) -> None:
        """Run the model on staged inputs. Outputs are in `staged.outputs`, states in the pool.

        Raises:
            onnxruntime errors: the run failed. Where `commits_last`, no state was written.
            RunTimeout: it took too long and was ended. Of its own rows, some states may have been written.
            CudaError: a copy to or from the card failed.
        """
        limit = self.limit
        limit.due_s = time.monotonic() + limit.run_s
        try:
            staged.go()
        except Exception as error:  # ONNX Runtime's errors share no base class
            if limit.over():
                raise RunTimeout.after(limit.run_s) from error
            raise
        limit.over()

    def clear_inputs(self) -> None:
        """Clear the staging memory, so that no refused value stays behind in padding."""
        self._staging.clear()

    def warm_up(self) -> None:
        """Run every shape that traffic can meet first (all of them where shapes are fixed) on scratch rows.

        Chooses the cell and captures CUDA graphs where these are wanted. The engine's own thread calls it.

        Raises:
            DeviceError: the CUDA graphs that were asked for give other results than the model.
            onnxruntime errors: the model does not run, or not as the CUDA graphs that were asked for.
        """
        try:
            self._warm_up()
        except Exception as error:  # ONNX Runtime's errors share no base class
            if self.limit.ended or not self._graphs or self._graphs_forced or self._make_programs is None:
                raise
            _log.warning("CUDA graphs are off: the model ran into an error with them", error=str(error))
            again: Callable[..., Programs] | None = self._make_programs
        else:
            again = None
        # Not above: there the error's traceback still holds the sessions, which must end before their stream does.
        if again is not None:
            self._without_graphs(again)
        self._make_programs = None

    def _without_graphs(self, make: Callable[..., Programs]) -> None:
        """Build all again: a capture that failed leaves its stream unusable."""
        gc.collect()
        with suppress(CudaError):
            self.close()
        self._graphs = False
        self._build(make)
        self._warm_up()

    def _warm_up(self) -> None:
        chunks = self._chunk_sizes if self.fixed_shapes and self._chunk_sizes else (1,)
        batches = self._batch_sizes if self.fixed_shapes else (self._batch_sizes[0],)
        for steps in chunks:
            for rows in batches:
                staged = self.stage(rows, steps)
                self.pad(staged, 0)
                staged.go()
        if self._programs.untuned:
            self._staged = OrderedDict((key, value) for key, value in self._staged.items() if key[1] != 1)
            for rows, staged in self._programs.tune(self._scratch).items():
                self._staged[rows, 1] = staged

    def close(self) -> None:
        """Give sessions, CUDA graphs and pinned memory back. Nothing may run any more.

        On the CPU all of it goes with the last reference, so that a run on another thread ends in peace.
        """
        if self.device.on_host:
            return
        with alone(self.device):
            # A buffer also refers to its session, which must end before the stream that it runs on.
            for staged in self._staged.values():
                staged.go = _closed
            self._staged.clear()
            self._programs.close()
            self._staging.close()
            self.pool.close()

    def _scratch(self, rows: int) -> Staged:
        staged = self._staging.buffers(rows, 1)
        self.pad(staged, 0)
        return staged
