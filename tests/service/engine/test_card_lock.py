"""What must not happen while another model's CUDA graph is captured holds the process's one lock."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from streamcell.benchmarks import parity
from streamcell.service.engine import card_lock
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine
from streamcell.service.engine.programs import Program
from streamcell.service.engine.staging import CardStaging, Staged
from streamcell.service.repository.model_file import ModelFile, open_model

APART = Device(apart=True)


@pytest.fixture
def file(models_dir: Path) -> ModelFile:
    return open_model(models_dir / "lstm.onnx", "lstm")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What is done on the card, and whether the lock is held: sessions, memory, first runs, runs."""
    told: list[tuple[str, bool]] = []

    def watch(owner: Any, name: str, what: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            told.append((what, card_lock._lock._is_owned()))  # type: ignore[attr-defined]
            return function(*arguments, **named)

        monkeypatch.setattr(owner, name, watched)

    watch(Device, "session", "session")
    watch(Device, "place", "memory")
    watch(CardStaging, "close", "close")
    runner = CardStaging.runner

    def runs(self: CardStaging, staged: Staged, *arguments: Any) -> Callable[[], None]:
        go, before = runner(self, staged, *arguments), [0]

        def counted() -> None:
            told.append(("run" if before[0] else "first run", card_lock._lock._is_owned()))  # type: ignore[attr-defined]
            before[0] += 1
            go()

        return counted

    monkeypatch.setattr(CardStaging, "runner", runs)
    return told


def a_run(engine: Engine, rows: int, steps: int) -> None:
    staged = engine.stage(rows, steps)
    engine.pad(staged, 0)
    engine.run(staged)


def test_what_allocates_captures_or_ends_waits_for_others_captures_and_usual_runs_do_not(
    file: ModelFile, seen: list[tuple[str, bool]]
) -> None:
    engine = parity.engine(file, APART, cuda_graphs=True, cell="auto")
    engine.pool.read(0)
    told = set(seen)
    assert {what for what, _ in told} == {"session", "memory", "first run", "run"}
    assert all(held for what, held in told if what != "run")
    seen.clear()
    for rows, steps in ((1, 1), (7, 1), (16, 8)):
        a_run(engine, rows, steps)
    assert seen == [("run", False)] * 3
    engine.close()
    assert seen[-1] == ("close", True)


def test_the_first_run_of_a_shape_that_was_not_warmed_up_waits_too(
    models_dir: Path, seen: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = parity.engine(open_model(models_dir / "lstm.onnx", "lstm"), APART, cuda_graphs=False)
    engine.fixed_shapes = False
    engine._staged.clear()
    seen.clear()
    for _ in range(2):
        a_run(engine, 3, 5)
    assert seen == [("first run", True), ("run", False)]
    engine.close()


def test_the_cpu_waits_for_nobody(file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    class Never:
        def acquire(self, timeout: float) -> bool:
            raise AssertionError("the CPU needs no lock")

    monkeypatch.setattr(card_lock, "_lock", Never())
    a_run(parity.engine(file, Device()), 1, 1)


def test_a_buffer_of_a_closed_engine_neither_runs_nor_keeps_its_session(file: ModelFile) -> None:
    engine = parity.engine(file, APART, cuda_graphs=True)
    staged = engine.stage(1, 1)
    session = weakref.ref(engine._programs._operators._session)
    engine.close()
    gc.collect()
    assert session() is None, "it would end after the stream that it runs on"
    with pytest.raises(RuntimeError, match="closed"):
        staged.go()


def test_sessions_of_a_failed_capture_end_before_their_stream(
    file: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions: list[weakref.ref[ort.InferenceSession]] = []
    alive_at_close: list[int] = []
    runner, close = Program.runner, CardStaging.close

    def failing(self: Program, staged: Staged, *, capture: bool = False) -> Callable[[], None]:
        sessions.append(weakref.ref(self._session))
        go = runner(self, staged, capture=capture)
        binding = [self._session]

        def run() -> None:
            if capture:
                raise RuntimeError(f"capture of {len(binding)} session failed")
            go()

        return run

    def closing(self: CardStaging) -> None:
        alive_at_close.append(sum(each() is not None for each in sessions))
        close(self)

    monkeypatch.setattr(Program, "runner", failing)
    monkeypatch.setattr(CardStaging, "close", closing)
    engine = parity.engine(file, APART)
    assert alive_at_close == [0]
    staged = engine.stage(1, 1)
    engine.pad(staged, 0)
    engine.run(staged)
    assert np.isfinite(staged.values[-1]).all()
    engine.close()


def test_memory_that_the_card_can_reach_too_is_the_hosts() -> None:
    from streamcell.service.engine.staging import _is_host

    assert all(map(_is_host, ("Cpu", "CudaPinned", "CUDA host accessible")))
    assert not _is_host("Cuda")
