"""The client against servers that do what ours should not, or does too rarely: a small server, made to order.

It keeps a running sum, `y = scale * sum(x)`, in plain numpy, so it is also a second implementation of the wire
contract: what the client sends must make sense to someone who only read the .proto.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from streamcell.client import (
    Client,
    DeadlineExceeded,
    InvalidInput,
    MessageTooLarge,
    ProtocolMisuse,
    ServerFault,
    SessionClosed,
    SessionEvicted,
    StreamCellError,
    Unavailable,
    connect,
    connect_async,
)
from streamcell.proto import pb, rpc

SUM = (
    [pb.TensorSpec(name="x", dtype="float32", step_shape=[2])],
    [pb.TensorSpec(name="y", dtype="float32", step_shape=[2], distribution="real")],
)
# Several inputs and outputs, of different dtypes and ranks, one of them a scalar a step.
SEVERAL = (
    [
        pb.TensorSpec(name="image", dtype="uint8", step_shape=[2, 3]),
        pb.TensorSpec(name="gain", dtype="float64"),
    ],
    [
        pb.TensorSpec(name="total", dtype="float64"),
        pb.TensorSpec(name="seen", dtype="int64", step_shape=[2, 3]),
    ],
)
MODELS = {"sum": SUM, "several": SEVERAL, "future": ([pb.TensorSpec(name="x", dtype="float8")], SUM[1])}


@dataclass
class Small(rpc.StreamCellServicer):
    """`odd` may answer a message itself, or raise; `hold` keeps replies back until it is set."""

    odd: Callable[[pb.StreamRequest, grpc.ServicerContext], pb.StreamResponse | None] | None = None
    hold: threading.Event = field(default_factory=threading.Event)
    received: list[pb.StreamRequest] = field(default_factory=list)
    metadata: list[tuple[str, str]] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    target: str = ""

    def Stream(  # noqa: N802  # gRPC's name
        self, requests: Iterator[pb.StreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.StreamResponse]:
        context.add_callback(self.ended.set)
        self.metadata = list(context.invocation_metadata())
        opening = next(requests).open
        inputs, outputs = MODELS[opening.model]
        opened = pb.SessionOpened(
            session_id="s1", model=opening.model, version="7", inputs=inputs, outputs=outputs,
            max_steps_per_message=4, idle_timeout_s=60,
        )  # fmt: skip
        yield pb.StreamResponse(opened=opened)
        sums: list[np.ndarray[Any, Any]] = []
        index = 0
        for request in requests:
            self.received.append(request)
            self.hold.wait(30)
            mode = request.output_mode or opening.output_mode
            if self.odd and (reply := self.odd(request, context)):
                yield reply
                continue
            index += request.steps
            arrays = [
                np.frombuffer(data, spec.dtype).reshape(request.steps, *spec.step_shape)
                for spec, data in zip(inputs, request.inputs, strict=True)
            ]
            if opening.model == "sum":
                sums.extend(arrays[0])
                results = [np.cumsum(sums, axis=0, dtype=np.float32)[-request.steps :]]
            else:
                image, gain = arrays
                results = [gain * image.sum((1, 2)), image.astype(np.int64)]
            if mode == pb.OUTPUT_MODE_LAST:
                results = [result[-1:] for result in results]
            shown = [] if mode == pb.OUTPUT_MODE_NONE else [result.tobytes() for result in results]
            steps = 0 if not shown else len(results[0])
            yield pb.StreamResponse(outputs=shown, steps=steps, step_index=index, tag=request.tag)


@pytest.fixture
def small() -> Iterator[Small]:
    servicer = Small()
    servicer.hold.set()
    server = grpc.server(
        futures.ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 100_000)]
    )
    rpc.add_StreamCellServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    servicer.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    servicer.hold.set()
    server.stop(0).wait()


@pytest.fixture
def client(small: Small) -> Iterator[Client]:
    with connect(small.target) as client:
        yield client


def fail(reason: str, code: grpc.StatusCode, **facts: str) -> Callable[..., None]:
    """Ends the stream as the service would."""

    def odd(request: pb.StreamRequest, context: grpc.ServicerContext) -> None:
        rich = status_pb2.Status(code=code.value[0], message=reason.lower())
        info = error_details_pb2.ErrorInfo(reason=reason, domain="streamcell", metadata=facts)
        rich.details.add().Pack(info)
        context.set_trailing_metadata((("grpc-status-details-bin", rich.SerializeToString()),))
        context.abort(code, reason.lower())

    return odd


ONE = np.array([1, 2], np.float32)


def test_a_session_sums_by_step_chunk_and_stream(client: Client) -> None:
    with client.session("sum") as session:
        np.testing.assert_array_equal(session.step(ONE), [1, 2])
        np.testing.assert_array_equal(session.run([[1, 0], [0.5, 0]]), [[2, 2], [2.5, 2]])
        assert session.step_index == 3
        items = [ONE, np.stack([ONE, ONE]), ONE]
        outputs = list(session.stream(items, window=2))
        assert [output.shape for output in outputs] == [(2,), (2, 2), (2,)]
        np.testing.assert_array_equal(outputs[-1], [6.5, 10])
        assert (session.id, session.model, session.version) == ("s1", "sum", "7")
        assert (session.max_steps, session.idle_timeout_s) == (4, 60)
        assert session.outputs[0].distribution == "real"
        assert session.step_index == 7
        outputs[-1][0] = 0  # a client's own array to write to


def test_several_inputs_go_by_name_or_in_order_and_outputs_come_by_name(client: Client) -> None:
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    with client.session("several") as session:
        by_name = session.step({"gain": 2.0, "image": image})
        in_order = session.step((image, 2))
        for outputs in (by_name, in_order):
            assert list(outputs) == ["total", "seen"]
            assert outputs["total"] == 30
            assert outputs["total"].shape == ()
            assert outputs["seen"].dtype == np.int64
        chunk = session.run({"image": np.stack([image, image]), "gain": [1.0, 3.0]})
        np.testing.assert_array_equal(chunk["total"], [15, 45])
        with pytest.raises(
            InvalidInput, match=r"2 inputs by name or in order \(image, gain\), got image"
        ) as caught:
            session.step({"image": image})
        assert caught.value.reason == "WRONG_INPUT_COUNT"
        with pytest.raises(InvalidInput, match="the leading shape of 'image'"):
            session.send({"image": image, "gain": [1.0]})
        with pytest.raises(InvalidInput, match="got one ndarray"):
            session.step(image)
        np.testing.assert_array_equal(session.step((image, 1.0))["seen"], image)  # none of it did harm


def test_output_modes_a_session_and_a_message(client: Client) -> None:
    chunk = np.ones((3, 2), np.float32)
    with client.session("sum", output="none") as session:
        assert session.run(chunk) is None
        assert session.step_index == 3
        assert session.run(chunk, output="last").shape == (1, 2)
        assert session.step(ONE, output="last").shape == (2,)
        with pytest.raises(InvalidInput, match="'all', 'last' or 'none', got 'first'"):
            session.step(ONE, output="first")  # type: ignore[arg-type]
        np.testing.assert_array_equal(session.step(ONE, output="all"), [8, 10])


def test_an_input_that_does_not_fit_is_never_sent(small: Small, client: Client) -> None:
    with client.session("sum") as session:
        for wrong, reason in (
            (ONE.astype(np.float64), "WRONG_DTYPE"),
            (np.ones(3, np.float32), "WRONG_SHAPE"),
            (np.ones((1, 2), np.float32), "WRONG_SHAPE"),
        ):
            with pytest.raises(InvalidInput) as caught:
                session.step(wrong)
            assert caught.value.reason == reason
        for wrong, reason in (
            (np.ones((5, 2), np.float32), "TOO_MANY_STEPS"),
            (np.ones((0, 2), np.float32), "NO_STEPS"),
        ):
            with pytest.raises(InvalidInput) as caught:
                session.run(wrong)
            assert caught.value.reason == reason
        assert session.alive
        np.testing.assert_array_equal(session.step(ONE), ONE)
    assert len(small.received) == 1


def test_a_streams_window_bounds_the_unanswered_messages(small: Small, client: Client) -> None:
    taken = []

    def source() -> Iterator[Any]:
        for _ in range(20):
            taken.append(session.pending)
            yield ONE

    with client.session("sum") as session:
        assert len(list(session.stream(source(), window=3))) == 20
        assert max(taken) == 2
        with pytest.raises(ValueError, match="at least 1, got 0"):
            next(session.stream([ONE], window=0))


def test_a_stream_left_early_leaves_the_session_in_step(client: Client) -> None:
    with client.session("sum") as session:
        for output in session.stream([ONE] * 9, window=4):
            assert output.shape == (2,)
            break
        assert session.pending == 0
        np.testing.assert_array_equal(session.step(ONE), 5 * ONE)


def test_a_source_that_fails_ends_the_stream_with_its_own_error(client: Client) -> None:
    def source() -> Iterator[Any]:
        yield ONE
        raise LookupError("no more coffee")

    with client.session("sum") as session:
        stream = session.stream(source())
        np.testing.assert_array_equal(next(stream), ONE)
        with pytest.raises(LookupError, match="coffee"):
            next(stream)
        np.testing.assert_array_equal(session.step(ONE), 2 * ONE)


def test_send_and_receive_keep_their_order_and_say_where_they_are_mixed_up(client: Client) -> None:
    with client.session("sum") as session:
        session.send(ONE)
        session.send(np.stack([ONE, ONE]))
        with pytest.raises(ProtocolMisuse, match="2 messages are unanswered"):
            session.step(ONE)
        assert session.receive().shape == (2,)
        assert session.receive().shape == (2, 2)
        with pytest.raises(ProtocolMisuse, match="no reply to receive"):
            session.receive()


def test_a_servers_typed_error_ends_the_session_and_is_raised_again(small: Small, client: Client) -> None:
    small.odd = fail("SESSION_EVICTED", grpc.StatusCode.ABORTED, step_index="9")
    with client.session("sum") as session:
        with pytest.raises(SessionEvicted) as caught:
            session.step(ONE)
        assert caught.value.reason == "SESSION_EVICTED"
        assert caught.value.code is grpc.StatusCode.ABORTED
        assert caught.value.metadata == {"step_index": "9"}
        assert not session.alive
        with pytest.raises(SessionEvicted) as again:
            session.step(ONE)
        assert again.value is not caught.value


def test_closing_raises_what_became_of_unanswered_messages(small: Small, client: Client) -> None:
    small.odd = fail("ENGINE_FAILED", grpc.StatusCode.INTERNAL)
    session = client.session("sum")
    session.send(ONE)
    with pytest.raises(ServerFault) as caught:
        session.close()
    assert caught.value.reason == "ENGINE_FAILED"
    session.close()


def test_leaving_with_an_exception_cancels_at_once(small: Small, client: Client) -> None:
    small.hold.clear()

    def leave() -> None:
        with session:
            session.send(ONE)
            raise KeyError("mine")

    session = client.session("sum")
    with pytest.raises(KeyError):
        leave()
    assert not session.alive
    assert small.ended.wait(10)


def test_a_slow_reply_times_out_and_ends_the_session(small: Small, client: Client) -> None:
    with client.session("sum", timeout_s=0.3) as session:
        for _ in range(3):
            session.step(ONE)
        time.sleep(0.5)  # waiting for nothing is no wait
        session.step(ONE)
        small.hold.clear()
        with pytest.raises(DeadlineExceeded, match=r"no answer within 0\.3 s"):
            session.step(ONE)
        with pytest.raises(DeadlineExceeded):
            session.step(ONE)
    assert small.ended.wait(10)


def test_a_sessions_lifetime_is_a_grpc_deadline(small: Small, client: Client) -> None:
    small.hold.clear()
    with client.session("sum", lifetime_s=0.5) as session, pytest.raises(DeadlineExceeded) as caught:
        session.step(ONE)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancel_from_another_thread_ends_a_wait(small: Small, client: Client) -> None:
    small.hold.clear()
    with client.session("sum") as session:
        threading.Timer(0.2, session.cancel).start()
        with pytest.raises(StreamCellError) as caught:
            session.step(ONE)
        assert caught.value.code is grpc.StatusCode.CANCELLED


def test_replies_that_make_no_sense_are_the_servers_fault(small: Small, client: Client) -> None:
    for reply, text in (
        (pb.StreamResponse(outputs=[b"123"], steps=1), "8 bytes, the reply has 3"),
        (pb.StreamResponse(outputs=[b"", b""], steps=1), "expected 1 outputs, the reply has 2"),
    ):
        small.odd = lambda request, context, reply=reply: reply
        with client.session("sum") as session:
            with pytest.raises(ServerFault, match=text) as caught:
                session.step(ONE)
            assert caught.value.reason == "MALFORMED_REPLY"
            assert not session.alive
    with pytest.raises(ServerFault, match="'float8', which this client does not know"):
        client.session("future")


def test_a_stream_that_the_server_ends_without_an_error_is_unavailable(small: Small, client: Client) -> None:
    def odd(request: pb.StreamRequest, context: grpc.ServicerContext) -> None:
        raise StopIteration

    small.odd = odd
    with client.session("sum") as session, pytest.raises(StreamCellError) as caught:
        session.step(ONE)
    assert caught.value.reason in ("STREAM_ENDED", "UNKNOWN")


def test_grpcs_own_message_limit_reads_as_ours(client: Client) -> None:
    with client.session("several") as session:
        session._exchange.opened.max_steps_per_message = 0  # a server that names no limit
        with pytest.raises(MessageTooLarge) as caught:
            session.run((np.zeros((20_000, 2, 3), np.uint8), np.zeros(20_000)))
        assert caught.value.reason == "MESSAGE_TOO_LARGE"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    with connect("127.0.0.1:1") as client:
        with pytest.raises(Unavailable):
            client.session("sum")
        with pytest.raises(Unavailable):
            client.models()
    with pytest.raises(ProtocolMisuse, match="is closed"):
        client.models()


def test_waiting_for_ready_lasts_as_long_as_the_timeout() -> None:
    with connect("127.0.0.1:1", wait_for_ready=True, timeout_s=0.3) as client:
        with pytest.raises(DeadlineExceeded):
            client.models()
        with pytest.raises(DeadlineExceeded):
            client.session("sum")


def test_metadata_goes_with_every_call(small: Small) -> None:
    with (
        connect(small.target, metadata=(("who", "me"),)) as client,
        client.session("sum", metadata=(("why", "test"),)),
    ):
        assert {("who", "me"), ("why", "test")} <= {(key, value) for key, value in small.metadata}


def test_a_lazy_session_opens_with_its_first_use(small: Small, client: Client) -> None:
    sessions = [client.session("sum", lazy=True) for _ in range(4)]
    for session in sessions:
        np.testing.assert_array_equal(session.step(ONE), ONE)
    for session in sessions:
        session.close()
        with pytest.raises(SessionClosed):
            session.step(ONE)
    with client.session("sum", lazy=True) as unused:
        pass
    assert not unused.alive


def _client_threads() -> int:
    return sum("ThreadPoolExecutor" not in thread.name for thread in threading.enumerate())


def test_a_session_left_open_warns_and_lets_its_thread_go(small: Small, client: Client) -> None:
    client.session("sum").close()  # whatever threads are for good are there now
    assert small.ended.wait(10)
    small.ended.clear()
    before = _client_threads()
    session = client.session("sum")
    assert _client_threads() > before
    with pytest.warns(ResourceWarning, match="unclosed session s1"):
        del session
    assert small.ended.wait(10)
    end_s = time.monotonic() + 10
    while _client_threads() > before and time.monotonic() < end_s:
        time.sleep(0.01)
    assert _client_threads() <= before


def test_asyncio_streams_yield_each_output_before_the_next_item_is_there(small: Small) -> None:
    async def main() -> None:
        turns: asyncio.Queue[np.ndarray[Any, Any] | None] = asyncio.Queue()

        async def source() -> Any:
            while (item := await turns.get()) is not None:
                yield item

        async with connect_async(small.target) as client, client.session("sum") as session:
            await turns.put(ONE)
            outputs = []
            async for output in session.stream(source(), window=8):
                outputs.append(output)
                await turns.put(output if len(outputs) < 4 else None)  # depends on the answer
            np.testing.assert_array_equal(outputs, [ONE, 2 * ONE, 4 * ONE, 8 * ONE])

    asyncio.run(main())


def test_asyncio_errors_time_limits_and_cancellation(small: Small) -> None:
    async def main() -> None:
        async with connect_async(small.target) as client:
            async with client.session("sum", timeout_s=0.3) as session:
                await session.step(ONE)
                await asyncio.sleep(0.5)
                await session.step(ONE)
                small.hold.clear()
                with pytest.raises(DeadlineExceeded):
                    await session.step(ONE)
                with pytest.raises(DeadlineExceeded):
                    await session.step(ONE)
            async with client.session("sum") as session:
                waiting = asyncio.create_task(session.step(ONE))
                await asyncio.sleep(0.1)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                with pytest.raises(StreamCellError) as caught:
                    await session.step(ONE)
                assert caught.value.code is grpc.StatusCode.CANCELLED
            async with client.session("sum") as session:
                asyncio.get_running_loop().call_later(0.1, session.cancel)
                with pytest.raises(StreamCellError, match="was cancelled"):
                    await session.step(ONE)
            small.hold.set()
            small.odd = fail("SESSION_EVICTED", grpc.StatusCode.ABORTED)
            async with client.session("sum") as session:
                with pytest.raises(SessionEvicted):
                    await session.step(ONE)
                with pytest.raises(SessionEvicted):
                    await session.send(ONE)
            session = await client.session("sum").open()
            await session.send(ONE)
            with pytest.raises(SessionEvicted):
                await session.close()
            with pytest.raises(ProtocolMisuse, match="not open yet"):
                await client.session("sum").step(ONE)
        with pytest.raises(ProtocolMisuse, match="is closed"):
            await client.models()
        async with connect_async("127.0.0.1:1") as client:
            with pytest.raises(Unavailable):
                await client.session("sum").open()

    asyncio.run(main())


def test_an_asyncio_stream_left_early_leaves_the_session_in_step(small: Small) -> None:
    async def main() -> None:
        async with connect_async(small.target) as client, client.session("sum") as session:
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
