"""What one session of a front end does wrong, or a run that fails: its session ends, and no other."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.service.processes.ring import Records
from streamcell.service.sessions.session import Output
from tests.support.rings import (
    TOKENS,
    Rigs,
    check,
    normal,
    one_session,
)


def test_a_refused_message_changes_no_state_and_those_before_it_are_answered(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("lstm")
    front, entry = one_session(rig)
    other = front.open()
    good = normal(1, 3)
    bad = normal(2, 3)
    bad[1, 2] = np.inf
    for each in (good, bad, good):
        front.send(entry, each)
    front.send(other, good)
    rig.serve()
    front.read()
    check(front.told[entry], [(good, Output.ALL)], modules["lstm"], stateful=True)
    check(front.told[other], [(good, Output.ALL)], modules["lstm"], stateful=True)
    assert [len(front.told[each].replies) for each in (entry, other)] == [1, 1]
    for one, two in zip(rig.state(entry), rig.state(other), strict=True):
        np.testing.assert_array_equal(one, two)
    (error,) = front.told[entry].errors
    assert str(error) == "input 'x': expected finite values, got inf at step 1, element 2"
    assert not front.told[other].errors


def test_what_is_bad_in_a_later_piece_of_a_long_message_is_named_by_its_step(rigs: Rigs) -> None:
    rig = rigs("lstm")
    front, entry = one_session(rig)
    x = normal(11, 3)
    x[9, 1] = np.nan
    front.send(entry, x)
    rig.serve()
    front.read()
    (error,) = front.told[entry].errors
    assert error.facts == {"input": "x", "step": "9", "element": "1"}
    assert rig.ring_sessions.applied[entry] == 8


def test_a_refused_session_runs_no_more_whatever_it_has_sent(rigs: Rigs) -> None:
    rig = rigs("lstm")
    front, entry = one_session(rig)
    front.send(entry, np.full((1, 3), np.nan, np.float32))
    for _ in range(6):
        front.send(entry, normal(3, 3))
    cancelled = rig.model.metrics.cancelled
    assert len(rig.serve()) == 1
    front.send(entry, normal(1, 3))
    assert rig.serve() == []
    front.read()
    assert not front.told[entry].replies
    assert len(front.told[entry].errors) == 1
    assert rig.ring_sessions.applied[entry] == 0
    assert rig.model.metrics.cancelled - cancelled >= 6
    # Its entry is taken until its front end has said that it has ended, and is as new for the next.
    assert rig.ring_sessions.capacity.live == 1
    front.end(entry)
    rig.serve()
    assert rig.ring_sessions.capacity.live == 0
    again = front.open()
    assert again == entry
    front.send(again, normal(1, 3))
    rig.serve()
    front.read()
    assert [reply.step_index for reply in front.told[again].replies] == [1]


class Broken(Exception):
    """Not one of ours."""


def test_a_run_that_fails_ends_the_sessions_of_its_batch_alone(
    rigs: Rigs, modules: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs("lstm")
    assert not rig.model.engine.commits_last
    front = rig.front()
    lost, kept = [front.open(), front.open()], front.open()
    x, y = normal(2, 3), normal(1, 3)
    for entry in lost:
        front.send(entry, x)
        front.send(entry, x)
    front.send(kept, y)
    runs = iter([True, False])

    def run(staged: Any) -> None:
        if next(runs):
            raise Broken("out of memory")
        staged.go()

    monkeypatch.setattr(rig.model.engine, "run", run)
    failed = rig.model.metrics.request_figures().failed["BACKEND"]
    assert rig.serve() == [[4, 4], [1]]
    front.read()
    for entry in lost:
        (error,) = front.told[entry].errors
        assert (error.reason, rig.ring_sessions.applied[entry]) == ("ENGINE_FAILED", 0)
        assert not front.told[entry].replies
    check(front.told[kept], [(y, Output.ALL)], modules["lstm"], stateful=True)
    assert len(front.told[kept].replies) == 1
    # The first message of each session is counted by its front end.
    assert rig.model.metrics.request_figures().failed["BACKEND"] - failed == 2


@pytest.mark.parametrize("fixed", [False, True], ids=["ragged", "fixed shapes"])
def test_what_the_model_refuses_ends_its_session_alone(
    rigs: Rigs, seq2seq: tuple[Path, torch.nn.Module], fixed: bool
) -> None:
    path, module = seq2seq
    rig = rigs(path, fixed_shapes=fixed)
    assert rig.model.engine.commits_last
    front = rig.front()
    entries = [front.open() for _ in range(4)]
    bad = entries[1]
    sent: dict[int, list[tuple[np.ndarray, Output]]] = defaultdict(list)
    noise = np.random.default_rng(1)
    for turn, lengths in enumerate([(3, 2, 4, 2), (3, 4, 3, 3), (1, 1, 1, 1), (2, 0, 3, 3)]):
        for entry, steps in zip(entries, lengths, strict=True):
            tokens = noise.integers(0, TOKENS, steps)
            if entry == bad and turn == 1:
                tokens[-1] = TOKENS
            if steps:
                front.send(entry, tokens)
                sent[entry].append((tokens, Output.ALL))
        rig.serve()
        front.read()
        if turn == 1:
            (error,) = front.told[bad].errors
            assert error.reason == "REFUSED_BY_MODEL"
            assert "out of data bounds" in str(error)
    assert len(front.told[bad].errors) == 1
    assert rig.ring_sessions.applied[bad] == 2
    for entry in entries:
        assert len(front.told[entry].replies) == (1 if entry == bad else 4)
        assert (entry == bad) == bool(front.told[entry].errors)
        check(front.told[entry], sent[entry], module, stateful=True)


def test_a_refused_token_does_not_stay_behind_in_padding(
    rigs: Rigs, seq2seq: tuple[Path, torch.nn.Module]
) -> None:
    path, _ = seq2seq
    rig = rigs(path, fixed_shapes=True)
    front = rig.front()
    bad, good = front.open(), front.open()
    front.send(bad, np.array([1, 2, 3, TOKENS]))
    rig.serve()
    runs = []
    go = rig.model.engine.run

    def run(staged: Any) -> None:
        runs.append(staged.values[0].copy())
        go(staged)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.model.engine, "run", run)
        front.send(good, np.array([1, 2, 3]))  # padded to 4
        rig.serve()
    front.read()
    assert [array.shape[1] for array in runs] == [4]
    assert len(front.told[good].replies) == 1


def test_an_error_after_the_run_is_not_taken_for_a_run_that_failed(
    rigs: Rigs, seq2seq: tuple[Path, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states have advanced by then: running again would advance them twice."""
    path, _ = seq2seq
    rig = rigs(path)
    front, entry = one_session(rig)
    front.send(entry, np.array([1, 2]))
    ran = []
    go = rig.model.engine.run

    def run(staged: Any) -> None:
        ran.append(staged)
        go(staged)

    def answer(records: Records) -> None:
        raise Broken("a fault of ours")

    with monkeypatch.context() as patch:
        patch.setattr(rig.model.engine, "run", run)
        patch.setattr(rig.ring_sessions, "answer", answer)
        with pytest.raises(Broken):
            rig.serve()
    assert len(ran) == 1
