"""CSV files as people have them: how they are written is found or told, and nothing in them is lost unsaid."""

from __future__ import annotations

import gzip
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcell.models import ConfigError, DataError
from streamcell.models.data.tables import text
from streamcell.models.data.tables.options import TableOptions
from streamcell.models.data.tables.table import Table, read_table

WANTED = np.array([[1.5, 20], [2.5, 1030], [3.5, 40]], np.float32)


def table(tmp_path: Path, content: str | bytes, **options: Any) -> Table:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_table(path, TableOptions(**options))


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1.5,20\n2.5,1030\n3.5,40\n",
        "a;b\r\n1,5;20\r\n2,5;1030\r\n3,5;40\r\n",
        "a;b\n1,5;20\n2,5;1.030,0\n3,5;40\n",
        "a\tb\n1.5\t20\n2.5\t1 030\n3.5\t40\n",
        "a|b\n1.5|20\n2.5|1'030.0\n3.5|40\n",
        "  a    b\n1.5   20\n2.5 1030\n3.5   40 \n",
        'a,b\n1.5,20\n2.5,"1,030"\n3.5,40\n',
        'a;"b"\n"1,5";"20"\n"2,5";"1\u202f030"\n"3,5";"40"\n',
        "# made by hand\n#\na,b\n1.5,20\n# half way\n2.5,1030\n3.5,40\n\n\n",
        "# a b\n1.5 20\n2.5 1030\n3.5 40\n",
        "a,b\n1.5,20,\n2.5,1030,\n3.5,40,\n",
        "\ufeffa,b\r1.5,20\r2.5,1030\r3.5,40",
        "a,b\n1.5,20\n2.5,1030\n3.5,40\n".encode("utf-16"),
        gzip.compress(b"a,b\n1.5,20\n2.5,1030\n3.5,40\n", mtime=0),  # it is in the test's name
    ],
)
def test_how_a_file_is_written_is_found(tmp_path: Path, content: str | bytes) -> None:
    read = table(tmp_path, content)
    assert read.columns == ["a", "b"]
    np.testing.assert_array_equal(read.values, WANTED)
    assert not read.missing.any()


def test_a_column_of_decimal_commas_is_one_column(tmp_path: Path) -> None:
    read = table(tmp_path, "a\n1,5\n2,25\n")
    assert read.columns == ["a"]
    np.testing.assert_array_equal(read.values, [[1.5], [2.25]])


def test_the_names_of_rows_that_r_writes_are_no_input(tmp_path: Path) -> None:
    read = table(tmp_path, "a b\n1 1.5 20\n2 2.5 1030\n3 3.5 40\n")
    assert read.columns == ["a", "b"]
    np.testing.assert_array_equal(read.values, WANTED)


def test_a_file_that_is_not_utf_8_is_read_as_windows_writes_it_and_that_is_told(tmp_path: Path) -> None:
    read = table(tmp_path, "höhe;größe\n1;2\n3;4\n".encode("cp1252"))
    assert read.columns == ["höhe", "größe"]
    assert "the file is not UTF-8: read as cp1252 (--encoding)" in read.notes
    assert table(tmp_path, "ż;b\n1;2\n".encode("cp1250"), encoding="cp1250").columns == ["ż", "b"]
    with pytest.raises(DataError, match="--encoding nothing is no encoding"):
        table(tmp_path, "a\n1\n", encoding="nothing")


def test_what_is_told_is_not_found(tmp_path: Path) -> None:
    read = table(tmp_path, "a;b\n1,234;5\n", separator=";", decimal=",")
    np.testing.assert_array_equal(read.values, np.array([[1.234, 5]], np.float32))
    read = table(tmp_path, "a;b\n1,234;5\n", thousands=",")
    np.testing.assert_array_equal(read.values, [[1234, 5]])
    read = table(tmp_path, "a b\n% no row\n1 2\n", comment="%", separator="space")
    np.testing.assert_array_equal(read.values, [[1, 2]])
    read = table(tmp_path, "1,2\n-999,4\n5,6\n", header=False, missing=("-999",), gaps="forward")
    assert read.columns == ["column1", "column2"]
    np.testing.assert_array_equal(read.values, [[1, 2], [1, 4], [5, 6]])


def test_numbers_that_can_be_read_in_two_ways_are_asked_about(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'1,234' can be read in two ways: say --decimal ',' or --thousands"):
        table(tmp_path, "a;b\n1,234;5\n")


def test_a_group_of_thousands_has_three_digits(tmp_path: Path) -> None:
    # pandas itself reads "1,5" with thousands "," as 15.
    with pytest.raises(DataError, match="'1,5' is not a number"):
        table(tmp_path, 'a,b\n"1,5",2\n', thousands=",", decimal=".")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaps": "guess"}, "gaps must be one of refuse, forward, linear, mask"),
        ({"categories": "drop"}, "categories must be one of refuse, one-hot"),
        ({"decimal": ";"}, "decimal must be one of"),
        ({"separator": ";;"}, "separator must be one character"),
        ({"thousands": "0"}, "thousands must be one character that is no digit"),
        ({"decimal": ",", "thousands": ","}, "decimal and thousands are both ','"),
        ({"columns": ("a",), "drop": ("a", "b")}, "columns and drop both name a"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(tmp_path, "a\n1\n", **options)


def test_options_are_json_and_back() -> None:
    options = TableOptions(separator="tab", time=("year", "month"), missing=("x",), header=False)
    assert TableOptions.from_json(options.to_json()) == options


def test_names_are_made_unique_and_that_is_told(tmp_path: Path) -> None:
    read = table(tmp_path, "a,a,,a\n1,2,3,4\n")
    assert read.columns == ["a", "a.2", "column3", "a.3"]
    assert len(read.notes) == 3


@pytest.mark.parametrize(
    ("times", "step", "season"),
    [
        (["1949-01", "1949-02", "1949-03"], "1 month", 12),
        (["1949-01-31", "1949-02-28", "1949-03-31"], "1 month", 12),
        (["1970 Q1", "1970 Q2", "1970 Q3"], "3 months", 4),
        (["1991 Jul", "1991 Aug", "1991 Sep"], "1 month", 12),
        (["Jan-1-1995", "Feb-1-1995", "Mar-1-1995"], "1 month", 12),
        (["192607", "192608", "192609"], "1 month", 12),
        (["19580329", "19580405", "19580412"], "1 week", 52),
        (["13/1/2024", "14/1/2024", "15/1/2024"], "1 day", 7),
        (["1/13/2024", "1/14/2024", "1/15/2024"], "1 day", 7),
        (["2015-11-22T23:00:00-06:00", "2015-11-23T00:00:00-06:00"], "1 hour", 24),
        (["2021-05-01 00:00:00+00:00", "2021-05-01 00:30:00+00:00"], "30 minutes", 48),
        # The clocks go forward: an hour passes.
        (["2024-03-31T01:00+01:00", "2024-03-31T03:00+02:00"], "1 hour", 24),
        (["1711929600", "1711933200", "1711936800"], "1 hour", 24),
        (["1711929600000", "1711930500000"], "15 minutes", 96),
        (["1700", "1701", "1702"], "1", 0),
        (["1949", "1949.083", "1949.167", "1949.25"], "1 month", 12),
        (["0", "1", "2"], "1", 0),
    ],
)
def test_the_time_axis_is_found_and_is_no_input(
    tmp_path: Path, times: list[str], step: str, season: int
) -> None:
    lines = "".join(f"{each},{k * k}\n" for k, each in enumerate(times))
    read = table(tmp_path, "time,load\n" + lines)
    assert read.columns == ["load"]
    assert read.axis is not None
    assert (read.axis.step, read.axis.season, read.axis.lacking) == (step, season, 0)
    assert read.about["time"]["step"] == step
    assert table(tmp_path, "time,load\n" + lines, time=("none",)).axis is None
    if step != "1":
        alone = table(tmp_path, "time,load\n" + lines, columns=("load",))
        assert (alone.columns, alone.about["time"]) == (read.columns, read.about["time"])


def test_a_count_that_is_asked_for_is_an_input(tmp_path: Path) -> None:
    read = table(tmp_path, "time,load\n1,5\n2,6\n", columns=("time", "load"))
    assert read.columns == ["time", "load"]
    assert read.axis is None


def test_a_year_and_a_month_are_one_time(tmp_path: Path) -> None:
    months = ["Jan", "Feb", "Mar", "Apr"]
    text = "year,month,passengers\n" + "".join(f"1949,{month},{k}\n" for k, month in enumerate(months))
    read = table(tmp_path, text)
    assert read.columns == ["passengers"]
    assert read.axis is not None
    assert (read.axis.name, read.axis.step) == ("year, month", "1 month")


def test_an_index_beside_dates_is_left_out_and_that_is_told(tmp_path: Path) -> None:
    read = table(tmp_path, ",day,load\n0,2024-01-01,5\n1,2024-01-02,6\n")
    assert read.columns == ["load"]
    assert any("column without a name is left out" in note for note in read.notes)


def test_rows_are_put_in_the_order_of_time_and_that_is_told(tmp_path: Path) -> None:
    read = table(tmp_path, "date,load\n2024-01-03,3\n2024-01-02,2\n2024-01-01,1\n")
    np.testing.assert_array_equal(read.values, [[1], [2], [3]])
    assert any("newest first" in note for note in read.notes)
    read = table(tmp_path, "date,load\n2024-01-03,3\n2024-01-01,1\n2024-01-02,2\n")
    np.testing.assert_array_equal(read.values, [[1], [2], [3]])
    assert any("sorted" in note for note in read.notes)


def test_a_time_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    text = "symbol,date,price\nA,2024-01-01,1\nA,2024-01-02,2\nB,2024-01-01,3\n"
    with pytest.raises(DataError, match=r"lines 2 and 4: the time 2024-01-01.* is there twice .*--time none"):
        table(tmp_path, text)


def test_dates_that_are_not_the_time_are_left_out_and_that_is_told(tmp_path: Path) -> None:
    text = "date,due,load\n2024-01-01,2024-03-01,5\n2024-01-02,-,6\n"
    read = table(tmp_path, text)
    assert read.columns == ["load"]
    assert "the dates of 'due' are left out: they are no numbers" in read.notes
    assert (
        "the dates of 'date', 'due' are left out: they are no numbers"
        in table(tmp_path, text, time=("none",)).notes
    )


def test_irregular_steps_are_told(tmp_path: Path) -> None:
    days = [1, 2, 3, 9, 11, 30]
    text = "date,load\n" + "".join(f"2024-01-{day:02}T0{day % 7}:30,{day}\n" for day in days)
    read = table(tmp_path, text)
    assert read.values[:, 0].tolist() == days
    (note,) = [note for note in read.notes if "irregular" in note]
    assert "from " in note
    assert "every row is a timestep" in note
    assert read.about["time"]["regular"] is False


def test_business_days_have_no_gap_at_weekends(tmp_path: Path) -> None:
    days = np.arange("2024-01-01", "2024-02-01", dtype="datetime64[D]")
    rows = [f"{day},{k}\n" for k, day in enumerate(days) if np.is_busday(day)]
    read = table(tmp_path, "date,load\n" + "".join(rows))
    assert read.axis is not None
    assert (read.axis.step, read.axis.lacking) == ("1 business day", 0)
    with pytest.raises(
        DataError, match="line 5: missing before it: 1 row; a step of 'date' is 1 business day"
    ):
        table(tmp_path, "date,load\n" + "".join(rows[:3] + rows[4:]))


GAPS = "date,a,b\n2024-01-01,1,10\n2024-01-02,,20\n2024-01-05,4,50\n2024-01-06,5,\n2024-01-07,6,70\n2024-01-08,7,80\n"
FORWARD = np.array([[1, 10], [1, 20], [1, 20], [1, 20], [4, 50], [5, 50], [6, 70], [7, 80]], np.float32)
LINEAR = np.array(
    [[1, 10], [1.75, 20], [2.5, 30], [3.25, 40], [4, 50], [5, 60], [6, 70], [7, 80]], np.float32
)
LACKING = np.zeros((8, 2), bool)
LACKING[[1, 2, 3], 0] = LACKING[[2, 3, 5], 1] = True


def test_gaps_are_refused_with_the_ways_on(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 3, column 'a': the value is missing \(2 missing values in 2 columns"
    ):
        table(tmp_path, GAPS)
    with pytest.raises(
        DataError, match=r"line 3: missing before it: 1 row; .*--gaps forward, linear or mask"
    ):
        table(tmp_path, "date,a\n2024-01-01,1\n2024-01-03,2\n2024-01-04,2\n2024-01-05,3\n")
    with pytest.raises(DataError, match="column 'b' has no values at all: --drop b"):
        table(tmp_path, "a,b\n1,\n2,\n", gaps="forward")


@pytest.mark.parametrize(("way", "wanted"), [("forward", FORWARD), ("linear", LINEAR)])
def test_gaps_of_cells_and_of_rows_are_filled_and_told(tmp_path: Path, way: str, wanted: Any) -> None:
    read = table(tmp_path, GAPS, gaps=way)
    np.testing.assert_array_equal(read.values, wanted)
    np.testing.assert_array_equal(read.missing, LACKING)
    assert f"2 missing rows of 8 by 'date': filled ({way})" in read.notes
    assert f"2 missing cells: filled ({way})" in read.notes
    assert read.about["filled"] == 6


def test_a_mask_says_which_values_are_missing(tmp_path: Path) -> None:
    read = table(tmp_path, GAPS, gaps="mask")
    assert read.columns == ["a", "b", "a missing", "b missing"]
    np.testing.assert_array_equal(read.values, np.concatenate([FORWARD, LACKING], axis=1))


def test_a_gap_at_the_start_takes_the_first_value_and_says_so(tmp_path: Path) -> None:
    read = table(tmp_path, "a\n-\n2\n3\n", gaps="forward")
    np.testing.assert_array_equal(read.values, [[2], [2], [3]])
    assert any("nothing comes before the first gap of a" in note for note in read.notes)


def test_an_empty_line_of_one_column_is_a_gap(tmp_path: Path) -> None:
    read = table(tmp_path, "a\n1\n\n3\n", gaps="linear")
    np.testing.assert_array_equal(read.values, [[1], [2], [3]])


@given(
    st.lists(st.sampled_from(["row", "row", "row", "no row", "no cell"]), min_size=6, max_size=30).filter(
        lambda kinds: kinds[0] == kinds[-1] == "row" and kinds.count("row") > len(kinds) * 0.7
    ),
    st.sampled_from(["forward", "linear", "mask"]),
)
@settings(max_examples=60, deadline=None)
def test_every_step_of_the_axis_is_a_row_whatever_is_missing(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], way: str
) -> None:
    lines = ["day,load"]
    for day, kind in enumerate(kinds):
        if kind != "no row":
            lines.append(f"{np.datetime64('2024-01-01') + day},{'' if kind != 'row' else day + 1}")
    path = tmp_path_factory.mktemp("gaps") / "t.csv"
    path.write_text("\n".join(lines))
    gap = np.array([kind != "row" for kind in kinds])
    read = read_table(path, TableOptions(gaps=way))
    assert len(read.values) == len(kinds)
    np.testing.assert_array_equal(read.missing[:, 0], gap)
    np.testing.assert_array_equal(read.values[~gap, 0], np.flatnonzero(~gap) + 1)
    if gap.any():
        with pytest.raises(DataError, match="missing"):
            read_table(path)


WEATHER = "temp,weather,wind\n1,rain,3\n2,sun,4\n3,rain,5\n"


def test_words_are_refused_or_one_hot_or_dropped(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"line 2, column 'weather': 'rain' is not a number. Say --categories one-hot"
    ):
        table(tmp_path, WEATHER)
    read = table(tmp_path, WEATHER, categories="one-hot")
    assert read.columns == ["temp", "wind", "weather=rain", "weather=sun"]
    np.testing.assert_array_equal(read.values, [[1, 3, 1, 0], [2, 4, 0, 1], [3, 5, 1, 0]])
    assert read.about["categories"] == {"weather": ["rain", "sun"]}
    assert table(tmp_path, WEATHER, drop=("weather",)).columns == ["temp", "wind"]
    assert table(tmp_path, WEATHER, columns=("wind",)).columns == ["wind"]
    with pytest.raises(DataError, match="has no column rain"):
        table(tmp_path, WEATHER, drop=("rain",))
    many = "a,w\n" + "".join(f"{k},w{k}\n" for k in range(80))
    with pytest.raises(DataError, match="80 different words, more than 64: --drop 'w'"):
        table(tmp_path, many, categories="one-hot")


def test_truths_are_numbers(tmp_path: Path) -> None:
    np.testing.assert_array_equal(table(tmp_path, "a,b\n1,True\n2,false\n").values, [[1, 1], [2, 0]])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1,2\n1," + "1" * 50_000 + "x\n", "is not a number"),
        (",".join(["a"] * 5000) + "\n" + ",".join(["1"] * 5000) + "\n" + ",".join(["x"] * 5000), "a.5000"),
    ],
    ids=["digits", "names"],
)
def test_no_cell_and_no_header_holds_the_reader_up(tmp_path: Path, content: str, told: str) -> None:
    began_s = time.monotonic()
    with pytest.raises(DataError, match=told):
        table(tmp_path, content)
    assert time.monotonic() - began_s < 30


def test_a_long_word_takes_the_room_of_no_other(tmp_path: Path) -> None:
    rows = "".join(f"{row},sun\n" for row in range(20_000))
    tracemalloc.start()
    try:
        read = table(tmp_path, f"a,b\n{rows}1,{'x' * 1000}\n", categories="one-hot")
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert read.values[:, 1:].sum() == len(read.values)


def test_what_gzip_holds_is_not_believed_to_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "MOST_BYTES", 3_000_000)
    packed = gzip.compress(b"a\n" + b"1\n" * 30_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"t\.csv holds more than 3000000 bytes, packed by gzip: unpack it"
        ):
            table(tmp_path, packed)
        assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("gaps", ["forward", "linear", "mask"])
def test_one_wrong_date_makes_no_millions_of_rows(tmp_path: Path, gaps: str) -> None:
    days = np.busday_offset("2024-01-01", np.arange(25))
    rows = "".join(f"{day},1\n" for day in days)
    with pytest.raises(DataError, match="2080813 missing rows by 'date', more than the 26 that are there"):
        table(tmp_path, f"date,b\n{rows}9999-12-30,3\n", gaps=gaps)


def many(width: int) -> str:
    return f"{','.join(f'c{place}' for place in range(width))}\n{','.join('1' * width)}\n"


@pytest.mark.parametrize(
    ("content", "told", "options"),
    [
        ("a,b\n" + "1,2\n" * 20 + f"5,{'6x' * 50_000}\n", "line 22, column 'b': '6x6x", {}),
        (f"a,b\n1,{'9' * 400}\n", "line 2, column 'b': '999", {}),
        (f"a,b\n1,{'rain' * 30_000}\n", "'rainrain", {}),
        (f"a,b\n1,{'rain' * 30_000}\n", "has 'rainrain", {"categories": "one-hot"}),
        (f"a,{'b' * 90_000}\n1,2\n", "the name of column 2, 'bbb", {}),
        (many(3000), "and 2960 more", {"drop": ("x",)}),
        ("a,b\x1b[31m\n1,2\n", r"it has a, 'b\\x1b\[31m'", {"drop": ("x",)}),
    ],
)
def test_of_a_file_s_text_an_error_tells_what_a_screen_has_room_for(
    tmp_path: Path, content: str, told: str, options: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=told) as error:
        table(tmp_path, content, **options)
    assert len(str(error.value)) < 600 + len(str(tmp_path))
    assert str(error.value).isprintable()


def test_of_many_equal_names_the_first_are_told(tmp_path: Path) -> None:
    notes = table(tmp_path, ",".join("a" * 500) + "\n" + ",".join("1" * 500)).notes
    assert notes[0] == "column 2, 'a' in the header, is read as 'a.2'"
    assert len(notes) < 30
    assert "479 more columns are renamed likewise" in notes


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a,b\n1," + "2" * 200_000 + "\n", "field larger than field limit"),
        ("a," + "b" * 200_000 + "\n1,2\n", "field larger than field limit"),
        ("time,b\n1,1\n2,2\n3,3\ninf,4\n", "line 5, column 'time': 'inf' is not a finite float32"),
        (
            "year,month,b\n2001,1,1\n2002,1,2\n2003,1,3\ninf,1,4\n",
            "line 5, column 'year': 'inf' is not a finite",
        ),
    ],
)
def test_cells_and_times_without_measure_are_errors(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        table(tmp_path, content)


@pytest.mark.parametrize(
    ("columns", "last"),
    [("time", "1e308"), ("year", "1e18"), ("year,month", "1e18,1"), ("year,month,day", "2003,1,1e17")],
)
def test_times_beyond_64_bits_are_irregular_or_none(tmp_path: Path, columns: str, last: str) -> None:
    parts = ",1" * columns.count(",")
    rows = "".join(f"{year}{parts},{year}\n" for year in range(2001, 2021))
    read = table(tmp_path, f"{columns},b\n{rows}{last},2021\n")
    assert len(read.values) == 21
    assert read.axis is None or read.axis.places is None


def test_counts_whose_usual_distance_is_none_of_theirs_are_irregular(tmp_path: Path) -> None:
    read = table(tmp_path, "time,b\n1,1\n2,2\n102,3\n")
    assert read.axis is not None
    assert read.axis.places is None
    np.testing.assert_array_equal(read.values, [[1], [2], [3]])


@pytest.mark.parametrize("name", ["year", "id", "time", "timestamp"])
def test_one_wrong_cell_of_a_column_of_times_is_told(tmp_path: Path, name: str) -> None:
    rows = "".join(f"{year},{year}\n" for year in range(1990, 2010))
    content = f"{name},b\n{rows}word,1\n"
    with pytest.raises(DataError, match=f"line 22, column '{name}': 'word' is not a number"):
        table(tmp_path, content)
    with pytest.raises(DataError, match=f"line 22, column '{name}': 'word' is no time"):
        table(tmp_path, content, time=(name,))


@pytest.mark.parametrize("categories", ["refuse", "one-hot"])
def test_a_header_alone_is_an_error(tmp_path: Path, categories: str) -> None:
    with pytest.raises(DataError, match="has no rows below its header"):
        table(tmp_path, "a,b\n", categories=categories)
