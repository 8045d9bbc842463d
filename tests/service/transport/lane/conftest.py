"""Both lanes, and servers on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamcell.service.transport.calls import Call, ServerLane
from streamcell.service.transport.fast_lane import FastLane
from streamcell.service.transport.threaded_lane import ThreadedLane
from tests.support.lanes import Echo, Rig


@pytest.fixture(params=["fast", "threaded"])
def lane(request: pytest.FixtureRequest) -> ServerLane:
    return FastLane() if request.param == "fast" else ThreadedLane()


@pytest.fixture
def rig(lane: ServerLane) -> Iterator[Callable[..., Rig]]:
    """Starts servers on the lane under test, and stops them."""
    rigs: list[Rig] = []

    def start(open_: Callable[[Call], Any] = Echo, **server: Any) -> Rig:
        rigs.append(Rig(lane, open_, **server))
        return rigs[-1]

    yield start
    for started in rigs:
        started.close()
