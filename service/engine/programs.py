"""The graphs of one model, and which of them runs what: the cell's two forms, captured as CUDA graphs or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import structlog

from streamcell.card import Signature
from streamcell.service.graph.pooled import Pooled
from streamcell.service.graph.single_step import single_step

from .device import Device, DeviceError
from .pool import StatePool
from .program import Program, capturable
from .staging import CardStaging, Staged, Staging
from .time_limit import TimeLimit
from .warm_up import faster, replays_as_it_runs

Cell: TypeAlias = Literal["auto", "operator", "decomposed"]
_log = structlog.get_logger(__name__)


class Programs:
    """The model as it is, and, where wanted, with its recurrent operators written out for runs of one timestep."""

    def __init__(
        self,
        pooled: Pooled,
        signature: Signature,
        *,
        device: Device,
        staging: Staging,
        pool: StatePool,
        sizes: tuple[int, ...],
        intra_op_threads: int,
        cell: Cell,
        graphs: bool,
        graphs_forced: bool,
        limit: TimeLimit,
    ) -> None:
        """Make the sessions.

        Args:
            pooled: the graph.
            signature: its border.
            device: where it runs.
            staging: what its inputs and outputs are bound to.
            pool: what its states are bound to.
            sizes: batch sizes that are told apart, rising.
            intra_op_threads: ONNX Runtime's threads within an operator.
            cell: which form runs of one timestep take.
            graphs: capture runs of one timestep as CUDA graphs where the graph allows it.
            graphs_forced: and fail where it does not.
            limit: ends runs, and the making of the sessions, when they take too long.

        Raises:
            DeviceError: the device, or the CUDA graphs, cannot be had.
        """
        self._device, self._staging, self._pool = device, staging, pool
        self._threads, self._sizes = intra_op_threads, sizes
        self._graphs, self._forced = graphs, graphs_forced
        self._limit = limit
        self._measured = cell == "auto"
        self._single: Program | None = None
        written_out = None if cell == "operator" else single_step(pooled, signature.lengths)
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
            # As where it has no kernel for an activation in this dtype.
            _log.warning("no single steps with the cell written out", error=str(error))
            return None

    def _make(self, name: str, pooled: Pooled) -> Program:
        stream = self._staging.copies.stream if isinstance(self._staging, CardStaging) else 0

        def make(graphs: bool) -> Program:
            return Program(
                name,
                pooled,
                device=self._device,
                staging=self._staging,
                pool=self._pool,
                intra_op_threads=self._threads,
                stream=stream,
                graphs=graphs,
                limit=self._limit,
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
    def unsettled(self) -> bool:
        """Whether `settle` has something to do."""
        return self._graphs or (self._measured and self._single is not None)

    def settle(self, stage: Callable[[int], Staged]) -> dict[int, Staged]:
        """Measure both forms of the cell at every batch size, capture CUDA graphs and check what they replay.

        Args:
            stage: a batch size → buffers for that many rows of one timestep, filled to read the initial state and
                write scratch rows.

        Returns:
            the buffers by batch size, each with what runs it.

        Raises:
            DeviceError: CUDA graphs that were asked for by name give other results than the model.
        """
        settled: dict[int, Staged] = {}
        for rows in self._sizes:
            staged = settled[rows] = stage(rows)
            programs = [self.pick(rows, 1)]
            if self._measured and self._single is not None:
                programs = [self._operators, self._single]
            runs = [program.runner(staged, capture=program.graphs) for program in programs]
            best = faster(runs)
            staged.go = runs[best]
            if programs[best] is self._operators:
                self.single_sizes.discard(rows)
        if self._measured and self._single is not None:
            _log.info("cell chosen", device=str(self._device), decomposed_at=sorted(self.single_sizes))
        if not self.single_sizes:
            self._single = None
        # Last of all: a replay that reads freed memory shows once others have used it.
        self._check_replays(settled)
        return settled

    def close(self) -> None:
        """End the sessions. Nothing may run any more."""
        self._single = None
        del self._operators

    def _check_replays(self, settled: dict[int, Staged]) -> None:
        captured = [rows for rows in settled if self.pick(rows, 1).graphs]
        wrong = []
        for rows in captured:
            plain = self.pick(rows, 1).runner(settled[rows])
            if not replays_as_it_runs(settled[rows], plain, self._pool.scratch_rows):
                wrong.append(rows)
                settled[rows].go = plain
        if wrong and self._forced:
            raise DeviceError(f"device {self._device}: CUDA graphs give wrong results at batch sizes {wrong}")
        if wrong:
            _log.error("CUDA graphs give wrong results and are not used", rows=wrong)
        if captured:
            _log.info(
                "CUDA graphs captured", device=str(self._device), rows=sorted(set(captured) - set(wrong))
            )
