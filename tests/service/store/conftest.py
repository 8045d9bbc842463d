"""A Valkey for the folder's tests, and stores on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from streamcell.service.store.store import Store
from tests.support.stores import Opened, opened
from tests.support.valkey import ValkeyServer, valkey


@pytest.fixture(scope="session")
def shared() -> Iterator[ValkeyServer]:
    """One Valkey for all tests that do not stop or fill it; sessions' ids keep them apart."""
    with valkey() as server:
        yield server


@pytest.fixture
def replica(shared: ValkeyServer) -> Iterator[Callable[..., Opened]]:
    """Makes a started store of a name on the shared Valkey."""
    with ExitStack() as stores:
        yield lambda name="a", server=shared, **options: stores.enter_context(
            opened(Store(server.address, name, **options))
        )
