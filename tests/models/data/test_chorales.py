"""The chorales: from score files to piano rolls, de-duplicated, split by name and cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamcell.models import Chorales, DataError, chorales_data, load_chorales
from streamcell.models.data.cache import read_rolls, write_rolls
from streamcell.models.data.chorales import collect, corpus_files, parse_files, part_of
from streamcell.models.data.chorales_parse import Parsed, four_voices, parse_score, piano_roll
from streamcell.models.data.piano import Roll, room, transpose, versions
from streamcell.models.data.splits import SPLITS


def random_roll(seed: int, length: int = 20) -> Roll:
    rng = np.random.default_rng(seed)
    roll = np.zeros((length, 88), np.bool_)
    for row in roll:
        row[rng.choice(np.arange(20, 60), 4, replace=False)] = True
    return roll


def write_some(path: Path) -> list[Roll]:
    rolls = [random_roll(1), random_roll(2, 7)]
    write_rolls(path, ["a", "b"], rolls, {"failed": {"c": "why"}})
    return rolls


@pytest.fixture(scope="module")
def some_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real scores, one that is in five voices, one that is no score at all."""
    corpus = {path.stem: path for path in corpus_files()}
    broken = tmp_path_factory.mktemp("scores") / "broken.mxl"
    broken.write_bytes(b"this is no compressed MusicXML")
    return [corpus["bwv10.7"], corpus["bwv101.7"], corpus["bwv227.3"], broken]


def test_a_score_becomes_four_voices_on_the_quarter_grid() -> None:
    path = next(path for path in corpus_files() if path.stem == "bwv10.7")
    parsed = parse_score(str(path))
    assert parsed.roll is not None
    # It opens in G minor: G3 in the bass, then B♭3, G4 and D5.
    assert (np.flatnonzero(parsed.roll[0]) + 21).tolist() == [55, 58, 67, 74]
    assert parsed.roll.shape == (88, 88)
    assert parsed.roll.sum(axis=1).max() == 4


@pytest.mark.parametrize("few", [0, 8], ids=["in processes", "here"])
def test_files_are_parsed_in_parallel_and_failures_are_named(
    some_files: list[Path], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamcell.models.data.parallel.FEW", few)
    told: list[tuple[int, int]] = []
    parsed = parse_files(some_files, lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    chorales = collect(parsed)
    assert chorales.names == ["bwv10.7", "bwv101.7"]
    assert chorales.report["files"] == 4
    assert chorales.report["left_out"] == {"bwv227.3": "not in four voices"}
    assert list(chorales.report["failed"]) == ["broken"]


def test_nothing_readable_is_an_error_that_says_so() -> None:
    with pytest.raises(DataError, match="none of 1 files is a usable chorale"):
        collect([Parsed("x", failed="ValueError: no")])


def test_the_corpus_is_bachs_without_the_analyses() -> None:
    files = corpus_files()
    assert len(files) > 400
    assert files == sorted(files)
    assert {path.suffix for path in files} <= {".mxl", ".xml", ".krn"}


def test_a_note_sounds_at_the_quarters_from_its_onset_to_before_its_end() -> None:
    third = 1 / 3
    voices = [
        [(0.0, 2.0, 60), (2.5, 3.0, 62), (3.0, 4.0, 64)],  # 62 falls between two quarters
        [(1.5, 3.5, 21), (5.0 - 3 * third, 5.0, 108)],
        [(7.0, 8.0, 60)],  # quarters 5 and 6 are silent and left out
    ]
    roll = piano_roll(voices)
    sounding = [(np.flatnonzero(row) + 21).tolist() for row in roll]
    assert sounding == [[60], [60], [21], [21, 64], [108], [60]]


def test_a_pitch_off_the_piano_is_an_error() -> None:
    with pytest.raises(ValueError, match="MIDI pitch 109 is not on a piano"):
        piano_roll([[(0.0, 1.0, 109)]])


class Part:
    def __init__(self, name: str | None) -> None:
        self.partName = name


def test_of_a_larger_score_the_four_voices_are_taken() -> None:
    parts = [Part(name) for name in ("Horn 1", "Bass\rContinuo", "Soprano", "Alto", "Tenor")]
    assert four_voices(parts) == [parts[2], parts[3], parts[4], parts[1]]
    assert four_voices(parts[:4]) == parts[:4]
    assert four_voices([*parts, Part("Soprano 2")]) is None
    assert four_voices([Part(None)]) is None


def test_versions_are_found_in_any_key_and_only_then() -> None:
    piece, other = random_roll(1, 40), random_roll(2, 40)
    cut = np.concatenate([transpose(piece, 3)[:30], random_roll(5, 10)])
    assert versions([piece, other, transpose(piece, -5), cut, random_roll(3, 40)]) == [None, None, 0, 0, None]


def test_transposition_moves_keys_and_room_says_how_far() -> None:
    roll = np.zeros((1, 88), np.bool_)
    roll[0, [3, 80]] = True
    assert room(roll) == (3, 7)
    assert np.flatnonzero(transpose(roll, 7)).tolist() == [10, 87]
    assert np.flatnonzero(transpose(roll, -3)).tolist() == [0, 77]
    assert np.array_equal(transpose(roll, 0), roll)


def test_the_split_depends_on_the_name_alone() -> None:
    names = [f"bwv{number}.{part}" for number in range(1, 400) for part in (1, 6)]
    shares = {part: sum(part_of(n) == part for n in names) / len(names) for part in SPLITS}
    assert shares["train"] == pytest.approx(0.7, abs=0.05)
    assert shares["valid"] == pytest.approx(0.1, abs=0.04)
    # Fixed for good: results are comparable only while these stay where they are.
    pinned = {
        "bwv10.7": "test",
        "bwv101.7": "train",
        "bwv102.7": "test",
        "bwv103.6": "test",
        "bwv104.6": "train",
    }
    assert {name: part_of(name) for name in pinned} == pinned


def test_targets_are_the_next_timestep() -> None:
    rolls = {
        "bwv10.7": random_roll(1),
        "bwv1": random_roll(2),
        "bwv2": random_roll(3),
        "bwv3": random_roll(4),
    }
    names = [next(n for n in (f"bwv{k}" for k in range(999)) if part_of(n) == p) for p in SPLITS]
    data = chorales_data(Chorales(names, list(rolls.values())[:3]))
    assert (data.input_size, data.output_size) == (88, 88)
    for split, roll in zip(SPLITS, rolls.values(), strict=False):
        (piece,) = data.part(split)
        assert np.array_equal(piece.x, roll[:-1])
        assert np.array_equal(piece.y, roll[1:])
        assert data.sizes[split] == {"sequences": 1, "timesteps": 19}


def test_an_empty_part_is_an_error() -> None:
    name = next(n for n in (f"bwv{k}" for k in range(999)) if part_of(n) == "train")
    with pytest.raises(DataError, match="the valid part has no piece"):
        chorales_data(Chorales([name], [random_roll(1)]))


def test_the_cache_gives_back_what_was_written(tmp_path: Path) -> None:
    rolls = write_some(tmp_path / "chorales.npz")
    names, found, report = read_rolls(tmp_path / "chorales.npz")
    assert names == ["a", "b"]
    assert report == {"failed": {"c": "why"}}
    assert all(np.array_equal(a, b) for a, b in zip(found, rolls, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chorales.npz", "chorales.npz.sha256"]


def test_a_damaged_cache_is_noticed_and_made_again(
    tmp_path: Path, some_files: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "chorales.npz"
    write_some(path)
    assert load_chorales(tmp_path, files=some_files).names == ["a", "b"]  # untouched: not parsed again
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: its SHA-256 is"):
        read_rolls(path)
    assert load_chorales(tmp_path, files=some_files[:2]).names == ["bwv10.7", "bwv101.7"]
    assert "is damaged" in caplog.text
    assert read_rolls(path)[0] == ["bwv10.7", "bwv101.7"]


def test_a_cache_without_its_checksum_is_not_trusted(tmp_path: Path) -> None:
    write_some(tmp_path / "chorales.npz")
    (tmp_path / "chorales.npz.sha256").unlink()
    with pytest.raises(DataError, match="says nothing"):
        read_rolls(tmp_path / "chorales.npz")
