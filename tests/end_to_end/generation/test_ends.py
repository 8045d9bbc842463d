"""How generations end that nobody lets finish, and what the server says of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import (
    Client,
    DeadlineExceeded,
    ServerDraining,
    SessionClosed,
    SessionExpired,
    connect,
)
from streamcell.client.errors import from_rpc
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from tests.support.onnx_files import parsed, save
from tests.support.waiting import waited

GO = 11
Serve = Callable[..., ServerProcess]
OPENING = pb.StreamRequest(open=pb.OpenSession(model="wide"), inputs=[bytes(4 * 1024)])
IDLE_S = 3.0  # far more than a client of a busy machine takes to go on
ENDLESS = pb.StreamRequest(generate=pb.Generate(steps=2**30))


@pytest.fixture(scope="module")
def patient(folder: Path, start_server: Serve) -> ServerProcess:
    """A server that generates without an end, with a short idle time-out."""
    flags = ("--max-generate-steps", str(2**30), "--idle-timeout-s", str(IDLE_S))
    return start_server(folder, *flags)


def generated(server: ServerProcess) -> float:
    return server.metric("streamcell_generated_steps_total", model="wide")


def settled(value: Callable[[], float]) -> float:
    """`value` once it no longer changes: a busy machine may hold up what makes it once or twice."""
    now, same = value(), 0
    while same < 3:
        time.sleep(0.15)
        same = same + 1 if now == (now := value()) else 0
    return now


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(6000):  # a busy machine counts less idle time than passes by
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to that")


def open_stream(channel: grpc.Channel, *requests: pb.StreamRequest) -> tuple[Any, threading.Event]:
    """A stream that stays open until the event is set."""
    done = threading.Event()

    def feed() -> Iterator[pb.StreamRequest]:
        yield from requests
        done.wait(60)

    return rpc.StreamCellStub(channel).Stream(feed()), done


@pytest.mark.conformance
def test_a_client_that_does_not_read_pauses_its_generation_and_then_expires(patient: ServerProcess) -> None:
    start = generated(patient)
    with grpc.insecure_channel(patient.target) as channel:
        call, done = open_stream(channel, OPENING, ENDLESS)
        paused_at = settled(lambda: generated(patient))
        assert paused_at > start
        # That it is idle shows that it pauses: see the test of a generation that is not.
        wait_for(lambda: patient.metric("streamcell_slots_used", model="wide") == 0)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in call:
                pass
        assert isinstance(from_rpc(caught.value), SessionExpired)
        done.set()


def test_a_client_that_reads_late_gets_every_step(patient: ServerProcess) -> None:
    start = generated(patient)
    with grpc.insecure_channel(patient.target) as channel:
        done, begun = threading.Event(), pb.StreamRequest(stop_generation=0)

        def feed() -> Iterator[pb.StreamRequest]:
            yield OPENING
            yield ENDLESS
            done.wait(60)
            yield begun

        call = rpc.StreamCellStub(channel).Stream(feed())
        next(call)
        wait_for(lambda: generated(patient) > start)
        indices: list[int] = []
        for reply in call:
            indices.append(reply.step_index)
            if len(indices) == 3000:
                done.set()
        # The last reply may come with the last step, or tell only of the end.
        assert indices == [*range(2, len(indices) + 1), indices[-1]]
        assert indices[-1] in (len(indices), len(indices) + 1)
        assert reply.generated.stop_reason == pb.STOP_REASON_REQUEST
        assert waited(lambda: generated(patient) == start + indices[-1] - 1)


def test_a_generation_is_not_idle_and_the_time_runs_from_its_end(patient: ServerProcess) -> None:
    with connect(patient.target) as client, client.session("spell") as session:
        began_s = time.monotonic()
        for _ in session.generate(2**30, stop=(), output="none", steps_per_reply=256):
            if time.monotonic() > began_s + 1.2 * IDLE_S:
                break
        assert session.step(3).shape == (7,)
        wait_for(lambda: patient.metric("streamcell_slots_used", model="spell") == 0)
        with pytest.raises(SessionExpired):
            session.step(3)


def test_a_generation_ends_with_its_session(patient: ServerProcess) -> None:
    used = lambda: patient.metric("streamcell_slots_used", model="spell")  # noqa: E731
    wait_for(lambda: used() == 0)
    with connect(patient.target) as client:
        session = client.session("spell")
        steps = session.generate(2**30, stop=())
        next(steps)
        client.close_session(session.id)
        with pytest.raises(SessionClosed):
            for _ in steps:
                pass
        gone = client.session("spell")
        next(gone.generate(2**30, stop=()))
        gone.cancel()
        late = client.session("spell", lifetime_s=3)
        with pytest.raises(DeadlineExceeded):
            late.generate(2**30, stop=(), steps_per_reply=4096, output="none").all()
    wait_for(lambda: used() == 0)
    with connect(patient.target) as client, client.session("spell") as session:
        assert len(session.generate(10, stop=()).all().chosen) == 10


def test_the_server_counts_generations_by_reason(server: ServerProcess, client: Client) -> None:
    def ended(reason: str) -> float:
        return server.metric("streamcell_generations_ended_total", model="spell", reason=reason)

    def answered() -> float:
        return server.metric("streamcell_step_latency_seconds_count", model="spell")

    before = {reason: ended(reason) for reason in ("steps", "class", "request")}
    replies = answered()
    with client.session("spell") as session:
        session.generate(3, stop=()).all()
        steps = session.generate(5000, stop=())
        next(steps)
        steps.close()
        y = session.step(3)
        session.generate(5, from_output=True, stop=int(y.argmax())).all()
    assert waited(lambda: {reason: ended(reason) - count for reason, count in before.items()} == {
        "steps": 1, "class": 1, "request": 1,
    })  # fmt: skip
    assert waited(lambda: answered() - replies == 4)  # each message once, a generation too


def test_a_short_generation_finishes_within_the_grace_and_a_long_one_does_not(
    folder: Path, start_server: Serve
) -> None:
    server = start_server(folder, "--max-generate-steps", str(2**30), "--grace-s", "5")
    with connect(server.target) as client:
        long, short = client.session("spell"), client.session("spell")
        endless = long.generate(2**30, stop=(), output="none")
        next(endless)
        steps = short.generate(300, stop=())
        next(steps)
        server.ask_to_stop()
        assert len(list(steps)) == 299
        short.close()
        with pytest.raises(ServerDraining):
            for _ in endless:
                pass
    assert server.process.wait(60) == 0


GROWING = """
(float[n, 2] x, float[n, 1] h) => (float[n, 2] y, float[n, 1] h_next)
<float[1] big = {1e20}> { y = Mul(x, big) h_next = Identity(h) }
"""
SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
[generation]
output = "y"
input = "x"
head = "real"
"""


@pytest.mark.parametrize("non_finite", ["reject", "allow"])
def test_a_value_that_overflows_ends_it_unless_all_values_are_allowed(
    tmp_path: Path, start_server: Serve, non_finite: str
) -> None:
    save(parsed(GROWING), tmp_path / "growing.onnx", SIDECAR)
    server = start_server(tmp_path, "--non-finite", non_finite)
    with connect(server.target) as client, client.session("growing") as session:
        whole = session.generate(5, first=np.ones(2, np.float32)).all()
        assert whole.stop_reason == ("non_finite" if non_finite == "reject" else "steps")
        assert session.step_index == (2 if non_finite == "reject" else 5)
        assert whole.outputs[0].tolist() == [np.float32(1e20)] * 2
        assert np.isinf(whole.outputs[1]).all()
        # The session lives, and what its last output gives is still nothing to go on with.
        if non_finite == "reject":
            nothing = session.generate(5).all()
            assert (nothing.stop_reason, nothing.outputs, session.step_index) == ("non_finite", None, 2)
        assert session.step(np.zeros(2, np.float32)).tolist() == [0, 0]
