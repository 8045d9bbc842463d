"""What ends a sequence but its client: idle time, shutdown, a new version, a broken stream; and what it may hold."""

from __future__ import annotations

import queue
import threading
import time
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from streamcell.export import export_model
from streamcell.proto import pb, rpc
from tests.support.arrays import noise
from tests.support.infer_requests import Expected, Steps, close, ids, input_of, request, stub


def test_a_broken_stream_leaves_its_sequences_alone(served: Any, triton: Any, expected: Expected) -> None:
    x, sequence = noise(2, 3), next(ids)
    done = threading.Event()

    def requests() -> Any:
        yield request(x[:1], sequence_id=sequence, sequence_start=True)
        done.wait(20)

    call = stub(served.target).ModelStreamInfer(requests())
    next(call)
    call.cancel()
    done.set()
    y = triton.infer("lstm", [input_of(x[1:])], sequence_id=sequence, sequence_end=True).as_numpy("y")
    close(y[0], expected("lstm", x[None])[0, 1])


@pytest.mark.conformance
def test_an_idle_sequence_expires_and_its_client_is_told_so(
    start_server: Any, models_dir: Any, open_talk: Any, eventually: Any
) -> None:
    server = start_server(models_dir, "--idle-timeout-s", "4", "--max-sessions", "3")
    talk = open_talk(server.target)
    for sequence in (1, 2, 3, 4):
        talk.send("lstm", noise(1, 3), sequence_id=sequence, sequence_start=True)
    for _ in range(3):
        talk.get()
    # A full server says so at once.
    with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED SESSION_LIMIT"):
        talk.get()
    talk.send("lstm", noise(1, 3), sequence_id=4)
    with pytest.raises(InferenceServerException, match=r"SESSION_LIMIT: .* must specify the START flag"):
        talk.get()
    # An end makes room for the start behind it, and so does the sequence that a start replaces.
    for sequence in (1, 2, 3) * 5:
        for end in (False, True):
            talk.send("lstm", noise(1, 3), sequence_id=sequence, sequence_start=not end, sequence_end=end)
    for _ in range(30):
        talk.get()
    talk.send("lstm", noise(1, 3), sequence_id=1, sequence_start=True)
    talk.get()
    ended = {"model": "lstm", "reason": "session_expired"}
    assert eventually(lambda: server.metric("streamcell_sessions_ended_total", **ended) >= 1)
    talk.send("lstm", noise(1, 3), request_id="late", sequence_id=1)
    with pytest.raises(
        InferenceServerException, match=r"late\].* ABORTED SESSION_EXPIRED: .* must specify the START"
    ):
        talk.get()
    talk.send("lstm", noise(1, 3), sequence_id=1, sequence_start=True)
    talk.get()


def test_a_server_that_shuts_down_does_not_wait_for_sequences_that_nobody_holds(
    start_server: Any, models_dir: Any
) -> None:
    server = start_server(models_dir, "--grace-s", "3600")
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        client.infer("lstm", [input_of(noise(1, 3))], sequence_id=1, sequence_start=True)
        open_ = stub(server.target).ModelStreamInfer(iter(()), wait_for_ready=True)
        assert list(open_) == []
    assert server.stop() == 0  # a server that waits is killed after half a minute


def test_a_server_that_shuts_down_lets_sequences_end_and_then_ends_the_stream(
    start_server: Any, models_dir: Any, expected: Expected
) -> None:
    server = start_server(models_dir, "--grace-s", "60")
    x, asked = noise(2, 3), queue.Queue[Any]()
    replies = stub(server.target).ModelStreamInfer(iter(asked.get, None))
    asked.put(request(x[:1], sequence_id=1, sequence_start=True))
    next(replies)
    server.ask_to_stop()
    while "draining" not in [entry["event"] for entry in server.log]:
        time.sleep(0.02)
    asked.put(request(x[:1], sequence_id=2, sequence_start=True))
    assert "UNAVAILABLE SERVER_DRAINING: " in next(replies).error_message
    asked.put(request(x[1:], sequence_id=1, sequence_end=True))
    y = np.frombuffer(next(replies).infer_response.raw_output_contents[0], "<f4")
    close(y, expected("lstm", x[None])[0, 1])
    with pytest.raises(grpc.RpcError) as caught:
        next(replies)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    asked.put(None)
    assert server.stop() == 0


def test_a_sequence_stays_on_its_version_and_is_told_of_its_end(
    start_server: Any, modules: dict[str, torch.nn.Module], tmp_path: Any, expected: Expected
) -> None:
    for version, kind in enumerate(("gru", "lstm"), 1):
        (tmp_path / "m" / str(version)).mkdir(parents=True)
        export_model(modules[kind], tmp_path / "m" / str(version) / "model.onnx", name="m")
    hidden = (tmp_path / "m" / "2").rename(tmp_path / "later")
    flags = ("--model-control", "explicit", "--load-model", "m", "--unload-grace-s", "0.5")
    server = start_server(tmp_path, *flags)
    x = noise(3, 3)
    with tritonclient.grpc.InferenceServerClient(server.target) as client:

        def step(t: int, sequence: int, **more: Any) -> Steps:
            y: Steps = client.infer("m", [input_of(x[t : t + 1])], sequence_id=sequence, **more).as_numpy("y")
            return y[0]

        close(step(0, 1, sequence_start=True), expected("gru", x[None])[0, 0])
        hidden.rename(tmp_path / "m" / "2")
        client.load_model("m")
        close(step(0, 2, sequence_start=True), expected("lstm", x[None])[0, 0])
        close(step(1, 1), expected("gru", x[None])[0, 1])
        with pytest.raises(InferenceServerException, match="has no version '1'"):
            client.infer("m", [input_of(x[1:2])], model_version="1", sequence_id=2)
        close(step(1, 2), expected("lstm", x[None])[0, 1])
        close(step(2, 1, sequence_end=True, model_version="1"), expected("gru", x[None])[0, 2])
        client.unload_model("m")
        with pytest.raises(
            InferenceServerException, match=r"state is gone; .* must specify the START flag"
        ) as caught:
            step(2, 2)
        assert caught.value.status() == "StatusCode.ABORTED"


def test_versions_that_are_served_side_by_side_are_asked_for_by_number(
    start_server: Any, modules: dict[str, torch.nn.Module], tmp_path: Any, expected: Expected
) -> None:
    for version, kind in enumerate(("gru", "lstm"), 1):
        (tmp_path / "m" / str(version)).mkdir(parents=True)
        export_model(modules[kind], tmp_path / "m" / str(version) / "model.onnx", name="m")
    server = start_server(tmp_path)
    x = noise(2, 3)
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        for sequence, (version, kind) in enumerate((("1", "gru"), ("2", "lstm"), ("", "lstm")), 1):
            for t in range(2):
                answer = client.infer(
                    "m",
                    [input_of(x[t : t + 1])],
                    model_version=version,
                    sequence_id=sequence,
                    sequence_start=t == 0,
                )
                assert answer.get_response().model_version == (version or "2")
                close(answer.as_numpy("y")[0], expected(kind, x[None])[0, t])
        with pytest.raises(
            InferenceServerException, match="on version 1 it has not been started, on version 2 it is"
        ):
            client.infer("m", [input_of(x[:1])], model_version="1", sequence_id=2)
        assert client.infer("m", [input_of(x[:1])], sequence_id=1).get_response().model_version == "1"


def test_a_sequence_is_listed_and_closed_as_any_session_is(served: Any, talk: Any) -> None:
    sequence = next(ids)
    talk.send("rnn", noise(4, 3), sequence_id=sequence, sequence_start=True)
    talk.get()
    with grpc.insecure_channel(served.target) as channel:
        native: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        (session,) = native.ListSessions(pb.ListSessionsRequest(model="rnn")).sessions
        assert session.step_index == 4
        assert session.peer.startswith("ipv4:127.0.0.1:")
        native.CloseSession(pb.CloseSessionRequest(session_id=session.session_id))
    talk.send("rnn", noise(1, 3), sequence_id=sequence)
    with pytest.raises(
        InferenceServerException, match=r"ABORTED SESSION_CLOSED: .* must specify the START flag"
    ):
        talk.get()


def test_what_a_request_may_hold_is_bounded(start_server: Any, models_dir: Any) -> None:
    server = start_server(models_dir, "--max-sessions", "3", "--max-infer-bytes", "4096")
    peer = stub(server.target)
    for model in ("mlp", "lstm"):
        assert peer.ModelInfer(request(noise(3, 2, 3), model)).raw_output_contents
        with pytest.raises(grpc.RpcError, match="a request may carry 3 rows, this one carries 4"):
            peer.ModelInfer(request(noise(4, 2, 3), model))
    good, bad, then = peer.ModelStreamInfer(
        iter([request(noise(300, 3)), request(noise(400, 3), name="big"), request(noise(1, 3))])
    )
    assert good.infer_response.raw_output_contents
    assert "RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE: a request may have 4096 bytes" in bad.error_message
    assert then.infer_response.raw_output_contents
