"""The conformance set covers what a client can be told: each reason of an error, of a session's end, each family."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import streamcell.service
from streamcell.client import errors as families
from tests.support import valid_messages
from tests.support.conformance import ENDS, HELD, MISTAKE, NOT_NEEDED, conformance_set
from tests.support.mistakes import MISTAKES

SERVICE = Path(streamcell.service.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
# By test_mistakes.py, which makes every mistake of the table on both.
MADE = {mistake.reason for mistake in MISTAKES.values()}
# The client makes these itself.
OF_CLIENTS = {families.Cancelled, families.RowsRefused}


def kinds(of: type) -> Iterator[type]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def codes() -> dict[str, grpc.StatusCode]:
    """Each reason of the server's errors and its code; tests/client/test_errors.py holds the page to the code."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \|", PAGE.read_text(), re.MULTILINE)
    return {reason: grpc.StatusCode[code] for reason, code in rows}


def family(reason: str) -> type[families.StreamCellError]:
    """What the client raises for a reason."""
    return type(families.from_reason(codes().get(reason, grpc.StatusCode.UNKNOWN), reason, "", {}))


def ends() -> set[str]:
    """How sessions end without an error, as the server's code names it."""
    said = re.compile(r'(?:\b(?:gone|reason) = |_end\(|session_ended\()"([a-z_]+)"')
    return {end for path in SERVICE.rglob("*.py") for end in said.findall(path.read_text())}


def test_each_reason_is_held_on_both_or_the_table_says_why_not() -> None:
    assert {*HELD, *MADE, *ENDS, *NOT_NEEDED} == {*codes(), *ends()}
    assert not {*HELD, *MADE, *ENDS} & {*NOT_NEEDED}


@pytest.mark.parametrize("reason", [*HELD, *ENDS])
def test_the_test_that_the_table_names_is_in_the_set_and_asks_for_the_reason(reason: str) -> None:
    source = conformance_set()[{**HELD, **ENDS}[reason]]
    if re.search(r"\bVALID\b", source):
        source = Path(valid_messages.__file__).read_text()
    names = {reason, reason.lower(), family(reason).__name__}
    assert any(re.search(rf"\b{name}\b", source) for name in names), names


def test_each_family_of_errors_that_clients_raise_has_a_reason_that_is_held_on_both() -> None:
    held, excused = ({family(each) for each in some} for some in ({*HELD, *MADE}, NOT_NEEDED))
    leaves = {each for each in kinds(families.StreamCellError) if not each.__subclasses__()}
    assert leaves - held - OF_CLIENTS <= excused
    # The families that stand over others are raised themselves, too.
    assert held >= {families.InvalidInput, families.ProtocolMisuse, families.ServerFault}


def test_mistakes_are_made_on_both() -> None:
    assert MISTAKE in conformance_set()
