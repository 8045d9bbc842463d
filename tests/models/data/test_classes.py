"""Data sets whose timesteps have classes: vowels and digits out of installed packages, harmony out of scores."""

from __future__ import annotations

import gzip
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from streamcell.models import DataError
from streamcell.models.data.chorales import Chorales, corpus_files, part_of
from streamcell.models.data.chorales_parse import parse_score
from streamcell.models.data.digits import load_digits, read_digits
from streamcell.models.data.harmony import harmony_data, load_degrees
from streamcell.models.data.harmony_parse import analyse_score
from streamcell.models.data.packaged import packaged_file
from streamcell.models.data.vowels import load_vowels, read_utterances

FRAMES = ":".join(["1.5,2.5,3.5"] * 12)


def write_ts(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["# about", "@data", *lines]) + "\n")
    return path


def test_the_vowels_are_as_their_authors_divided_them() -> None:
    data = load_vowels()
    assert [len(data.part(part)) for part in ("train", "valid", "test")] == [225, 45, 370]
    assert (data.input_size, data.output_size) == (12, 9)
    lengths = [len(series) for part in ("train", "valid", "test") for series in data.part(part)]
    assert (min(lengths), max(lengths)) == (7, 29)
    speakers = {
        part: np.stack([s.y[-1] for s in data.part(part)]).sum(0) for part in ("train", "valid", "test")
    }
    assert speakers["train"].tolist() == [25] * 9
    assert speakers["valid"].tolist() == [5] * 9
    # The counts of the data set's own description.
    assert speakers["test"].tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    # The question is asked once, at the end.
    for series in data.test:
        assert series.y[-1].sum() == 1
        assert not series.y[:-1].any()
    assert [each["timesteps"] for each in data.sizes.values()] == [225, 45, 370]
    assert data.train[0].x[0, 0] == pytest.approx(1.860936)
    standard = data.input_standard
    assert standard is not None
    frames = np.concatenate([series.x for series in data.train])
    np.testing.assert_allclose(((frames - standard.mean) / standard.std).mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(((frames - standard.mean) / standard.std).std(0), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1.5,2.5:1", "line 3: expected 12 dimensions and a speaker, got 1 dimensions"),
        (f"{FRAMES}:10", "expected a speaker from 1 to 9, got '10'"),
        (f"{FRAMES},4.5:2", "not of one length"),
        (FRAMES.replace("2.5", "nan", 1) + ":2", "not finite"),
        (FRAMES.replace("2.5", "two", 1) + ":2", "could not convert string to float: 'two'"),
        (f"{FRAMES}:2", "does not have utterances of 9 speakers"),
    ],
)
def test_a_file_of_utterances_that_is_not_right_is_refused(line: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        read_utterances(write_ts(tmp_path / "broken.ts", line))


def test_utterances_are_read_frame_by_frame(tmp_path: Path) -> None:
    path = write_ts(tmp_path / "nine.ts", *(f"{FRAMES}:{speaker}" for speaker in range(1, 10)))
    utterances = read_utterances(path)
    assert [speaker for _, speaker in utterances] == list(range(9))
    assert utterances[0][0].tolist() == [[1.5] * 12, [2.5] * 12, [3.5] * 12]


def test_the_digits_are_images_of_one_timestep() -> None:
    data = load_digits()
    assert [len(data.part(part)) for part in ("train", "valid", "test")] == [1078, 179, 540]
    assert {len(series) for series in data.train} == {1}
    # The first image is a nought, with nothing in its middle.
    first = data.train[0]
    assert first.y[0].argmax() == 0
    image = first.x[0].reshape(8, 8)
    assert image[3:5, 3:5].sum() == 0
    assert image.max() == 15


def test_a_file_of_digits_that_is_not_right_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"digits\.csv\.gz cannot be read"):
        read_digits(path)
    for row, text in (
        ([1.0] * 64, "64 columns; expected 64 pixels and a digit"),
        ([17.0] * 64 + [3], "expected pixels from 0 to 16"),
        ([1.0] * 64 + [11], "digits from 0 to 9"),
    ):
        path.write_bytes(gzip.compress(",".join(map(str, row)).encode()))
        with pytest.raises(DataError, match=text):
            read_digits(path)


def test_a_missing_package_names_the_extra_that_brings_it() -> None:
    with pytest.raises(
        DataError, match=r"the pictures need the package no-such-package: pip install 'streamcell\[data\]'"
    ):
        packaged_file("no-such-package", "x", wanted_by="the pictures")
    version = metadata.version("numpy")
    with pytest.raises(DataError, match=f"numpy {version} does not have the file no/such/file"):
        packaged_file("numpy", "no/such/file", wanted_by="the pictures")


def test_a_score_has_a_degree_for_every_timestep_of_its_roll() -> None:
    path = next(path for path in corpus_files() if path.stem == "bwv10.7")
    analysed, parsed = analyse_score(str(path)), parse_score(str(path))
    assert parsed.roll is not None
    assert len(analysed.degrees) == len(parsed.roll)
    assert analysed.key == "g minor"
    # It opens on G minor, the tonic, and ends on G major.
    assert analysed.degrees[0] == analysed.degrees[-1] == 1
    # Where D, F♯ and A sound and nothing else, the degree is the fifth.
    fifths = [
        degree
        for roll, degree in zip(parsed.roll, analysed.degrees, strict=True)
        if {(int(key) + 9) % 12 for key in np.flatnonzero(roll)} == {2, 6, 9}
    ]
    assert fifths == [5] * 3


def test_what_cannot_be_analysed_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mxl"
    broken.write_bytes(b"this is no compressed MusicXML")
    found = analyse_score(str(broken))
    assert found.degrees == ()
    assert found.failed
    five = next(path for path in corpus_files() if path.stem == "bwv227.3")
    assert analyse_score(str(five)).failed == "not in four voices"


def test_degrees_are_analysed_once_and_joined_to_the_rolls(tmp_path: Path) -> None:
    # A piece of each part.
    files: dict[str, Path] = {}
    for path in corpus_files():
        files.setdefault(part_of(path.stem), path)
    chosen = sorted(files.values())
    degrees = load_degrees(tmp_path, files=chosen)
    again = load_degrees(tmp_path, files=[])
    assert degrees.keys() == again.keys() == {path.stem for path in chosen}
    for name in degrees:
        np.testing.assert_array_equal(degrees[name], again[name])

    names = [path.stem for path in chosen]
    rolls = [parse_score(str(path)).roll for path in chosen]
    chorales = Chorales(names, [roll for roll in rolls if roll is not None])
    data = harmony_data(chorales, degrees)
    for part, path in files.items():
        (series,) = data.part(part)
        assert len(series) == len(degrees[path.stem])
        np.testing.assert_array_equal(series.y.argmax(1) + 1, degrees[path.stem])
    with pytest.raises(DataError, match="none of the scores could be analysed"):
        load_degrees(tmp_path / "none", files=[])
    short = {**degrees, names[0]: degrees[names[0]][:-1]}
    with pytest.raises(DataError, match=f"{names[0]} has .* timesteps and .* degrees"):
        harmony_data(chorales, short)
    with pytest.raises(DataError, match="the test part has no piece"):
        harmony_data(chorales, {name: degrees[name] for name in degrees if part_of(name) != "test"})
