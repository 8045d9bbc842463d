"""How long a client waits that the server has told to come again: within its limit, and never not at all."""

from __future__ import annotations

import pytest

from streamcell.client import LimitReached
from streamcell.client.protocol.retries import Retries


def refused(retry_after_s: float | None) -> LimitReached:
    error = LimitReached("later")
    error.retry_after_s = retry_after_s
    return error


def test_it_waits_as_long_as_the_server_says_if_the_limit_allows() -> None:
    now_s = [0.0]
    retries = Retries(10.0, lambda: now_s[0])
    assert retries.pause_s(refused(None)) is None
    assert 2.0 <= (retries.pause_s(refused(2.0)) or 0) <= 2.5
    now_s[0] = 8.5
    assert retries.left_s == 1.5
    assert retries.pause_s(refused(2.0)) is None


@pytest.mark.parametrize("told_s", [0.0, -1.0, 1e-9])
def test_a_server_cannot_have_its_clients_come_again_at_once(told_s: float) -> None:
    pause_s = Retries(10.0).pause_s(refused(told_s))
    assert pause_s is not None
    assert pause_s >= 0.01
