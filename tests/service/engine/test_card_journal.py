"""A journal on a card: the rows that a run writes come out with its outputs, and a start brings them back.

Without a card, on the CPU by the card's path: memory apart, fixed shapes, the graph's rows given out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamcell.benchmarks.parity import compare, engine
from streamcell.export import export_model
from streamcell.models import build
from streamcell.proto import pb
from streamcell.service.durability.journal import Journal
from streamcell.service.durability.layout import Counts
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Cell
from streamcell.service.engine.pool import MakeJournal, StatePool
from streamcell.service.engine.spilling import Spilling
from streamcell.service.engine.staging import CardStaging
from streamcell.service.graph import pooled
from streamcell.service.repository.model_file import ModelFile, open_model
from tests.support.kept_streams import Client, Engines
from tests.support.onnx_files import parsed, save
from tests.support.resumable import Owner, save_sum, step, sums

SESSIONS, WINDOW = 40, 4
SIZES: dict[str, Any] = {"input_size": 3, "output_size": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", **SIZES, "hidden_size": 8, "num_layers": 2},
    "gru": {"kind": "gru", **SIZES, "hidden_size": 8, "num_layers": 1},
    "tcn": {"kind": "tcn", **SIZES, "channels": [8] * 2},
}
# The state is the model's output as well, so the graph has that name as an output already.
SHOWN = "(float[b, 1] x, float[b, 1] h) => (float[b, 1] y) { y = Add(x, h) }"
SHOWN_SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "y"
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelFile]:
    folder = tmp_path_factory.mktemp("card")
    torch.manual_seed(5)
    save(parsed(SHOWN), folder / "shown.onnx", SHOWN_SIDECAR)
    for name, config in KINDS.items():
        export_model(build(config).eval(), folder / f"{name}.onnx", name=name)
    return {name: open_model(folder / f"{name}.onnx", name) for name in (*KINDS, "shown")}


def journal_in(folder: Path) -> MakeJournal:
    def make(first_slot: int, states: Sequence[tuple[np.dtype[Any], tuple[int, ...]]]) -> Journal:
        counts = Counts(first_slot, SESSIONS, WINDOW, reply_bytes=256, opening_bytes=64)
        return Journal(folder, {"name": "m", "version": "1", "sha256": ""}, counts, states)

    return make


@pytest.mark.parametrize("cell", ["operator", "decomposed"])
@pytest.mark.parametrize("name", ["lstm", "gru", "tcn", "shown"])
def test_after_each_run_the_file_has_the_card_s_rows(
    files: dict[str, ModelFile], tmp_path: Path, name: str, cell: Cell
) -> None:
    plain = engine(files[name], Device())
    card = engine(
        files[name],
        Device(apart=True),
        cell=cell,
        cuda_graphs=True,
        make_journal=journal_in(tmp_path),
    )
    journal = card.pool.journal
    assert journal is not None
    for seed in range(3):  # in whose company rows run differs
        found = compare(plain, card, runs=20, seed=seed)
        assert found.output_error < 1e-5
        assert found.state_error < 1e-5
        for row in range(card.pool.rows):
            for state, held in zip(journal.states, card.pool.read(row), strict=True):
                np.testing.assert_array_equal(state[row], held)


def test_a_row_that_is_put_or_copied_goes_to_the_file_as_well(
    files: dict[str, ModelFile], tmp_path: Path
) -> None:
    pool = engine(files["lstm"], Device(apart=True), make_journal=journal_in(tmp_path)).pool
    assert pool.journal is not None
    one, other = pool.first_slot, pool.first_slot + 7
    values = [np.full_like(state, number + 1) for number, state in enumerate(pool.read(one))]
    pool.write(one, [value.tobytes() for value in values])
    pool.copy(one, other)
    for row in (one, other):
        for state, value, held in zip(pool.journal.states, values, pool.read(row), strict=True):
            np.testing.assert_array_equal(state[row], value)
            np.testing.assert_array_equal(held, value)


def test_a_run_makes_one_copy_each_way(
    files: dict[str, ModelFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = engine(files["lstm"], Device(apart=True), make_journal=journal_in(tmp_path))
    staging = card._staging
    assert isinstance(staging, CardStaging)
    outputs, both = (
        staging._packed(4, 1, 1)[1],
        sum(array.nbytes for array in card.stage(4, 1).written),
    )
    assert outputs >= both > 0
    copied: list[int] = []
    copy_out = staging.copies.copy_out

    def counted(host: int, device: int, size: int) -> None:
        copied.append(size)
        copy_out(host, device, size)

    monkeypatch.setattr(staging.copies, "copy_out", counted)
    card._staged.clear()  # what has been staged keeps the function that it was made with
    staged = card.stage(4, 1)
    card.pad(staged, 0)
    card.run(staged)
    assert copied == [outputs]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers run their models by a card's path."""
    monkeypatch.setattr(
        Device, "parse", classmethod(lambda cls, text, *, tf32=False: Device(apart=True, tf32=tf32))
    )


@pytest.fixture
def engines(card: None, tmp_path: Path) -> Iterator[Engines]:
    (tmp_path / "models").mkdir()
    made = Engines(save_sum(tmp_path / "models"), tmp_path)
    yield made
    made.stop()


def totals(engines: Engines) -> list[float]:
    """What two sessions add up to whose server is killed and started again behind each message."""
    clients = [Client(engines, Owner(WINDOW).opening()) for _ in range(2)]
    for client in clients:
        client.opened()
    found = []
    for number in range(3):
        for client, x in zip(clients, (1.0, 10.0), strict=True):
            client.send(step(*[x] * (3 * number + 1)))  # the last one takes two runs
            found.append(sums(client.next())[-1])
        engines.again()
    return found


RIGHT = [1, 10, 5, 50, 12, 120]


def test_a_killed_server_on_a_card_comes_back_with_its_states(engines: Engines) -> None:
    assert totals(engines) == RIGHT


def not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not get the rows of a run."""
    monkeypatch.setattr(StatePool, "keeping", lambda self, staged, go: go)


def not_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start leaves the file's rows where they are."""
    monkeypatch.setattr(StatePool, "recovered", lambda self: None)


@pytest.mark.parametrize("mutant", [not_stored, not_brought_back])
def test_a_server_on_a_card_that_breaks_a_rule_is_found(
    engines: Engines, monkeypatch: pytest.MonkeyPatch, mutant: Callable[[pytest.MonkeyPatch], None]
) -> None:
    mutant(monkeypatch)
    engines.again()
    assert totals(engines) != RIGHT


def test_rows_are_shared_by_sessions_in_a_file(files: dict[str, ModelFile], tmp_path: Path) -> None:
    rows = 8
    # Measured, the faster cell may be another one in each: it differs in bits.
    many = engine(files["lstm"], Device(apart=True), max_batch=rows // 2, cell="operator")
    few = engine(
        files["lstm"], Device(apart=True), slots=rows, cell="operator", make_journal=journal_in(tmp_path)
    )
    pool, journal = few.pool, few.pool.journal
    assert journal is not None
    # A step of a session reads one of its rows and writes the other.
    assert (few.max_batch, pool.rows) == (rows // 2, pool.first_slot + rows)
    found = compare(many, few, runs=200)
    assert (found.output_error, found.state_error) == (0, 0)
    assert pool.spilling is not None
    assert pool.spilling.spilled == SESSIONS - rows
    for slot in range(pool.first_slot + SESSIONS):
        for state, held in zip(journal.states, pool.read(slot), strict=True):
            np.testing.assert_array_equal(state[slot], held)
    one, other = pool.first_slot, pool.first_slot + SESSIONS  # a session's two rows
    pool.copy(one, other)
    pool.write(one + 1, [state[one].tobytes() for state in journal.states])
    for slot in (one, one + 1, other):
        for state, held in zip(journal.states, pool.read(slot), strict=True):
            np.testing.assert_array_equal(state[slot], held)
            np.testing.assert_array_equal(state[slot], state[one])


def not_taken_for_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start does not know that the file has states."""
    monkeypatch.setattr(Spilling, "recovered", lambda self: None)


def stored_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file gets what a run has written at the device's rows, not at those of the sessions."""
    monkeypatch.setattr(Spilling, "slots_of", lambda self, rows: rows)


def right_sums(engines: Engines) -> int:
    """How many of 60 sums are right: 20 sessions share 4 rows, and the server is killed behind each of three rounds."""
    clients = [Client(engines, Owner(WINDOW).opening()) for _ in range(20)]
    for client in clients:
        client.opened()
    rng, ended, right = np.random.default_rng(3), set[int](), 0
    for steps, total in ((1, 1), (4, 5), (7, 12)):  # the last one takes two runs
        for at in rng.permutation(20).tolist():
            if at in ended:
                continue
            clients[at].send(step(*[float(at + 1)] * steps))
            came = clients[at]._came.get(timeout=60)
            if isinstance(came, pb.StreamResponse):
                right += sums(came)[-1] == (at + 1) * total
            else:
                ended.add(at)
        engines.again()
    return right


@pytest.fixture
def few_rows(card: None, tmp_path: Path) -> Iterator[Callable[[], Engines]]:
    made: list[Engines] = []

    def make() -> Engines:
        (tmp_path / "models").mkdir()
        made.append(Engines(save_sum(tmp_path / "models"), tmp_path, max_sessions=20, slots=4))
        return made[0]

    yield make
    made[0].stop()


def test_more_sessions_than_rows_come_back_after_a_kill(few_rows: Callable[[], Engines]) -> None:
    assert right_sums(few_rows()) == 60


@pytest.mark.parametrize("mutant", [not_taken_for_spilled, stored_by_row])
def test_a_server_with_few_rows_that_breaks_a_rule_is_found(
    few_rows: Callable[[], Engines],
    monkeypatch: pytest.MonkeyPatch,
    mutant: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mutant(monkeypatch)
    assert right_sums(few_rows()) < 60


def test_without_a_journal_no_rows_are_given_out(files: dict[str, ModelFile]) -> None:
    made = pooled.pool_states(files["lstm"].load(), files["lstm"].signature, files["lstm"].constants)
    assert not any(pool.written for pool in made.pools)
    assert engine(files["lstm"], Device(apart=True)).stage(4, 1).written == []
