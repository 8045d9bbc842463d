"""The engine's side of the rings: front ends' sessions are answered as if each ran alone, on the real engine."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamcell.card import read_card, write_card
from streamcell.export import export_model
from streamcell.models import build
from streamcell.service.engine.device import Device
from streamcell.service.errors import ServiceError, SessionClosed
from streamcell.service.lifecycle.loaded_model import LoadedModel, load
from streamcell.service.processes.engine.ring_runner import RingRunner
from streamcell.service.processes.engine.ring_sessions import RingSessions
from streamcell.service.processes.event_wakeup import EventWakeup
from streamcell.service.processes.ring import Reader, Records, Writer
from streamcell.service.processes.ring_records import (
    END,
    FAIL,
    FIELDS,
    OPEN,
    STEP,
    head_of,
    text_at,
    text_records,
    unpack_error,
)
from streamcell.service.repository.model_file import open_model
from streamcell.service.sessions.session import Output
from streamcell.service.sessions.shared_capacity import SharedCapacity
from streamcell.service.sessions.table import SessionTable
from streamcell.service.settings import Settings

MAX_SESSIONS, MAX_BATCH, MAX_CHUNK = 6, 4, 4
TOKENS = 12


@dataclass
class Reply:
    """A message's: the timesteps that came back, and how many steps were applied by then."""

    mode: Output
    steps: np.ndarray
    step_index: int


@dataclass
class Told:
    """What a session was sent."""

    replies: list[Reply] = field(default_factory=list)
    begun: list[bytes] = field(default_factory=list)  # of a message whose last record has not come
    errors: list[ServiceError] = field(default_factory=list)


class Front:
    """A front end, by what it writes and reads."""

    def __init__(self, ring_sessions: RingSessions, process_number: int) -> None:
        self.ring_sessions, self.process_number = ring_sessions, process_number
        capacity, model = ring_sessions.capacity, ring_sessions.model
        self.entries = SharedCapacity(
            model.max_sessions,
            model.engine.pool.first_slot,
            stateful=bool(model.file.signature.states),
            process_number=process_number,
            memory=os.dup(capacity.memory),
        )
        requests, replies = ring_sessions.attach(process_number)
        self.writer, self.reader = Writer(requests), Reader(replies)
        self.told: dict[int, Told] = defaultdict(Told)
        self.slot_versions: dict[int, int] = {}

    def open(self) -> int:
        """A session's entry."""
        entry, slot_version = self.entries.take_entry()
        self.slot_versions[entry] = slot_version
        self.told[entry] = Told()
        text = f"{self.process_number}-{entry}-{slot_version} test".encode()
        self.writer.write(text_records(self.ring_sessions.inputs, OPEN, entry, slot_version, text))
        return entry

    def records(self, entry: int, x: np.ndarray, mode: Output = Output.ALL) -> Records:
        """A message's."""
        layout, steps = self.ring_sessions.inputs, len(x)
        records = np.zeros((steps, layout.record_bytes), np.uint8)
        fields = np.ndarray(steps, FIELDS, records, strides=(layout.record_bytes,))
        fields["kind"], fields["mode"], fields["steps"] = STEP, mode.value, steps
        fields["entry"], fields["slot_version"] = entry, self.slot_versions[entry]
        fields["first"][0] = fields["last"][-1] = 1
        fields["stamp"], fields["index"] = time.perf_counter(), np.arange(steps)
        ((begin, end),) = layout.places
        records[:, begin:end] = np.ascontiguousarray(x).view(np.uint8).reshape(steps, -1)
        return records

    def send(self, entry: int, x: np.ndarray, mode: Output = Output.ALL) -> None:
        self.writer.write(self.records(entry, x, mode))

    def end(self, entry: int) -> None:
        self.writer.write(text_records(self.ring_sessions.inputs, END, entry, self.slot_versions.pop(entry)))

    def read(self) -> None:
        """Take what has come back."""
        records = self.reader.read()
        if records is None:
            return
        head = head_of(records)
        ((begin, end),) = self.ring_sessions.outputs.places
        at = 0
        while at < len(head):
            entry = int(head["entry"][at])
            told = self.told[entry]
            assert head["slot_version"][at] == self.slot_versions[entry]
            if head["kind"][at] == FAIL:
                text, count = text_at(records, at, int(head["steps"][at]))
                told.errors.append(unpack_error(text))
                at += count
                continue
            assert head["kind"][at] == STEP
            if (
                head["last"][at] or head["mode"][at] == Output.ALL.value
            ):  # else it says how far the session is
                told.begun.append(records[at, begin:end].tobytes())
            if head["last"][at]:
                mode = Output(int(head["mode"][at]))
                steps = np.frombuffer(b"".join(told.begun), np.float32).reshape(len(told.begun), -1)
                told.replies.append(Reply(mode, steps, int(head["index"][at])))
                told.begun = []
            at += 1


class Rig:
    """A model whose rings are served by the test's thread, unless its own is to."""

    def __init__(self, path: Path, *, own_thread: bool = False, **changes: Any) -> None:
        small = {"max_sessions": MAX_SESSIONS, "max_batch": MAX_BATCH, "max_chunk": MAX_CHUNK}
        configured = Settings.load(models=path.parent, **{**small, **changes})
        self.model: LoadedModel = load(
            open_model(path, path.stem), configured, Device(), wakeup=EventWakeup()
        )
        self.table = SessionTable(idle_timeout_s=0)
        self.ring_sessions = RingSessions(self.model, self.table)
        self.rings = RingRunner(self.model.engine, self.model.metrics, allow_non_finite=False)
        if own_thread:
            self.ring_sessions.serve(configured.non_finite == "allow")
        else:
            self.model.runner.stop()
        self.fronts: list[Front] = []
        self.holders = itertools.count(2)

    def front(self) -> Front:
        self.fronts.append(Front(self.ring_sessions, next(self.holders)))
        return self.fronts[-1]

    def serve(self) -> list[list[int]]:
        """Run all that has come; each run's rows."""
        runs = []
        self.ring_sessions.gather()
        while (batch := self.ring_sessions.form()) is not None:
            runs.append(batch.counts.tolist())
            self.rings.run(batch)
            self.ring_sessions.gather()
        return runs

    def lose(self, *fronts: Front) -> None:
        for front in fronts:
            self.ring_sessions.lose(front.process_number)
            self.fronts.remove(front)
            os.close(front.entries.memory)
        self.ring_sessions.gather()

    def state(self, entry: int) -> tuple[np.ndarray, ...]:
        return self.model.engine.pool.read(entry + self.model.engine.pool.first_slot)


Rigs = Callable[..., Rig]


@pytest.fixture(scope="module")
def all_rigs(models_dir: Path) -> Iterator[Rigs]:
    made: dict[tuple[Any, ...], Rig] = {}

    def make(model: str | Path, **changes: Any) -> Rig:
        path = models_dir / f"{model}.onnx" if isinstance(model, str) else model
        key = (path, *sorted(changes.items()))
        if key not in made:
            made[key] = Rig(path, **changes)
        return made[key]

    yield make
    for rig in made.values():
        rig.model.runner.stop()


@pytest.fixture
def rigs(all_rigs: Rigs) -> Iterator[Rigs]:
    """Makes a rig, or gives the one there is; its front ends go with the test, and with them all that they took."""
    used: list[Rig] = []

    def make(model: str | Path, **changes: Any) -> Rig:
        used.append(all_rigs(model, **changes))
        return used[-1]

    yield make
    for rig in used:
        rig.lose(*rig.fronts)
        assert rig.ring_sessions.capacity.live == len(rig.table) == 0


@pytest.fixture(scope="module")
def seq2seq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A model of tokens, which a bad one makes fail: its card does not say which there are."""
    torch.manual_seed(3)
    config = {"kind": "seq2seq", "input_size": TOKENS, "hidden_size": 8, "output_size": 5}
    module = build(config).eval()
    path = tmp_path_factory.mktemp("tokens") / "seq2seq.onnx"
    export_model(module, path, name="seq2seq")
    model = onnx.load(path)
    card = read_card(model)
    assert card is not None
    (tensor,) = card.signature.inputs
    assert tensor.index_ranges == ((0, TOKENS - 1),)
    inputs = (tensor.model_copy(update={"index_ranges": ()}),)
    write_card(
        model, card.model_copy(update={"signature": card.signature.model_copy(update={"inputs": inputs})})
    )
    onnx.save(model, path)
    return path, module


def alone(module: torch.nn.Module, messages: list[np.ndarray], *, stateful: bool) -> list[np.ndarray]:
    """What PyTorch gives for each message of a session."""
    with torch.no_grad():
        if not stateful:
            return [module(torch.from_numpy(x[None]))[0][0].numpy() for x in messages]
        y = module(torch.from_numpy(np.concatenate(messages)[None]))[0][0].numpy()
    return np.split(y, np.cumsum([len(x) for x in messages])[:-1])


def check(
    told: Told, sent: list[tuple[np.ndarray, Output]], module: torch.nn.Module, *, stateful: bool
) -> None:
    """The replies are those of the first messages of `sent`, as many as there are."""
    assert not told.begun
    if not told.replies:
        return
    messages = sent[: len(told.replies)]
    expected = alone(module, [x for x, _ in messages], stateful=stateful)
    at = 0
    for reply, y, (_, mode) in zip(told.replies, expected, messages, strict=True):
        at += len(y)
        assert (reply.mode, reply.step_index) == (mode, at)
        if mode is Output.NONE:
            assert len(reply.steps) == 1  # that it is done
            continue
        wanted = y if mode is Output.ALL else y[-1:]
        np.testing.assert_allclose(reply.steps, wanted, rtol=1e-5, atol=1e-5)


ACTS = st.sampled_from(["send", "send", "send", "send", "open", "end", "spoil", "fail", "serve", "serve"])
PLAN = st.lists(
    st.tuples(ACTS, st.integers(0, 7), st.integers(1, 11), st.sampled_from(list(Output))),
    min_size=5,
    max_size=50,
)


@dataclass
class One:
    """A session, what it sent, and how much of that may be answered."""

    front: Front
    entry: int
    sent: list[tuple[np.ndarray, Output]] = field(default_factory=list)
    fails: str = ""

    @property
    def told(self) -> Told:
        return self.front.told[self.entry]


@pytest.mark.parametrize("fixed", [False, True], ids=["ragged", "fixed shapes"])
@pytest.mark.parametrize("kind", ["lstm", "mlp", "cnn"])
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
@given(plan=PLAN, seed=st.integers(0, 2**31))
def test_sessions_of_two_front_ends_are_as_if_alone(
    rigs: Rigs,
    modules: dict[str, torch.nn.Module],
    kind: str,
    fixed: bool,
    plan: list[tuple[str, int, int, Output]],
    seed: int,
) -> None:
    rig, noise = rigs(kind, fixed_shapes=fixed), np.random.default_rng(seed)
    stateful = bool(rig.model.file.signature.states)
    rig.lose(*rig.fronts)  # what an example that failed has left
    fronts = [rig.front(), rig.front()]
    live: list[One] = []

    def finish(one: One) -> None:
        """All that it sent before it was spoiled has come back, and it ends."""
        rig.serve()
        one.front.read()
        check(one.told, one.sent, modules[kind], stateful=stateful)
        assert [error.reason for error in one.told.errors] == ([one.fails] if one.fails else [])
        if one.fails != "SESSION_CLOSED":
            assert len(one.told.replies) == len(one.sent)
        one.front.end(one.entry)
        rig.ring_sessions.gather()
        live.remove(one)

    for act, which, steps, mode in plan:
        if act == "open" or not live:
            if len(live) < MAX_SESSIONS:
                front = fronts[which % 2]
                live.append(One(front, front.open()))
            continue
        one = live[which % len(live)]
        x = noise.standard_normal((steps, 3)).astype(np.float32)
        if act == "send":
            one.front.send(one.entry, x, mode)
            if not one.fails:
                one.sent.append((x, mode))
        elif act == "spoil" and not one.fails:
            bad = x[:MAX_CHUNK]
            bad[noise.integers(len(bad)), noise.integers(3)] = [np.nan, np.inf, -np.inf][which % 3]
            one.front.send(one.entry, bad, mode)
            one.fails = "NON_FINITE_INPUT"
        elif act == "fail" and not one.fails:
            rig.ring_sessions.gather()  # it is known
            name = f"{one.front.process_number}-{one.entry}-{one.front.slot_versions[one.entry]}"
            rig.table.find(name).session.listener.fail(SessionClosed("closed", session_id=name))
            one.fails = "SESSION_CLOSED"
        elif act == "serve":
            rig.serve()
        elif act == "end":
            finish(one)
    while live:
        finish(live[0])
    rig.serve()
    assert rig.ring_sessions.capacity.live == 0
    assert len(rig.table) == 0
    rig.lose(*fronts)


def one_session(rig: Rig) -> tuple[Front, int]:
    front = rig.front()
    return front, front.open()


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


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


def test_long_messages_are_cut_and_answered_as_one(rigs: Rigs, modules: dict[str, torch.nn.Module]) -> None:
    rig = rigs("lstm")
    front = rig.front()
    sent = [(normal(10, 3), mode) for mode in Output] + [(normal(2, 3), Output.ALL)]
    entries = [front.open() for _ in range(2)]
    for entry in entries:
        for x, mode in sent:
            front.send(entry, x, mode)
    runs = rig.serve()
    assert max(max(rows) for rows in runs) == MAX_CHUNK
    front.read()
    for entry in entries:
        assert len(front.told[entry].replies) == len(sent)
        check(front.told[entry], sent, modules["lstm"], stateful=True)


def test_long_messages_take_turns_with_what_came_after_them(rigs: Rigs) -> None:
    rig = rigs("lstm")
    front = rig.front()
    long, short = front.open(), front.open()
    front.send(long, normal(40, 3))
    front.send(short, normal(1, 3))
    assert rig.serve()[:3] == [[4], [1], [4]]


def test_a_message_that_comes_in_pieces_is_answered_once(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("cnn")  # looks at a message as a whole
    front, entry = one_session(rig)
    x = normal(30, 3)
    records = front.records(entry, x)
    for part in np.split(records, [4, 11, 12]):
        front.read()
        assert not front.told[entry].replies
        front.writer.write(part)
        rig.serve()
    front.read()
    assert len(front.told[entry].replies) == 1
    check(front.told[entry], [(x, Output.ALL)], modules["cnn"], stateful=False)


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


def test_a_lost_front_end_gives_its_entries_back_and_the_others_go_on(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("lstm")
    lost, kept = rig.front(), rig.front()
    x = normal(2, 3)
    mine = kept.open()
    theirs = [lost.open() for _ in range(MAX_SESSIONS - 1)]
    for entry in theirs:
        lost.send(entry, x)
    rig.serve()
    kept.send(mine, x)
    for entry in theirs:  # some of it has come, some has not, when it dies
        lost.send(entry, x)
    rig.ring_sessions.gather()
    lost.send(theirs[0], x)
    assert rig.ring_sessions.capacity.live == MAX_SESSIONS
    ended = rig.model.metrics.ended["frontend_lost"]
    rig.lose(lost)
    assert rig.ring_sessions.capacity.live == len(rig.table) == 1
    assert rig.model.metrics.ended["frontend_lost"] - ended == len(theirs)
    assert not rig.ring_sessions.queued[theirs].any()
    assert rig.serve() == [[2]]
    kept.read()
    check(kept.told[mine], [(x, Output.ALL)], modules["lstm"], stateful=True)
    again = [kept.open() for _ in range(MAX_SESSIONS - 1)]
    assert set(again) == set(theirs)
    for entry in again:
        kept.send(entry, x)
    rig.serve()
    kept.read()
    for entry in (mine, *again):
        assert len(kept.told[entry].replies) == 1
        check(kept.told[entry], [(x, Output.ALL)], modules["lstm"], stateful=True)


def test_the_engine_s_own_thread_serves_rings_and_notes_a_lost_front_end(
    rigs: Rigs, modules: dict[str, torch.nn.Module]
) -> None:
    rig = rigs("lstm", own_thread=True)
    fronts = [rig.front(), rig.front()]
    sent = {(front, front.open()): [(normal(3, 3), Output.ALL)] * 5 for front in fronts}
    for (front, entry), messages in sent.items():
        for x, mode in messages:
            front.send(entry, x, mode)
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and any(len(f.told[s].replies) < 5 for f, s in sent):
        for front in fronts:
            front.read()
        time.sleep(0.001)
    for (front, entry), messages in sent.items():
        assert len(front.told[entry].replies) == 5
        check(front.told[entry], messages, modules["lstm"], stateful=True)
    for front in fronts:
        rig.ring_sessions.lose(front.process_number)
        rig.fronts.remove(front)
    while time.monotonic() < deadline_s and rig.ring_sessions.capacity.live:
        time.sleep(0.001)
    assert rig.ring_sessions.capacity.live == len(rig.table) == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_no_line_of_python_runs_a_session(
    rigs: Rigs, steps: int, counted: Callable[[Callable[[], object]], Counter[str]]
) -> None:
    """From the ring and back, 256 sessions take the calls that 16 take; no fewer take more."""
    rig = rigs("lstm", max_sessions=256, max_batch=256)
    front = rig.front()
    entries = [front.open() for _ in range(256)]

    def round_of(count: int) -> Counter[str]:
        for entry in entries[:count]:
            front.send(entry, normal(steps, 3), Output.LAST)
        calls = counted(rig.serve)
        front.read()
        return calls

    assert rig.serve() == []
    for count in (4, 16, 256):
        round_of(count)  # what is done once is done now
    few, some, many = (round_of(count) for count in (4, 16, 256))
    assert some["RingRunner.run"] == many["RingRunner.run"] == 1
    assert some == many
    # Up to a dozen values a histogram takes one by one.
    assert not {name: count for name, count in (few - many).items() if "C:" not in name}
    assert all(len(front.told[entry].replies) >= 2 for entry in entries)


def test_nothing_of_an_earlier_run_is_in_the_buffers_of_a_later_one(rigs: Rigs) -> None:
    """Behind each row's last step there are zeros, whatever ran before."""
    rig = rigs("lstm")
    front = rig.front()
    entries = [front.open() for _ in range(MAX_BATCH)]
    for number, lengths in enumerate(([4, 4, 4, 4], [2, 3, 4, 2], [4, 3, 2, 3], [1, 2, 1, 2])):
        mark = np.float32(number + 1)
        for entry, length in zip(entries, lengths, strict=True):
            front.send(entry, np.full((length, 3), mark, np.float32))
        rig.ring_sessions.gather()
        batch = rig.ring_sessions.form()
        assert batch is not None
        rows = rig.rings.fill(batch).values[0]
        for row, length in zip(rows, batch.counts.tolist(), strict=False):
            assert (row[:length] == mark).all()
            assert (row[length:] == 0).all()
        rig.rings.run(batch)
        rig.serve()
        front.read()
