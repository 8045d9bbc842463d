"""One run of a model over rows of any kind: stage, check, run, complete. A fault ends as few sessions as it can.

A row with a forbidden value is refused, and the others run. If a run fails and has left all states unchanged,
each row runs again alone and only the one that fails again is refused. Otherwise every session of the run ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias, TypeVar

import structlog

from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.errors import EngineFailed, RunTimeout
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.sessions.value_check import ValueCheck

_log = structlog.get_logger(__name__)
_Rows = TypeVar("_Rows")

# Refusals. Each session's listener gets its own once the other rows have been answered.
Later: TypeAlias = list[Callable[[], None]]


class Misfit(Exception):
    """Some rows hold payloads that are not as long as their steps say; `rows` are their places in the batch.

    Every protocol checks the length. If one forgets, this refuses the row: a part of a wrong length would shift the
    rows behind it, and one session would read another session's input.
    """

    def __init__(self, rows: list[int]) -> None:
        super().__init__(rows)
        self.rows = rows


class RowKind(Protocol[_Rows]):
    """What `GuardedRun` needs of a kind of rows. The thread that runs the engine calls it."""

    def count(self, rows: _Rows) -> int:
        """How many rows there are."""

    def fill(self, rows: _Rows) -> Staged:
        """Copy inputs, lengths and slots into the staging buffers.

        Raises:
            Misfit: some rows have a wrong length.
        """

    def without(self, rows: _Rows, bad: list[int], later: Later) -> _Rows:
        """Refuse the messages with wrong values in the rows `bad`; returns the rows that remain."""

    def apart(self, rows: _Rows) -> Iterable[_Rows]:
        """The rows one by one; rows that must run together stay together."""

    def completed(self, rows: _Rows, staged: Staged, run: RunTally) -> None:
        """Record that the states have advanced, answer, and note in `run` what was answered."""

    def refused(self, rows: _Rows, cause: Exception, later: Later) -> None:
        """One of `apart` failed alone, and all states are unchanged: refuse it."""

    def failed(self, rows: _Rows, cause: Exception) -> None:
        """The run failed and states may be lost: end all sessions of it."""


class GuardedRun:
    """Runs rows on one engine. For the thread that runs the engine.

    The kind of rows is an argument of each call. An attribute would make a cycle that keeps the engine alive.
    """

    def __init__(self, engine: Engine, metrics: ModelMetrics, check: ValueCheck | None) -> None:
        """`check`: which values may run; None if all values have been checked on arrival."""
        self._engine = engine
        self._metrics = metrics
        self._check = check
        self._inputs = len(engine.signature.inputs)

    def __call__(self, kind: RowKind[_Rows], rows: _Rows) -> None:
        """Run `rows` and answer them."""
        taken_s = time.perf_counter()
        later: Later = []
        ran: tuple[Staged, RunTally] | None = None
        used = 0
        try:
            while ran is None and (used := kind.count(rows)):
                try:
                    staged = kind.fill(rows)
                    check = self._check
                    bad = [] if check is None else check.bad_rows(staged.values[: self._inputs], used)
                except Misfit as misfit:
                    bad = misfit.rows
                if bad:
                    rows = self._refuse(kind, rows, bad, later)
                else:
                    ran = staged, self._run(staged, used, taken_s)
        except EngineFailed as error:  # a session is not back on the device, so nothing has run
            _log.error("sessions not brought back together", rows=used, exc_info=error)
            self._run_apart(kind, rows, later)
        except Exception as error:  # ONNX Runtime's errors share no base class
            # A run that hit its time limit may have written some states, and each row alone could take as long.
            if self._engine.commits_last and not isinstance(error, RunTimeout):
                self._run_apart(kind, rows, later)
            else:
                _log.error("engine run failed", rows=used, exc_info=error)
                kind.failed(rows, error)
        else:
            if ran is not None:
                self._complete(kind, rows, used, *ran)
        for refuse in later:
            refuse()

    def _refuse(self, kind: RowKind[_Rows], rows: _Rows, bad: list[int], later: Later) -> _Rows:
        known = len(later)
        left = kind.without(rows, bad, later)
        if len(later) == known:  # else the same rows would be found bad forever
            raise AssertionError(f"no message in the rows at {bad} has a wrong value")
        # No refused value may stay behind in padding.
        self._engine.clear_inputs()
        return left

    def _run(self, staged: Staged, used: int, taken_s: float) -> RunTally:
        if self._engine.spills:
            self._engine.place(staged, used)
        began_cpu_s = time.thread_time()
        began_s = time.perf_counter()
        self._engine.run(staged)
        ended_s = time.perf_counter()
        cpu_s = time.thread_time() - began_cpu_s
        self._metrics.ran(used, staged.rows * staged.steps, ended_s - began_s)
        return RunTally(taken_s, began_s, ended_s, cpu_s)

    def _complete(self, kind: RowKind[_Rows], rows: _Rows, used: int, staged: Staged, run: RunTally) -> None:
        kind.completed(rows, staged, run)
        self._metrics.delivered(run, used, time.perf_counter())

    def _run_apart(self, kind: RowKind[_Rows], rows: _Rows, later: Later) -> None:
        """The run failed and changed no state: run each row alone and refuse only those that fail again.

        A session ends if it cannot be brought back alone, either.
        """
        self._engine.clear_inputs()
        for alone in kind.apart(rows):
            taken_s = time.perf_counter()
            try:
                staged = kind.fill(alone)
                used = kind.count(alone)
                run = self._run(staged, used, taken_s)
            except Exception as error:
                self._engine.clear_inputs()
                if isinstance(error, (RunTimeout, EngineFailed)):
                    kind.failed(alone, error)
                else:
                    kind.refused(alone, error, later)
            else:
                self._complete(kind, alone, used, staged, run)
