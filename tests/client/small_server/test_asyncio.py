"""The asyncio session: outputs as they come, and every way to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.client import (
    DeadlineExceeded,
    InvalidInput,
    ProtocolMisuse,
    SessionExpired,
    StreamCellError,
    Unavailable,
    connect_async,
)

Fail = Callable[..., Callable[..., None]]
ONE = np.array([1, 2], np.float32)


def test_asyncio_streams_yield_each_output_before_the_next_item_is_there(small: Any, shared: bool) -> None:
    async def main() -> None:
        turns: asyncio.Queue[np.ndarray[Any, Any] | None] = asyncio.Queue()

        async def source() -> Any:
            while (item := await turns.get()) is not None:
                yield item

        async with connect_async(small.target) as client, client.session("sum", multiplex=shared) as session:
            await turns.put(ONE)
            outputs = []
            async for output in session.stream(source(), window=8):
                outputs.append(output)
                await turns.put(output if len(outputs) < 4 else None)  # depends on the answer
            np.testing.assert_array_equal(outputs, [ONE, 2 * ONE, 4 * ONE, 8 * ONE])

    asyncio.run(main())


def test_asyncio_errors_time_limits_and_cancellation(small: Any, shared: bool, fail: Fail) -> None:
    async def main() -> None:
        async with connect_async(small.target) as client:
            async with client.session("sum", multiplex=shared, timeout_s=3) as session:
                await session.step(ONE)
                await asyncio.sleep(3.1)
                await session.step(ONE)
                small.hold.clear()
                with pytest.raises(DeadlineExceeded):
                    await session.step(ONE)
                with pytest.raises(DeadlineExceeded):
                    await session.step(ONE)
            async with client.session("sum", multiplex=shared) as session:
                waiting = asyncio.create_task(session.step(ONE))
                await asyncio.sleep(0.1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                with pytest.raises(StreamCellError) as caught:
                    await session.step(ONE)
                assert caught.value.code is grpc.StatusCode.CANCELLED
            async with client.session("sum", multiplex=shared) as session:
                asyncio.get_running_loop().call_later(0.1, session.cancel)
                with pytest.raises(StreamCellError, match="was cancelled"):
                    await session.step(ONE)
            small.hold.set()
            small.odd = fail("SESSION_EXPIRED", grpc.StatusCode.ABORTED)
            async with client.session("sum", multiplex=shared) as session:
                with pytest.raises(SessionExpired):
                    await session.step(ONE)
                with pytest.raises(SessionExpired):
                    await session.send(ONE)
            small.odd, small.leave = None, True
            async with client.session("sum", multiplex=shared) as session:
                with pytest.raises(Unavailable, match="ended the stream before it answered"):
                    await session.step(ONE)
            small.odd, small.leave = fail("SESSION_EXPIRED", grpc.StatusCode.ABORTED), False
            session = await client.session("sum", multiplex=shared).open()
            await session.send(ONE)
            with pytest.raises(SessionExpired):
                await session.close()
            with pytest.raises(ProtocolMisuse, match="not open yet"):
                await client.session("sum", multiplex=shared).step(ONE)
        with pytest.raises(ProtocolMisuse, match="is closed"):
            await client.models()
        async with connect_async("127.0.0.1:1") as client:
            with pytest.raises(Unavailable):
                await client.session("sum", multiplex=shared).open()

    asyncio.run(main())


def test_an_asyncio_stream_left_early_leaves_the_session_in_step(small: Any, shared: bool) -> None:
    async def main() -> None:
        async with connect_async(small.target) as client, client.session("sum", multiplex=shared) as session:
            stream = session.stream([ONE] * 50, window=4)
            await anext(stream)
            await stream.aclose()
            assert session.pending == 0
            applied = session.step_index
            assert applied < 50
            np.testing.assert_array_equal(await session.step(ONE), (applied + 1) * ONE)
            with pytest.raises(InvalidInput, match="expected shape"):
                _ = [output async for output in session.stream([ONE, np.ones(3, np.float32)])]
            assert session.step_index == applied + 2
            assert len([output async for output in session.stream(iter([ONE] * 30))]) == 30

    asyncio.run(main())
