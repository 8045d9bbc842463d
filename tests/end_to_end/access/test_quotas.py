"""What a tenant may do and how much, on real servers: refusals name the quota, and clients come again when told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.client import connect, connect_async
from streamcell.client.errors import InvalidInput, LimitReached, NotPermitted
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb, rpc
from streamcell.proto.inference import rpc as oip_rpc
from streamcell.service.protocols.native.journal_place import HOLD
from tests.support.callers import channel_of
from tests.support.every_method import apart, info_of
from tests.support.infer_requests import request as infer
from tests.support.resumable import Owner, Raw, save_sum, step, sums
from tests.support.tokens import bearer, token_file

Serve = Callable[..., ServerProcess]
Eventually = Callable[[Callable[[], bool]], bool]

POLICY = """
[tenants.small]
max_sessions = 3
max_beam_width = 1
[tenants.looks]
calls = ["predict"]
[tenants.slow]
steps_per_s = 100
[tenants.thin]
max_bytes_in_flight = 64
[tenants.free]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("quotas")
    token_file(made / "tokens.toml", *((name, name) for name in ("small", "looks", "slow", "thin", "free")))
    (made / "policy.toml").write_text(POLICY)
    (made / "models").mkdir()
    save_sum(made / "models")
    return made


@pytest.fixture(scope="module")
def flags(folder: Path) -> tuple[str, ...]:
    files = "--token-file", str(folder / "tokens.toml"), "--policy-file", str(folder / "policy.toml")
    return *files, "--metrics-open"


@pytest.fixture(scope="module")
def server(start_server: Serve, folder: Path, flags: tuple[str, ...]) -> ServerProcess:
    return start_server(folder / "models", *flags, "--max-chunk", "4")


def client_of(server: ServerProcess, tenant: str, **options: Any) -> Any:
    return connect(server.target, metadata=bearer(f"token-of-{tenant}"), **options)


@pytest.mark.conformance
def test_sessions_of_every_kind_count_together(server: ServerProcess) -> None:
    with client_of(server, "small", timeout_s=3) as client, client.session("sum") as first:
        with client.pool("sum", 2) as pool:
            for opening in (
                lambda: client.session("sum"),
                lambda: client.pool("sum", 1),
                lambda: client.predict("sum", np.ones((1, 1, 1), np.float32)),
            ):
                with pytest.raises(LimitReached, match="may have 3 sessions and has 3") as raised:
                    opening()
                assert (raised.value.reason, raised.value.retry_after_s) == ("QUOTA_EXCEEDED", 1.0)
            assert pool.step(np.ones((2, 1), np.float32)).tolist() == [[1.0], [1.0]]
            # Other tenants have room.
            with client_of(server, "free") as other, other.session("sum") as session:
                session.step([1.0])
        with client.pool("sum", 2):
            pass
        y = client.predict("sum", np.ones((2, 3, 1), np.float32))
        assert y[:, -1, 0].tolist() == [3.0, 3.0]
        assert first.step([1.0]) == 1.0


def test_sequences_and_resumable_sessions_count_too(server: ServerProcess) -> None:
    one = np.ones((1, 1, 1), np.float32)
    with channel_of(server.target, "small") as channel, client_of(server, "small") as client:
        stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        stub.ModelInfer(infer(one, "sum", sequence_id=1, sequence_start=True))
        with client.session("sum", resume=True), client.session("sum"):
            (reply,) = stub.ModelStreamInfer(iter([infer(one, "sum", sequence_id=2, sequence_start=True)]))
            assert "QUOTA_EXCEEDED" in reply.error_message
            stub.ModelInfer(infer(one, "sum", sequence_id=1, sequence_end=True))
            with client.session("sum"):
                pass


def test_a_client_that_was_refused_comes_again_when_there_is_room(
    server: ServerProcess, eventually: Eventually
) -> None:
    with client_of(server, "small", timeout_s=60) as client:
        sessions = [client.session("sum") for _ in range(3)]
        before = server.metric("streamcell_errors_total", reason="QUOTA_EXCEEDED")
        opened: list[Any] = []
        waiting = threading.Thread(target=lambda: opened.append(client.session("sum")))
        waiting.start()
        assert eventually(lambda: server.metric("streamcell_errors_total", reason="QUOTA_EXCEEDED") > before)
        assert not opened
        sessions.pop().close()
        waiting.join(60)
        assert opened[0].step([1.0]) == 1.0
        for session in (*sessions, *opened):
            session.close()


def test_an_asyncio_client_does_so_too(server: ServerProcess, eventually: Eventually) -> None:
    async def run() -> float:
        async with connect_async(server.target, metadata=bearer("token-of-small"), timeout_s=60) as client:
            sessions = [await client.session("sum").open() for _ in range(3)]
            before = server.metric("streamcell_errors_total", reason="QUOTA_EXCEEDED")
            opening = asyncio.create_task(client.session("sum").open())
            predicting = asyncio.create_task(client.predict("sum", np.ones((1, 1), np.float32)))
            counted = "streamcell_errors_total"
            await asyncio.to_thread(
                eventually, lambda: server.metric(counted, reason="QUOTA_EXCEEDED") >= before + 2
            )
            for session in sessions:
                await session.close()
            opened = await opening
            y = (await opened.step([1.0]))[0] + (await predicting)[0, 0]
            await opened.close()
            return float(y)

    assert asyncio.run(run()) == 2.0


@pytest.mark.conformance
def test_a_kind_of_call_that_the_policy_does_not_name_is_refused(server: ServerProcess) -> None:
    with client_of(server, "looks") as client:
        assert client.predict("sum", np.ones((2, 1), np.float32))[-1, 0] == 2.0
        for opening in (lambda: client.session("sum"), lambda: client.pool("sum", 1)):
            with pytest.raises(NotPermitted, match="'step', only: predict"):
                opening()
        with pytest.raises(NotPermitted):
            client.session("sum", resume=True)


def test_a_beam_is_no_wider_than_the_policy_says(server: ServerProcess) -> None:
    with client_of(server, "small") as client, client.session("sum") as session, pytest.raises(InvalidInput):
        session.beam_search(1, width=2)


def test_a_tenant_over_its_rate_is_slowed_down_and_its_sessions_live(server: ServerProcess) -> None:
    with client_of(server, "slow", timeout_s=60) as client, client.session("sum") as session:
        y = [float(each[0]) for each in session.stream(([1.0] for _ in range(150)), window=32)]
        assert y == [float(count) for count in range(1, 151)]
        with channel_of(server.target, "slow") as channel:
            # What cannot wait is told when to come again.
            asked = pb.PredictRequest(model="sum", inputs=[np.ones(1000, np.float32).tobytes()])
            stub: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
            refused = None
            for _ in range(2):
                try:
                    stub.Predict(asked)
                except Exception as error:
                    refused = error
            assert info_of(refused).metadata["quota"] == "steps_per_s"


@pytest.mark.conformance
def test_a_tenant_with_few_bytes_in_flight_is_answered_all_the_same(server: ServerProcess) -> None:
    with client_of(server, "thin", timeout_s=60) as client:
        with client.session("sum") as one, client.session("sum", resume=True) as two:
            for session in (one, two):
                y = [float(each[0]) for each in session.stream(([1.0] for _ in range(200)), window=16)]
                assert y == [float(count) for count in range(1, 201)]
            assert len(list(two.generate(20))) == 20
        with client.pool("sum", 4, resume=True) as pool:
            frames = (np.ones((4, 1), np.float32) for _ in range(20))
            assert [y[0, 0] for y in pool.stream(frames, window=4)][-1] == 20.0
        assert client.predict("sum", np.ones((100, 1), np.float32))[-1, 0] == 100.0
    with channel_of(server.target, "thin") as channel:
        stub: Any = oip_rpc.GRPCInferenceServiceStub(channel)
        one_step = np.ones((1, 1, 1), np.float32)
        asked = [infer(one_step, "sum", sequence_id=1, sequence_start=not at) for at in range(50)]
        assert not any(reply.error_message for reply in stub.ModelStreamInfer(iter(asked)))


@pytest.mark.conformance
def test_a_changed_policy_holds_at_once_for_new_sessions(
    start_server: Serve, folder: Path, tmp_path: Path, eventually: Eventually
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[tenants.small]\nmodels = []\n")
    server = start_server(
        folder / "models", "--token-file", str(folder / "tokens.toml"), "--policy-file", str(policy)
    )
    with client_of(server, "small") as client:
        assert client.models() == []
        policy.write_text("[tenants.small]\n")
        assert eventually(lambda: [model.name for model in client.models()] == ["sum"])
        with client.session("sum") as session:
            policy.write_text("[tenants.other]\n")

            def refused() -> bool:
                try:
                    client.models()
                except NotPermitted:
                    return True
                return False

            assert eventually(refused)
            assert session.step([1.0]) == 1.0  # what has begun goes on


def test_a_generation_that_is_resumed_goes_on_though_what_stands_behind_it_fills_the_bound(
    server: ServerProcess,
) -> None:
    owner, who = Owner(window=8), bearer("token-of-thin")
    ask = pb.StreamRequest(inputs=step(0).inputs, generate=pb.Generate(steps=500), tag=9)
    messages = [ask, *[step(0, 0, 0)] * 7]
    assert sum(each.ByteSize() for each in messages) >= 64
    first = Raw(server.target, owner.opening(), metadata=who)
    first.opened()
    first.send(*messages)
    first.replies(HOLD)
    first.cut()
    again = Raw(server.target, owner.resume(0, received_steps=HOLD), metadata=who)
    again.opened()
    again.send(*messages)
    for number in range(2, 5):  # it waits for this at each
        assert again.replies(HOLD)[-1].step_index == number * HOLD
        again.send(pb.StreamRequest(received=0, received_steps=number * HOLD))
    again.cut()


def test_a_restart_leaves_each_session_with_its_tenant(
    start_server: Serve, folder: Path, flags: tuple[str, ...], tmp_path: Path
) -> None:
    durable = (*flags, "--durability", "process", "--journal-dir", str(tmp_path), "--max-sessions", "8")
    server = start_server(folder / "models", *durable)
    owner = Owner()

    def raw(tenant: str, *messages: pb.StreamRequest) -> Raw:
        return Raw(server.target, *messages, metadata=bearer(f"token-of-{tenant}"))

    first = raw("free", owner.opening(first=1), step(1))
    first.replies(2)
    server.process.kill()
    server.process.wait()
    server = start_server(folder / "models", *durable)
    assert raw("small", owner.resume(1)).error()[0] == "SESSION_NOT_FOUND"
    with client_of(server, "small") as other:
        assert not list(other.sessions())
    again = raw("free", owner.resume(1, first=2), step(1))
    assert again.opened().applied == 1
    assert sums(again.reply()) == [2]


@pytest.mark.conformance
def test_a_sequence_id_may_be_a_connections_own(start_server: Serve, folder: Path) -> None:
    one = np.ones((1, 1, 1), np.float32)
    server = start_server(folder / "models", "--sequence-scope", "connection")

    def value(stub: Any, **sequence: Any) -> float:
        answer = stub.ModelInfer(infer(one, "sum", sequence_id=42, **sequence))
        return float(np.frombuffer(answer.raw_output_contents[0], "<f4")[0])

    with apart(server.target) as first, apart(server.target) as second:
        one_stub: Any = oip_rpc.GRPCInferenceServiceStub(first)
        two_stub: Any = oip_rpc.GRPCInferenceServiceStub(second)
        assert value(one_stub, sequence_start=True) == 1.0
        assert value(two_stub, sequence_start=True) == 1.0
        assert [value(one_stub), value(two_stub), value(one_stub)] == [2.0, 2.0, 3.0]
        assert [value(one_stub, sequence_end=True), value(two_stub, sequence_end=True)] == [4.0, 3.0]
