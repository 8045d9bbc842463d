"""Sequences by Triton's clients: their ids, their ends, their order, their errors, against PyTorch's answers."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from streamcell.export import export_model
from streamcell.models import build
from streamcell.proto import pb, rpc
from streamcell.proto.inference import oip
from streamcell.proto.inference import rpc as oip_rpc

Steps = np.ndarray[Any, Any]
Expected = Callable[[str, Steps], Steps]
ids = itertools.count(1000)
NAN = np.full((1, 3), np.nan, np.float32)


def noise(*shape: int, seed: int = 3) -> Steps:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(y: Steps, expected: Steps) -> None:
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def request(x: Steps, model: str = "lstm", name: str = "", **flags: Any) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(model_name=model, id=name, raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    for key, value in flags.items():
        parameter = message.parameters[key]
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(parameter, kind, value)
    return message


def stub(target: str) -> Any:
    return oip_rpc.GRPCInferenceServiceStub(grpc.insecure_channel(target))


@pytest.mark.parametrize("sequence", [2**40 + 7, "a name, ünusual"])
@pytest.mark.parametrize("shape", [(1, 3), (1, 1, 3), (3,)])
def test_a_sequences_steps_are_pytorchs_whatever_its_id_and_shape(
    talk: Any, expected: Expected, sequence: int | str, shape: tuple[int, ...]
) -> None:
    x = noise(6, 3)
    for t in range(6):
        flags = {"sequence_start": t == 0, "sequence_end": t == 5}
        talk.send("lstm", x[t].reshape(shape), request_id=f"r{t}", sequence_id=sequence, **flags)
    for t in range(6):
        answer = talk.get()
        assert answer.get_response().id == f"r{t}"
        assert answer.get_response().parameters["triton_final_response"].bool_param
        y = answer.as_numpy("y")
        assert y.shape == (*shape[:-1], 2)
        close(y.reshape(2), expected("lstm", x[None])[0, t])


def test_a_request_may_carry_several_steps(talk: Any, expected: Expected) -> None:
    x, sequence = noise(300, 3), next(ids)
    talk.send("gru", x[:200], sequence_id=sequence, sequence_start=True)
    talk.send("gru", x[None, 200:], sequence_id=sequence, sequence_end=True)
    first, then = talk.y(), talk.y()
    assert (first.shape, then.shape) == ((200, 2), (1, 100, 2))
    close(np.concatenate([first, then[0]]), expected("gru", x[None])[0])


def test_replies_come_in_the_order_of_the_requests_across_sequences(served: Any, expected: Expected) -> None:
    x, long = noise(64, 20, 3), noise(1, 6 * 1000, 3)
    base = next(ids) << 20
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(64), 20))
    at = np.zeros(64, int)
    # Long requests go first: those of other sequences are run meanwhile and answered behind them.
    requests = [
        request(row, name="long", sequence_id=base - 1, sequence_start=at == 0, sequence_end=at == 5)
        for at, row in enumerate(np.split(long[0], 6))
    ]
    for sequence in order:
        t = at[sequence]
        at[sequence] += 1
        flags = {"sequence_start": bool(t == 0), "sequence_end": bool(t == 19)}
        row = x[sequence, t : t + 1]
        requests.append(request(row, name=f"{sequence}/{t}", sequence_id=int(base + sequence), **flags))
    replies = list(stub(served.target).ModelStreamInfer(iter(requests)))
    assert [reply.infer_response.id for reply in replies] == [each.id for each in requests]
    y = np.zeros((64, 20, 2), np.float32)
    for reply in replies[6:]:
        sequence, _, t = reply.infer_response.id.partition("/")
        y[int(sequence), int(t)] = np.frombuffer(reply.infer_response.raw_output_contents[0], "<f4")
    close(y, expected("lstm", x))
    longs = [np.frombuffer(reply.infer_response.raw_output_contents[0], "<f4") for reply in replies[:6]]
    close(np.concatenate(longs).reshape(1, -1, 2), expected("lstm", long))


def test_sequences_share_batches_one_is_joined_and_what_is_cancelled_is_not_run(
    start_server: Any, tmp_path: Any, open_talk: Any, eventually: Any
) -> None:
    # Large enough that a step takes longer than a client takes for a request.
    config = {"kind": "lstm", "input_size": 3, "hidden_size": 512, "num_layers": 2, "output_size": 2}
    torch.manual_seed(1)
    module = build(config).eval()
    export_model(module, tmp_path / "large.onnx", name="large")
    server = start_server(tmp_path, "--max-sessions", "64")
    talk, x = open_talk(server.target), noise(32, 8, 3)
    for t in range(8):
        for sequence in range(32):
            talk.send("large", x[sequence, t : t + 1], sequence_id=sequence + 1, sequence_start=t == 0)
    y = np.concatenate([talk.y() for _ in range(8 * 32)]).reshape(8, 32, 2).swapaxes(0, 1)
    with torch.no_grad():
        close(y, module(torch.from_numpy(x))[0].numpy())
    rows, runs = (server.metric(f"streamcell_batch_rows_{each}", model="large") for each in ("sum", "count"))
    assert rows / runs > 2
    # Several outstanding requests of one sequence run as one chunk. Figures follow the replies.
    assert eventually(lambda: server.metric("streamcell_steps_total", model="large") == 8 * 32)
    chunks, steps = (server.metric(f"streamcell_{each}_total", model="large") for each in ("chunks", "steps"))
    for t in range(8):
        for at in range(5):
            talk.send("large", x[at, t : t + 1], sequence_id=99, sequence_start=(t, at) == (0, 0))
    y = np.concatenate([talk.y() for _ in range(40)])[None]
    with torch.no_grad():
        whole = np.ascontiguousarray(x[:5].swapaxes(0, 1).reshape(1, 40, 3))
        close(y, module(torch.from_numpy(whole))[0].numpy())
    assert eventually(lambda: server.metric("streamcell_steps_total", model="large") == steps + 40)
    assert server.metric("streamcell_chunks_total", model="large") < chunks + 40
    # What has no sequence, and nobody waits for any more, is not run to its end.
    peer, slow = stub(server.target), request(noise(4000, 3), "large")
    calls = [peer.ModelInfer.future(slow) for _ in range(4)]
    calls.append(peer.ModelStreamInfer(iter([slow])))
    assert eventually(lambda: server.metric("streamcell_slots_used", model="large") == 33 + 5)
    for call in calls:
        call.cancel()
    assert eventually(lambda: server.metric("streamcell_slots_used", model="large") == 33)
    assert eventually(lambda: server.metric("streamcell_cancelled_chunks_total", model="large") == 5)


def test_ids_are_a_models_own_and_int_and_string_differ(talk: Any, expected: Expected) -> None:
    x, sequence = noise(4, 2, 3), next(ids)
    who = [("lstm", sequence), ("gru", sequence), ("lstm", str(sequence)), ("rnn", str(sequence))]
    for t in range(2):
        for at, (model, key) in enumerate(who):
            talk.send(model, x[at, t : t + 1], sequence_id=key, sequence_start=t == 0, sequence_end=t == 1)
    for t in range(2):
        for at, (model, _) in enumerate(who):
            close(talk.y()[0], expected(model, x[at : at + 1])[0, t])


def test_an_id_never_reaches_a_native_session(served: Any, talk: Any) -> None:
    done = threading.Event()

    def opening() -> Any:
        yield pb.StreamRequest(open=pb.OpenSession(model="lstm"))
        done.wait(20)

    with grpc.insecure_channel(served.target) as channel:
        native = rpc.StreamCellStub(channel).Stream(opening())  # type: ignore[no-untyped-call]
        session = next(native).opened.session_id
        for key in (session, int(session, 16) % 2**63):
            talk.send("lstm", noise(1, 3), sequence_id=key)
            with pytest.raises(InferenceServerException, match="SEQUENCE_NOT_STARTED"):
                talk.get()
        listed = rpc.StreamCellStub(channel).ListSessions(pb.ListSessionsRequest())  # type: ignore[no-untyped-call]
        assert [each.step_index for each in listed.sessions if each.session_id == session] == [0]
        done.set()
        assert list(native) == []


def test_a_start_on_a_live_id_begins_again_after_what_came_before(talk: Any, expected: Expected) -> None:
    x, sequence = noise(2, 5, 3), next(ids)
    for turn in range(2):
        for t in range(5):
            talk.send("lstm", x[turn, t : t + 1], sequence_id=sequence, sequence_start=t == 0)
    y = np.concatenate([talk.y() for _ in range(10)]).reshape(2, 5, 2)
    close(y, expected("lstm", x))
    talk.send("lstm", x[0, :1], sequence_id=sequence, sequence_start=True, sequence_end=True)
    close(talk.y()[0], expected("lstm", x[:1])[0, 0])


@pytest.mark.parametrize("ended", [False, True])
def test_a_step_that_no_start_came_before_gets_the_text_that_clients_know(talk: Any, ended: bool) -> None:
    sequence = next(ids)
    if ended:
        talk.send("lstm", noise(1, 3), sequence_id=sequence, sequence_start=True, sequence_end=True)
        talk.get()
    talk.send("lstm", noise(1, 3), request_id="early", sequence_id=sequence)
    with pytest.raises(InferenceServerException) as caught:
        talk.get()
    assert caught.value.message() == (
        f"[request id: early] [sequence: {sequence}] INVALID_ARGUMENT SEQUENCE_NOT_STARTED: inference request for "
        f"sequence {sequence} to model 'lstm' must specify the START flag on the first request of the sequence"
    )


@pytest.mark.conformance
def test_a_sequence_goes_on_over_other_streams_and_unary_calls(
    served: Any, open_talk: Any, triton: Any, expected: Expected
) -> None:
    x, sequence = noise(4, 3), next(ids)
    y = [triton.infer("lstm", [_input(x[:1])], sequence_id=sequence, sequence_start=True).as_numpy("y")]
    for t in (1, 2):
        talk = open_talk(served.target)
        talk.send("lstm", x[t : t + 1], sequence_id=sequence)
        y.append(talk.y())
        talk.client.stop_stream(cancel_requests=True)
    y.append(triton.infer("lstm", [_input(x[3:])], sequence_id=sequence, sequence_end=True).as_numpy("y"))
    close(np.concatenate(y), expected("lstm", x[None])[0])
    with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
        triton.infer("lstm", [_input(x[:1])], sequence_id=sequence)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def _input(x: Steps) -> Any:
    given = tritonclient.grpc.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    return given


def test_one_id_over_several_streams_at_once_loses_no_step(served: Any, triton: Any) -> None:
    sequence, peer = next(ids), stub(served.target)
    triton.infer("lstm", [_input(noise(1, 3))], sequence_id=sequence, sequence_start=True)
    errors: list[str] = []

    def run() -> None:
        replies = peer.ModelStreamInfer(request(noise(1, 3), sequence_id=sequence) for _ in range(100))
        errors.extend(reply.error_message for reply in replies if reply.error_message)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    with grpc.insecure_channel(served.target) as channel:
        native: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        (session,) = native.ListSessions(pb.ListSessionsRequest(model="lstm")).sessions
    triton.infer("lstm", [_input(noise(1, 3))], sequence_id=sequence, sequence_end=True)
    assert not errors
    assert session.step_index == 401


def test_starts_and_ends_of_one_id_over_several_streams_leave_nothing_behind(served: Any) -> None:
    sequence, peer = next(ids), stub(served.target)
    answered: list[Any] = []

    def run() -> None:
        steps = (
            request(noise(1, 3), sequence_id=sequence, sequence_start=t % 5 == 0, sequence_end=t % 5 == 4)
            for t in range(60)
        )
        answered.extend(peer.ModelStreamInfer(steps))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(answered) == 240
    assert {" ".join(reply.error_message.split()[5:7]) for reply in answered} <= {
        "", "INVALID_ARGUMENT SEQUENCE_NOT_STARTED:",
    }  # fmt: skip
    final = peer.ModelInfer(
        request(noise(1, 3), sequence_id=sequence, sequence_start=True, sequence_end=True)
    )
    assert final.raw_output_contents
    assert served.metric("streamcell_slots_used", model="lstm") == 0


@pytest.mark.conformance
def test_a_refused_step_ends_its_sequence_and_no_other(talk: Any, expected: Expected) -> None:
    x, bad, good = noise(6, 3), next(ids), next(ids)
    for sequence in (bad, good):
        talk.send("lstm", x[:1], sequence_id=sequence, sequence_start=True)
    for at, row in enumerate((x[1:2], NAN, x[2:3])):
        talk.send("lstm", row, request_id=str(at), sequence_id=bad)
    talk.send("lstm", x[1:2], sequence_id=good, sequence_end=True)
    y = expected("lstm", x[None])[0]
    close(talk.y()[0], y[0])
    close(talk.y()[0], y[0])
    close(talk.y()[0], y[1])
    with pytest.raises(InferenceServerException, match=r"\[request id: 1\] .* NON_FINITE_INPUT: "):
        talk.get()
    with pytest.raises(InferenceServerException, match=r"\[request id: 2\] .* SEQUENCE_GAP: "):
        talk.get()
    close(talk.y()[0], y[1])
    talk.send("lstm", x[2:3], sequence_id=bad)
    with pytest.raises(InferenceServerException, match=r"SEQUENCE_GAP: .* must specify the START flag"):
        talk.get()
    talk.send("lstm", x[:1], sequence_id=bad, sequence_start=True, sequence_end=True)
    close(talk.y()[0], y[0])


def test_a_request_that_cannot_be_taken_ends_its_sequence_after_those_before_it(
    talk: Any, expected: Expected
) -> None:
    x, sequence = noise(20, 3), next(ids)
    for t in range(20):
        talk.send("lstm", x[t : t + 1], sequence_id=sequence, sequence_start=t == 0)
    talk.send("lstm", np.zeros((1, 4), np.float32), sequence_id=sequence)
    talk.send("lstm", x[:1], sequence_id=sequence)
    close(np.concatenate([talk.y() for _ in range(20)]), expected("lstm", x[None])[0])
    for reason in ("WRONG_SHAPE", "SEQUENCE_GAP"):
        with pytest.raises(InferenceServerException, match=reason):
            talk.get()
    # A START that is refused must not leave the sequence before it in its place.
    talk.send("lstm", x[:1], sequence_id=sequence, sequence_start=True)
    talk.send("lstm", NAN, sequence_id=sequence, sequence_start=True)
    talk.send("lstm", x[1:2], sequence_id=sequence)
    talk.get()
    for reason in ("NON_FINITE_INPUT", "SEQUENCE_GAP"):
        with pytest.raises(InferenceServerException, match=reason):
            talk.get()


def test_half_closing_answers_what_is_in_flight_and_ends_well(served: Any, expected: Expected) -> None:
    x, sequence = noise(100, 3), next(ids)
    requests = [
        request(x[t : t + 1], sequence_id=sequence, sequence_start=t == 0, sequence_end=t == 99)
        for t in range(100)
    ]
    call = stub(served.target).ModelStreamInfer(iter(requests))
    y = [np.frombuffer(reply.infer_response.raw_output_contents[0], "<f4") for reply in call]
    assert call.code() is grpc.StatusCode.OK
    close(np.stack(y), expected("lstm", x[None])[0])
    assert list(stub(served.target).ModelStreamInfer(iter(()))) == []


def test_an_error_is_the_calls_status_where_the_client_asks_for_that(served: Any) -> None:
    sequence = next(ids)
    requests = [
        request(noise(1, 3), sequence_id=sequence, sequence_start=True),
        request(noise(1, 3), sequence_id=next(ids)),
        request(noise(1, 3), sequence_id=sequence, sequence_end=True),
    ]
    call = stub(served.target).ModelStreamInfer(iter(requests), metadata=(("triton_grpc_error", "true"),))
    replies = []
    with pytest.raises(grpc.RpcError) as caught:
        replies.extend(iter(call))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "must specify the START flag" in error.details()
    assert "grpc-status-details-bin" in dict(error.trailing_metadata())
    stub(served.target).ModelInfer(
        request(noise(1, 3), sequence_id=sequence, sequence_start=True, sequence_end=True)
    )


def test_an_error_holds_only_the_id_of_the_reply(served: Any) -> None:
    (reply,) = stub(served.target).ModelStreamInfer(iter([request(noise(1, 3), "nope", name="me")]))
    assert reply.infer_response == oip.ModelInferResponse(id="me")
    assert reply.error_message.startswith("[request id: me] NOT_FOUND MODEL_NOT_FOUND: ")
    raw = grpc.insecure_channel(served.target).stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer"
    )
    (bytes_,) = raw(iter([b"\xff\xff"]))
    reply = oip.ModelStreamInferResponse.FromString(bytes_)
    assert reply.HasField("infer_response")
    assert "MALFORMED_MESSAGE" in reply.error_message


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
    y = triton.infer("lstm", [_input(x[1:])], sequence_id=sequence, sequence_end=True).as_numpy("y")
    close(y[0], expected("lstm", x[None])[0, 1])


@pytest.mark.conformance
def test_states_are_answered_by_name_as_they_are_after_the_step(
    talk: Any, modules: dict[str, torch.nn.Module], expected: Expected
) -> None:
    x, sequence = noise(8, 3), next(ids)
    names = ("h_next", "y", "c_next")
    outputs = [tritonclient.grpc.InferRequestedOutput(name) for name in names]
    # All at once: the steps are queued together, and each must show its own state.
    for t in range(8):
        more = {"outputs": outputs} if t % 2 else {}
        talk.send(
            "lstm", x[t : t + 1], sequence_id=sequence, sequence_start=t == 0, sequence_end=t == 7, **more
        )
    for t in range(8):
        answer = talk.get()
        close(answer.as_numpy("y")[0], expected("lstm", x[None])[0, t])
        if t % 2:
            with torch.no_grad():
                _, h, c = modules["lstm"](torch.from_numpy(x[None, : t + 1]))
            assert [output.name for output in answer.get_response().outputs] == list(names)
            close(answer.as_numpy("h_next").ravel(), h.numpy().ravel())
            close(answer.as_numpy("c_next").ravel(), c.numpy().ravel())


@pytest.mark.conformance
def test_an_idle_sequence_expires_and_its_client_is_told_so(
    start_server: Any, models_dir: Any, open_talk: Any, eventually: Any
) -> None:
    server = start_server(models_dir, "--idle-timeout-s", "0.5", "--max-sessions", "3")
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
    server = start_server(models_dir, "--grace-s", "30")
    with tritonclient.grpc.InferenceServerClient(server.target) as client:
        client.infer("lstm", [_input(noise(1, 3))], sequence_id=1, sequence_start=True)
        open_ = stub(server.target).ModelStreamInfer(iter(()), wait_for_ready=True)
        assert list(open_) == []
    began_s = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began_s < 15


def test_a_server_that_shuts_down_lets_sequences_end_and_then_ends_the_stream(
    start_server: Any, models_dir: Any, expected: Expected
) -> None:
    server = start_server(models_dir, "--grace-s", "20")
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
            y: Steps = client.infer("m", [_input(x[t : t + 1])], sequence_id=sequence, **more).as_numpy("y")
            return y[0]

        close(step(0, 1, sequence_start=True), expected("gru", x[None])[0, 0])
        hidden.rename(tmp_path / "m" / "2")
        client.load_model("m")
        close(step(0, 2, sequence_start=True), expected("lstm", x[None])[0, 0])
        close(step(1, 1), expected("gru", x[None])[0, 1])
        with pytest.raises(InferenceServerException, match="has no version '1'"):
            client.infer("m", [_input(x[1:2])], model_version="1", sequence_id=2)
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
                    [_input(x[t : t + 1])],
                    model_version=version,
                    sequence_id=sequence,
                    sequence_start=t == 0,
                )
                assert answer.get_response().model_version == (version or "2")
                close(answer.as_numpy("y")[0], expected(kind, x[None])[0, t])
        with pytest.raises(
            InferenceServerException, match="on version 1 it has not been started, on version 2 it is"
        ):
            client.infer("m", [_input(x[:1])], model_version="1", sequence_id=2)
        assert client.infer("m", [_input(x[:1])], sequence_id=1).get_response().model_version == "1"


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
