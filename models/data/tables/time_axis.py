"""The time of the rows: dates or counts, their step, and which rows are missing."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Dates = NDArray[np.datetime64]
DAY_S = 86_400
# Steps of a row's distance from the grid that a written number may be rounded by: 1949.083 is a month after 1949.
_ROUNDED = 0.06
# A season of more steps would make a session's state large.
LONGEST_SEASON = 400
_UNITS = ((7 * DAY_S, "week"), (DAY_S, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
_QUARTER = re.compile(r"(\d{4})[ -]?Q([1-4])", re.IGNORECASE)
_DIGITS = {8: "%Y%m%d", 6: "%Y%m"}
_OFFSET = re.compile(r"\d([+-]\d{2}:?\d{2}|Z)$")


@dataclass(frozen=True)
class TimeAxis:
    """When the rows were.

    Attributes:
        name: of the columns that say it.
        places: int64[rows], steps since the first row, if the steps are regular; else None.
        step: a step in words, "1 month"; of irregular rows the median.
        first, last: as text.
        season: the usual season in steps, 12 of monthly rows; 0: none.
        shortest, longest: distances between rows in words.
    """

    name: str
    places: NDArray[np.int64] | None
    step: str
    first: str
    last: str
    season: int
    shortest: str = ""
    longest: str = ""

    @property
    def lacking(self) -> int:
        """Rows between the first and the last that are not there."""
        return 0 if self.places is None else int(self.places[-1]) + 1 - len(self.places)

    def to_json(self) -> dict[str, Any]:
        """For config.json and the card."""
        told: dict[str, Any] = {"columns": self.name, "step": self.step, "regular": self.places is not None}
        told |= {"first": self.first, "last": self.last, "season": self.season}
        if self.places is None:
            told |= {"shortest_step": self.shortest, "longest_step": self.longest}
        return told


def parse_dates(cells: NDArray[Any], *, digits: bool, day_first: bool) -> Dates | None:
    """datetime64[s, rows] of object[rows] texts; None if they are no dates.

    Args:
        digits: whether 20240131 and 202401 are dates.
        day_first: whether 1/2/2024 is the first of February.
    """
    import pandas as pd

    text = [cell.strip() for cell in cells]
    if not text:
        return None
    if all(_QUARTER.fullmatch(cell) for cell in text):
        found = [_QUARTER.fullmatch(cell) for cell in text]
        months = [(int(m[1]) - 1970) * 12 + 3 * (int(m[2]) - 1) for m in found if m is not None]
        return np.array(months, "datetime64[M]").astype("datetime64[s]")
    if all(cell.isdigit() for cell in text):
        pattern = _DIGITS.get(len(text[0])) if digits and len({len(cell) for cell in text}) == 1 else None
        formats: list[str | None] = [pattern] if pattern else []
    elif any(_is_number(cell) for cell in text[:20]):
        formats = []
    else:
        formats = [None]
    zoned = all(_OFFSET.search(cell) for cell in text)
    for pattern in formats:
        for first in (day_first, not day_first):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    dates = pd.to_datetime(
                        pd.Series(text, dtype=object), format=pattern, dayfirst=first, utc=zoned
                    )
                except (ValueError, TypeError, OverflowError):
                    continue
            if str(dates.dtype) == "object" or dates.isna().any():
                continue
            if zoned:
                dates = dates.dt.tz_localize(None)
            found_dates: Dates = dates.to_numpy().astype("datetime64[s]")
            return found_dates
    return None


def unix_dates(numbers: NDArray[np.float64]) -> Dates | None:
    """datetime64[s, rows] of seconds or milliseconds since 1970; None if they lie outside 1973 to 2103."""
    for factor in (1, 1000):
        seconds = numbers / factor
        if len(seconds) and (seconds > 1e8).all() and (seconds < 4.2e9).all() and (seconds % 1 == 0).all():
            return seconds.astype(np.int64).astype("datetime64[s]")
    return None


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def date_axis(name: str, dates: Dates) -> TimeAxis:
    """The axis of increasing dates."""
    text = np.datetime_as_string(dates[[0, -1]], unit="s" if _has_clock(dates) else "D")
    first, last = str(text[0]), str(text[1])
    whole = _on_months(dates)
    distances_s = np.diff(dates).astype(np.int64)
    if whole is not None:
        places, step = _grid(whole - whole[0])
        if places is not None:
            label = "1 year" if step == 12 else _words(step, "month")
            season = int(12 // step) if 12 % step == 0 and step < 12 else 0
            return TimeAxis(name, places, label, first, last, season)
    if not _has_clock(dates) and _on_weekdays(dates, distances_s):
        days = dates.astype("datetime64[D]")
        return TimeAxis(name, np.busday_count(days[0], days), "1 business day", first, last, 5)
    places, step = _grid(distances_s.cumsum(), start=True)
    if places is not None:
        return TimeAxis(name, places, _duration(step), first, last, _season(step))
    shortest, middle, longest = (
        _duration(float(each)) for each in (distances_s.min(), np.median(distances_s), distances_s.max())
    )
    return TimeAxis(name, None, middle, first, last, 0, shortest, longest)


def number_axis(name: str, numbers: NDArray[np.float64]) -> TimeAxis:
    """The axis of increasing numbers: years, an index, seconds."""
    places, step = _grid(numbers - numbers[0])
    first, last = (f"{float(each):.10g}" for each in numbers[[0, -1]])
    if places is None:
        distances = np.diff(numbers)
        told = [f"{float(each):.6g}" for each in (np.median(distances), distances.min(), distances.max())]
        return TimeAxis(name, None, told[0], first, last, 0, told[1], told[2])
    # 1949.083 is a month after 1949.
    months = round(step * 12) if 1000 < numbers[0] < 3000 and step < 1 else 0
    if months and abs(step * 12 - months) < _ROUNDED:
        return TimeAxis(name, places, _words(months, "month"), first, last, int(12 // months))
    return TimeAxis(name, places, f"{step:.6g}", first, last, 0)


def _grid(since: NDArray[Any], *, start: bool = False) -> tuple[NDArray[np.int64] | None, float]:
    """Places on a regular grid and its step, if the usual distance is one and fewer rows lack than are there.

    since: increasing numbers, 0 first; with `start` the 0 is left out.
    """
    since = np.concatenate([[0], since]) if start else since
    distances = np.diff(since)
    if np.issubdtype(since.dtype, np.floating):
        # Rounded numbers: 0.083 and 0.084 in turn.
        step = float(np.median(distances))
        near = distances[np.abs(distances - step) <= _ROUNDED * step]
        if not len(near):  # of an even number of distances, the median may be none
            return None, step
        step = float(near.mean())
    else:
        values, counts = np.unique(distances, return_counts=True)
        step = float(values[counts.argmax()])
    steps = distances / step
    whole = np.round(steps)
    if (whole < 1).any() or (np.abs(steps - whole) > _ROUNDED).any():
        return None, step
    # Summed before they are integers, which very large ones do not fit in.
    if not whole.sum() + 1 <= 2 * len(since):
        return None, step
    return np.concatenate([[0], whole.astype(np.int64).cumsum()]), step


def _has_clock(dates: Dates) -> bool:
    return bool((dates.astype("datetime64[D]") != dates).any())


def _on_months(dates: Dates) -> NDArray[np.int64] | None:
    """int64[rows], months since 1970, if all dates are the same day and time of their months, or the last day."""
    months = dates.astype("datetime64[M]")
    within = (dates - months.astype(dates.dtype)).astype(np.int64)
    to_end = ((months + 1).astype(dates.dtype) - dates).astype(np.int64)
    if len(set(months.tolist())) < len(months) or not (
        (within == within[0]).all() or (to_end == to_end[0]).all()
    ):
        return None
    return months.astype(np.int64)


def _on_weekdays(dates: Dates, distances_s: NDArray[np.int64]) -> bool:
    days = dates.astype("datetime64[D]")
    most = np.mean(distances_s == DAY_S) > 0.5
    return bool(most and len(days) > 10 and np.is_busday(days).all())


def _season(step_s: float) -> int:
    if step_s < DAY_S:
        a_day = DAY_S / step_s
        return int(a_day) if a_day.is_integer() and 1 < a_day <= LONGEST_SEASON else 0
    return {DAY_S: 7, 7 * DAY_S: 52}.get(int(step_s), 0)


def _duration(seconds: float) -> str:
    for size, unit in _UNITS:
        if seconds >= size and seconds % size == 0:
            return _words(seconds / size, unit)
    size, unit = next(((s, u) for s, u in _UNITS[1:] if seconds >= s), _UNITS[-1])
    return f"{seconds / size:.4g} {unit}s"


def _words(count: float, unit: str) -> str:
    return f"{count:g} {unit}" if count == 1 else f"{count:g} {unit}s"


def increasing(values: Sequence[Any] | NDArray[Any]) -> bool:
    """Whether each value is above the one before it."""
    array = np.asarray(values)
    return bool(len(array) > 1 and (array[1:] > array[:-1]).all())
