"""Sessions in both forms: on streams of their own, and on a shared one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", params=[False, True], ids=["own streams", "shared stream"])
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether the sessions of a test share a stream: for `client.session(…, multiplex=shared)`."""
    value: bool = request.param
    return value
