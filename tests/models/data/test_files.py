"""Data sets from files: the JSB JSON layout and numeric CSV tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.models import DataError, load_jsb, load_table
from streamcell.models.data.tables.options import TableOptions

PIECE = [[60, 64, 67], [], [21, 108], [60.0, -1]]
GOOD: dict[str, Any] = {"train": [PIECE, PIECE[:2]], "valid": [PIECE], "test": [PIECE]}


def json_file(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "jsb.json"
    path.write_text(json.dumps(document))
    return path


def test_the_standard_json_layout_is_read(tmp_path: Path) -> None:
    data = load_jsb(json_file(tmp_path, GOOD))
    assert [len(data.part(split)) for split in ("train", "valid", "test")] == [2, 1, 1]
    piece = data.train[0]
    assert [(np.flatnonzero(row) + 21).tolist() for row in piece.x] == [[60, 64, 67], [], [21, 108]]
    assert [(np.flatnonzero(row) + 21).tolist() for row in piece.y] == [[], [21, 108], [60]]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "is not an object"),
        ({"train": []}, "lacks valid, test"),
        ({**GOOD, "valid": 3}, "valid must be a list of pieces; got int"),
        ({**GOOD, "test": [PIECE, [[60]]]}, r"test\[1\] must be a list of at least two timesteps"),
        ({**GOOD, "test": [[[60], 61]]}, r"test\[0\]\[1\] must be a list of MIDI notes; got int"),
        ({**GOOD, "train": [[[60], [20]]]}, r"train\[0\]\[1\] has MIDI note 20; expected 21 to 108"),
        ({**GOOD, "train": [[[60], ["C4"]]]}, r"train\[0\]\[1\] has 'C4'; expected a whole MIDI note"),
        ({**GOOD, "train": [[[60.5], [60]]]}, r"train\[0\]\[0\] has 60.5"),
        ({**GOOD, "test": []}, "the test part has no piece"),
    ],
)
def test_json_of_another_layout_is_refused_with_its_place(
    tmp_path: Path, document: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_jsb(json_file(tmp_path, document))


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load_jsb(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_jsb(tmp_path / "missing.json")


def csv_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "series.csv"
    path.write_text(text)
    return path


def series(rows: int = 40) -> tuple[str, np.ndarray]:
    values = np.stack([np.arange(rows), 100 + 3 * np.sin(np.arange(rows)), np.full(rows, 7.0)], axis=1)
    lines = ["ramp,load,flat", *(",".join(map(repr, row.tolist())) for row in values)]
    return "\n".join(lines) + "\n", values.astype(np.float32)


def test_a_table_is_split_in_time_and_foretells_chosen_columns(tmp_path: Path) -> None:
    text, values = series()
    data = load_table(csv_file(tmp_path, text), ["load"])
    assert (data.input_size, data.output_size) == (3, 1)
    for part, (start, end) in {"train": (1, 28), "valid": (28, 34), "test": (34, 40)}.items():
        (piece,) = data.part(part)
        # The rows before a part are read without being asked for: a session's client has sent them, too.
        np.testing.assert_array_equal(piece.x, values[: end - 1])
        np.testing.assert_array_equal(piece.y[: start - 1], np.nan)
        np.testing.assert_array_equal(piece.y[start - 1 :], values[start:end, [1]])
        assert piece.asked(data.distribution) == end - start


def test_a_part_reads_a_bounded_number_of_rows_before_it(tmp_path: Path) -> None:
    data = load_table(csv_file(tmp_path, series(2000)[0]), ["load"])
    assert [len(data.part(part)[0]) for part in ("train", "valid", "test")] == [1399, 812, 812]
    assert [data.part(part)[0].asked(data.distribution) for part in ("train", "valid", "test")] == [
        1399,
        300,
        300,
    ]


def test_standardisation_is_learned_from_the_training_part_alone(tmp_path: Path) -> None:
    text, values = series()
    data = load_table(csv_file(tmp_path, text), ["load", "ramp"])
    inputs, outputs = data.input_standard, data.output_standard
    assert inputs is not None
    assert outputs is not None
    np.testing.assert_allclose(inputs.mean, values[:28].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(inputs.std[:2], values[:28, :2].std(axis=0), rtol=1e-5)
    assert inputs.std[2] == 1.0  # a constant column is not divided by nothing
    np.testing.assert_array_equal(outputs.mean, inputs.mean[[1, 0]])


def test_without_targets_every_column_is_foretold(tmp_path: Path) -> None:
    assert load_table(csv_file(tmp_path, series()[0])).output_size == 3


@pytest.mark.parametrize(
    ("text", "targets", "message"),
    [
        ("", [], "is empty; expected a header"),
        ("1,2\n3,4\n", [], "the first line holds numbers; expected a header .* Say --no-header"),
        ("a,b\n1,2\n3,x\n", [], "line 2, column 'b': '2' is not a number. Say --categories one-hot"),
        (
            f"a,b\n{'1,2' + chr(10)}" * 1 + "1,2\n" * 9 + "3,x\n",
            [],
            "line 12, .*'x' is not .* say --missing 'x'",
        ),
        ("a,b\n1,2\n,4\n", [], "line 3, column 'a': the value is missing .* Choose --gaps"),
        ("a,b\n1,2\n3,nan\n", [], "line 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3,inf\n", [], "line 3, column 'b': 'inf' is not a finite float32"),
        ("a,b\n1,1e39\n", [], "line 2, column 'b': '1e39' is not a finite float32"),
        ("a,b\n1,2\n3\n", [], "line 3, column 'b': the value is missing"),
        ("a,b\n1,2\n\n3,4\n", [], "line 3: the row is empty"),
        ("a,b\n1,2\n3,4,5\n", [], "line 3: 3 values; the header names 2 columns"),
        ("a,b\n1,2\n3,4,5,6\n", [], "line 3: 4 values; the header names 2 columns.* say --separator"),
        ("a,b\n1,2\n3,4\n", [], "has 2 rows, too few"),
        ("a,b\n1,2\n", ["c"], "has no column c; it has a, b"),
        ("a,b\n1,2\n", ["a", "a"], "a target is named twice"),
    ],
)
def test_a_bad_table_is_refused_with_line_and_column(
    tmp_path: Path, text: str, targets: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_table(csv_file(tmp_path, text), targets)


def test_a_column_without_values_in_a_part_is_no_target(tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"{k},{k if k < 30 else ''}\n" for k in range(40))
    with pytest.raises(DataError, match=r"b has no value in rows 35 to 40.*--target"):
        load_table(csv_file(tmp_path, text), ["a", "b"], TableOptions(gaps="forward"))
    data = load_table(csv_file(tmp_path, text), (), TableOptions(gaps="forward"))
    assert (data.input_size, data.about["targets"]) == (2, ["a"])
    assert "b has no value in rows 35 to 40: an input that is not forecast" in data.notes


def test_the_least_number_of_rows_is_what_the_error_says(tmp_path: Path) -> None:
    rows = [f"{k},{k * k}" for k in range(30)]
    for count in range(11, 31):
        data = load_table(csv_file(tmp_path, "\n".join(["a,b", *rows[:count]])))
        assert all(len(data.part(split)[0]) >= 1 for split in ("train", "valid", "test"))
    with pytest.raises(DataError, match="has 10 rows, too few to split 70/15/15; at least 11 are needed"):
        load_table(csv_file(tmp_path, "\n".join(["a,b", *rows[:10]])))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"a,b\n\xff\x81,1\n")
    with pytest.raises(DataError, match="is not text in utf-8 or cp1252: give its encoding with --encoding"):
        load_table(tmp_path / "x.csv")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_table(tmp_path / "missing.csv")
