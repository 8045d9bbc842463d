"""One run guarded: wrong values and failing rows are refused alone, and no state is lost for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from streamcell.card import Signature, Tensor
from streamcell.service.batching.guarded_run import GuardedRun, Later, Misfit
from streamcell.service.engine.engine import Engine, Staged
from streamcell.service.errors import EngineFailed
from streamcell.service.metrics.model_metrics import ModelMetrics
from streamcell.service.metrics.request_metrics import RunTally
from streamcell.service.sessions.value_check import ValueCheck

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", step_shape=(1,)),),
    outputs=(Tensor(name="y", dtype="float32", step_shape=(1,)),),
    states=(),
)
NAN = float("nan")


class FakeEngine:
    """Fails each run that holds a value of `fails`; those of `away` are sessions that cannot be brought back."""

    signature = SIGNATURE

    def __init__(
        self, *, commits_last: bool, fails: tuple[float, ...] = (), away: tuple[float, ...] = ()
    ) -> None:
        self.commits_last = commits_last
        self.spills = bool(away)
        self.away = away
        self.fails = fails
        self.ran: list[list[float]] = []
        self.cleared = 0

    def run(self, staged: Any) -> None:
        values = staged.values[0][:, 0, 0].tolist()
        self.ran.append(values)
        if any(value in self.fails for value in values):
            raise RuntimeError("[ONNXRuntimeError] : Status Message: no such token")

    def place(self, staged: Any, used: int) -> None:
        values = staged.values[0][:used, 0, 0].tolist()
        if any(value in self.away for value in values):
            raise EngineFailed("it cannot be brought back")

    def clear_inputs(self) -> None:
        self.cleared += 1


class Rows:
    """Rows are numbers; notes what becomes of each."""

    def __init__(self, misfits: tuple[float, ...] = ()) -> None:
        self.misfits = misfits
        self.said: list[tuple[str, list[float]]] = []

    def count(self, rows: list[float]) -> int:
        return len(rows)

    def fill(self, rows: list[float]) -> Staged:
        if wrong := [at for at, value in enumerate(rows) if value in self.misfits]:
            raise Misfit(wrong)
        values = np.array(rows, np.float32).reshape(-1, 1, 1)
        return cast(Staged, SimpleNamespace(values=[values], rows=len(rows), steps=1))

    def without(self, rows: list[float], bad: list[int], later: Later) -> list[float]:
        later += [self._say("told", [rows[at]]) for at in bad]
        return [value for at, value in enumerate(rows) if at not in bad]

    def apart(self, rows: list[float]) -> Iterator[list[float]]:
        return ([value] for value in rows)

    def completed(self, rows: list[float], staged: Staged, run: RunTally) -> None:
        self.said.append(("completed", rows))
        run.inferences = len(rows)

    def refused(self, rows: list[float], cause: Exception, later: Later) -> None:
        self.said.append(("refused", rows))
        later.append(self._say("told", rows))

    def failed(self, rows: list[float], cause: Exception) -> None:
        self.said.append(("failed", rows))

    def _say(self, what: str, rows: list[float]) -> Callable[[], None]:
        return lambda: self.said.append((what, rows))


def run(engine: FakeEngine, kind: Rows, *rows: float) -> ModelMetrics:
    metrics = ModelMetrics("m", "1")
    check = ValueCheck(SIGNATURE, allow_non_finite=False)
    GuardedRun(cast(Engine, engine), metrics, check)(kind, list(rows))
    return metrics


def test_what_may_run_runs_once() -> None:
    engine, kind = FakeEngine(commits_last=True), Rows()
    metrics = run(engine, kind, 1, 2, 3)
    assert engine.ran == [[1, 2, 3]]
    assert kind.said == [("completed", [1, 2, 3])]
    assert metrics.request_figures().inferences == 3
    assert not engine.cleared


@pytest.mark.parametrize("wrong", [NAN, 7.0], ids=["value", "length"])
def test_a_wrong_row_is_refused_behind_the_answers_of_the_others(wrong: float) -> None:
    engine, kind = FakeEngine(commits_last=False), Rows(misfits=(7.0,))
    run(engine, kind, 1, wrong, 3)
    assert engine.ran == [[1, 3]]
    assert [what for what, _ in kind.said] == ["completed", "told"]
    assert engine.cleared == 1  # it must not stay behind in padding


def test_a_run_of_which_nothing_is_left_is_not_run() -> None:
    engine, kind = FakeEngine(commits_last=True), Rows()
    run(engine, kind, NAN)
    assert engine.ran == []
    assert [what for what, _ in kind.said] == ["told"]


def test_only_the_row_that_fails_alone_is_refused() -> None:
    engine, kind = FakeEngine(commits_last=True, fails=(2,)), Rows()
    metrics = run(engine, kind, 1, 2, 3)
    assert engine.ran == [[1, 2, 3], [1], [2], [3]]
    assert kind.said == [("completed", [1]), ("refused", [2]), ("completed", [3]), ("told", [2])]
    assert metrics.request_figures().inferences == 2
    assert engine.cleared == 2  # before the first, and behind the one that failed


def test_a_failed_run_that_may_have_changed_states_ends_all_its_sessions() -> None:
    engine, kind = FakeEngine(commits_last=False, fails=(2,)), Rows()
    run(engine, kind, 1, NAN, 2)
    assert engine.ran == [[1, 2]]
    assert kind.said[0] == ("failed", [1, 2])
    assert [what for what, _ in kind.said] == ["failed", "told"]


@pytest.mark.parametrize("commits_last", [False, True])
def test_a_session_that_cannot_be_brought_back_ends_and_the_others_of_its_run_go_on(
    commits_last: bool,
) -> None:
    engine, kind = FakeEngine(commits_last=commits_last, away=(2,)), Rows()
    run(engine, kind, 1, 2, 3)
    assert engine.ran == [[1], [3]]  # nothing had run, so it does not matter what a failed run leaves behind
    assert kind.said == [("completed", [1]), ("failed", [2]), ("completed", [3])]


def test_rows_that_are_found_bad_without_a_reason_do_not_hang_the_engine() -> None:
    class Blind(Rows):
        def without(self, rows: list[float], bad: list[int], later: Later) -> list[float]:
            return rows

    engine, kind = FakeEngine(commits_last=False), Blind()
    run(engine, kind, NAN, 1)
    assert engine.ran == []
    assert [what for what, _ in kind.said] == ["failed"]
