"""Copies of a pool's members on real servers: forks, and the pool as one snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcell.client import (
    SessionLimit,
    SessionNotFound,
    SnapshotRefused,
    connect,
    connect_async,
)
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb
from tests.support.onnx_files import parsed, save
from tests.support.resumable import save_sum

CONFORMANCE = pytest.mark.conformance
Serve = Callable[..., ServerProcess]
# y = v + the sum of all x; v is given at the opening, and is no state.
GIVEN = (
    "(float[b, 1] x, float[b, 1] h, float[b, 1] v) => (float[b, 1] y, float[b, 1] n)"
    "{ n = Add(x, h) y = Add(n, v) }"
)
SIDECAR = """
layout = "batch"
inputs = ["x", { name = "v", at = "open" }]
outputs = ["y"]
[[states]]
input = "h"
output = "n"
"""


@pytest.fixture(scope="module")
def server(start_server: Serve, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    folder = save_sum(tmp_path_factory.mktemp("models"))
    save(parsed(GIVEN), folder / "given.onnx", SIDECAR)
    return start_server(folder, "--max-sessions", "12")


def column(*values: float) -> np.ndarray[Any, Any]:
    return np.array(values, np.float32)[:, None]


@CONFORMANCE
def test_a_pool_forks_members_and_goes_back(server: ServerProcess) -> None:
    with connect(server.target) as client:
        with client.pool("sum", 3) as pool:
            assert pool.step(column(1, 2), [0, 1]).ravel().tolist() == [1, 2]
            kept = pool.snapshot()
            assert pool.fork([1, 0, 1, 2]).tolist() == [3, 4, 5, 6]
            y = pool.step(column(*range(10, 80, 10))).ravel().tolist()
            assert y == [11, 22, 30, 42, 51, 62, 70]
            assert pool.step_indices.tolist() == [2, 2, 1, 2, 2, 2, 1]
            pool.close_members([1])
            assert pool.fork().tolist() == [1, 7, 8, 9, 10, 11]
            assert pool.step(column(1, 1), [1, 11]).ravel().tolist() == [12, 71]
            pool.restore(kept)
            assert (pool.members.tolist(), pool.step_indices.tolist()[:4]) == ([0, 1, 2], [1, 1, 0, 0])
            assert pool.step(column(5, 5, 5)).ravel().tolist() == [6, 7, 5]
        with client.restore_pool(kept) as pool:
            assert pool.members.tolist() == [0, 1, 2]
            assert pool.step_indices.tolist() == [1, 1, 0]
            assert pool.open_members(1).tolist() == [3]
            assert pool.step(column(5, 5, 5, 5)).ravel().tolist() == [6, 7, 5, 5]


def test_what_members_were_given_goes_with_them(server: ServerProcess) -> None:
    with connect(server.target) as client:
        with client.pool("given", 2, inputs={"v": column(100, 200)}) as pool:
            assert pool.step(column(1, 2)).ravel().tolist() == [101, 202]
            assert pool.fork([1]).tolist() == [2]
            kept = pool.snapshot()
            pool.close_members([0])
            assert pool.open_members(1, inputs={"v": column(7)}).tolist() == [0]
            assert pool.step(column(1, 1, 1)).ravel().tolist() == [8, 203, 203]
            pool.restore(kept)
            assert pool.step(column(1, 1, 1)).ravel().tolist() == [102, 203, 203]
        with client.session("given", inputs={"v": [1000.0]}, resume=True) as session:
            session.step([1.0])
            alone = session.snapshot()
            with session.fork() as fork, client.restore(alone) as restored:
                assert (fork.step([1.0]).tolist(), restored.step([2.0]).tolist()) == ([1002], [1003])
                assert session.step([1.0]).tolist() == [1002]
            with client.session("given", inputs={"v": [1.0]}, resume=True) as other:
                with pytest.raises(SnapshotRefused) as caught:
                    other.restore(alone)
                assert caught.value.reason == "SNAPSHOT_MISMATCH"


@CONFORMANCE
def test_what_is_refused_leaves_the_pool_as_it_was(server: ServerProcess) -> None:
    with connect(server.target) as client, client.pool("sum", 7) as pool:
        pool.step(column(*range(7)))
        kept = pool.snapshot()
        with pytest.raises(SessionLimit):
            pool.fork()
        with pytest.raises(SessionNotFound):
            pool.fork([0, 7])
        for damaged in (b"none", kept[:-1], kept[:60] + bytes([kept[60] ^ 4]) + kept[61:]):
            with pytest.raises(SnapshotRefused):
                pool.restore(damaged)
            with pytest.raises(SnapshotRefused):
                client.restore_pool(damaged)
        with pytest.raises(SessionLimit):
            client.restore_pool(kept)
        assert pool.step(column(*[1] * 7)).ravel().tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert (len(pool), pool.step_indices.tolist()) == (7, [2] * 7)
        assert next(iter(client.sessions())).members == 7
    with connect(server.target) as client, client.restore_pool(kept) as pool:
        assert pool.step(column(*[0] * 7)).ravel().tolist() == list(range(7))


async def _on_asyncio(target: str) -> list[list[float]]:
    async with connect_async(target) as client:
        async with client.pool("sum", 2) as pool:
            found = [await pool.step(column(1, 2))]
            kept = await pool.snapshot()
            assert (await pool.fork([1])).tolist() == [2]
            found.append(await pool.step(column(1, 1, 1)))
            await pool.restore(kept)
            found.append(await pool.step(column(1, 1)))
        async with client.restore_pool(kept) as pool:
            found.append(await pool.step(column(2, 2)))
        return [each.ravel().tolist() for each in found]


def test_the_asyncio_client_does_the_same(server: ServerProcess) -> None:
    assert asyncio.run(_on_asyncio(server.target)) == [[1, 2], [2, 3, 3], [2, 3], [3, 4]]


def test_copies_come_behind_the_rows_of_their_frame_and_a_restore_before_them(server: ServerProcess) -> None:
    import grpc

    from streamcell.proto import rpc

    def packed(*numbers: int) -> bytes:
        return np.array(numbers, "<u4").tobytes()

    def frame(x: float, **fields: Any) -> pb.FrameRequest:
        return pb.FrameRequest(handles=packed(0), inputs=[column(x).tobytes()], **fields)

    with grpc.insecure_channel(server.target) as channel:
        stub = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        opening = frame(1, open=pb.OpenFrames(model="sum"), open_sessions=1, snapshot=True, fork=packed(0))
        (first,) = stub.StreamFrames(iter([opening]))
        assert np.frombuffer(first.forked, "<u4").tolist() == [1]
        replies = list(
            stub.StreamFrames(
                iter(
                    [frame(10, open=pb.OpenFrames(snapshot=first.snapshot)), frame(5, restore=first.snapshot)]
                )
            )
        )
        assert [np.frombuffer(each.outputs[0], "<f4").tolist() for each in replies] == [[11], [6]]
        assert np.frombuffer(replies[0].handles, "<u4").tolist() == [0, 1]


def test_slots_are_given_back(
    server: ServerProcess, eventually: Callable[[Callable[[], bool]], bool]
) -> None:
    assert eventually(lambda: server.metric("streamcell_slots_used", model="sum") == 0)
    with connect(server.target) as client:
        for _ in range(3):
            with client.pool("sum", 5) as pool:
                kept = pool.snapshot()
                pool.fork([0, 1])
                pool.restore(kept)
                pool.close_members([0])
                pool.restore(kept)
        assert not list(client.sessions())
    assert eventually(lambda: server.metric("streamcell_slots_used", model="sum") == 0)
