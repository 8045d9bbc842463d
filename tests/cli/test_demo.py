"""The demo `continue`, from made-up chorales to MIDI files; and rolls as MIDI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from music21 import midi
from typer.testing import CliRunner

from streamcell.cli import app
from streamcell.cli.demos import chorales, cluster, durable
from streamcell.models import write_midi
from streamcell.models.data import cache
from streamcell.models.data.chorales import CACHE_NAME
from streamcell.models.data.midi import notes


def test_a_key_is_held_while_it_stays_on() -> None:
    roll = np.zeros((6, 88), np.bool_)
    roll[0:3, 39] = roll[4:6, 39] = roll[2:3, 43] = True
    assert notes(roll) == [(0, 3, 60), (2, 1, 64), (4, 2, 60)]
    assert notes(np.zeros((3, 88))) == []


def read_midi(path: Path) -> np.ndarray[Any, Any]:
    """bool[time, 88], as music21 reads the file's events."""
    file = midi.MidiFile()
    file.open(path)
    file.read()
    file.close()
    (track,) = file.tracks
    ticks, struck = 0, {}
    held: list[tuple[int, int, int]] = []
    for event in track.events:
        if event.isDeltaTime():
            ticks += event.time
        elif event.isNoteOn():
            assert event.pitch not in struck
            struck[event.pitch] = ticks
        elif event.isNoteOff():
            held.append((event.pitch - 21, struck.pop(event.pitch), ticks))
    assert not struck
    quarter = file.ticksPerQuarterNote
    roll = np.zeros((ticks // quarter, 88), np.bool_)
    for key, begin, end in held:
        roll[begin // quarter : end // quarter, key] = True
    return roll


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_a_roll_comes_back_from_its_midi_file(tmp_path: Path, share: float) -> None:
    roll = np.random.default_rng(0).random((30, 88)) < share
    write_midi(tmp_path / "roll.mid", roll)
    np.testing.assert_array_equal(read_midi(tmp_path / "roll.mid"), roll)


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray[Any, Any]]:
    """Made-up chorales in the current folder, which is new; the split by name gives two to the test part.

    Demos train on them for two epochs: by the clock, their models would be others each time, and some miss a tolerance.
    """
    monkeypatch.setattr(chorales, "EPOCHS", 2)
    rng = np.random.default_rng(1)
    rolls = [np.repeat(rng.random((45, 88)) < 0.05, 2, axis=0) for _ in range(8)]
    names = [f"piece-{number}" for number in range(len(rolls))]
    (tmp_path / "data").mkdir()
    cache.write_rolls(tmp_path / "data" / CACHE_NAME, names, rolls, {"source": "made up"})
    monkeypatch.chdir(tmp_path)  # where no other demo has run
    return rolls


@pytest.mark.slow
def test_the_demo_of_a_killed_server_loses_and_doubles_nothing(
    tmp_path: Path, made_up: list[np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "KILLS", 2)
    out = tmp_path / "out"
    arguments = ["demo", "durable", "--out", str(out), "--sessions", "4"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads((out / "report.json").read_text())
    assert (figures["kills"], figures["lost"], figures["doubled"]) == (2, 0, 0)
    assert figures["resumes"] > 0
    assert figures["steps"] >= 4
    assert figures["largest_difference"] < 1e-4
    assert abs(figures["loss_served"] - figures["loss_torch"]) < 1e-4


@pytest.mark.slow
def test_the_demo_of_a_cluster_loses_and_doubles_nothing(
    tmp_path: Path, made_up: list[np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "KILLS", 1)
    monkeypatch.setattr(cluster, "RESTARTS", 1)
    out = tmp_path / "out"
    arguments = ["demo", "cluster", "--out", str(out), "--sessions", "8", "--sync"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    for what in ("Valkey stores", "replica c serves", "Envoy stands", "(-9)", "(SIGTERM)"):
        assert what in done.output
    figures = json.loads((out / "report.json").read_text())
    assert (figures["kills"], figures["restarts"], figures["durability"]) == (1, 1, "store-sync")
    assert (figures["lost"], figures["doubled"], figures["errors"]) == (0, 0, 0)
    assert figures["resumes"] >= figures["moves"]
    assert abs(figures["loss_served"] - figures["loss_torch"]) < 1e-4


@pytest.mark.slow
def test_the_demo_continues_pieces_and_writes_what_it_says(
    tmp_path: Path, made_up: list[np.ndarray[Any, Any]]
) -> None:
    rolls, out = made_up, tmp_path / "out"
    arguments = ["demo", "continue", "--out", str(out), "--sessions", "2"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    figures = json.loads((out / "report.json").read_text())
    assert (figures["pieces"], figures["prompt_steps"], figures["added_steps"]) == (2, 16, 64)
    assert figures["generated_steps"] == 2 * 64 + figures["compared_steps"]
    assert figures["steps_alike"] == figures["compared_steps"]
    assert figures["largest_error_against_torch"] < 1e-4
    for number in (1, 2):
        roll = read_midi(out / f"continued-{number}.mid")
        assert len(roll) == 80
        assert roll[16:].any()
        assert any(np.array_equal(roll[:16], piece[:16]) for piece in rolls)
    assert (out / "piano_roll.png").read_bytes().startswith(b"\x89PNG")
