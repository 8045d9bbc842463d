"""Sequences by Triton's clients: their ids, their order, their states, against PyTorch's answers."""

from __future__ import annotations

import threading
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
from tests.support.arrays import noise
from tests.support.infer_requests import Expected, close, ids, input_of, request, stub
from tests.support.waiting import waited


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


@pytest.mark.conformance
def test_a_sequence_goes_on_over_other_streams_and_unary_calls(
    served: Any, open_talk: Any, triton: Any, expected: Expected
) -> None:
    x, sequence = noise(4, 3), next(ids)
    y = [triton.infer("lstm", [input_of(x[:1])], sequence_id=sequence, sequence_start=True).as_numpy("y")]
    for t in (1, 2):
        talk = open_talk(served.target)
        talk.send("lstm", x[t : t + 1], sequence_id=sequence)
        y.append(talk.y())
        talk.client.stop_stream(cancel_requests=True)
    y.append(triton.infer("lstm", [input_of(x[3:])], sequence_id=sequence, sequence_end=True).as_numpy("y"))
    close(np.concatenate(y), expected("lstm", x[None])[0])
    with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
        triton.infer("lstm", [input_of(x[:1])], sequence_id=sequence)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_one_id_over_several_streams_at_once_loses_no_step(served: Any, triton: Any) -> None:
    sequence, peer = next(ids), stub(served.target)
    triton.infer("lstm", [input_of(noise(1, 3))], sequence_id=sequence, sequence_start=True)
    errors: list[str] = []

    def run() -> None:
        replies = peer.ModelStreamInfer(request(noise(1, 3), sequence_id=sequence) for _ in range(100))
        errors.extend(reply.error_message for reply in replies if reply.error_message)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with grpc.insecure_channel(served.target) as channel:
        native: Any = rpc.StreamCellStub(channel)  # type: ignore[no-untyped-call]
        (session,) = native.ListSessions(pb.ListSessionsRequest(model="lstm")).sessions
    triton.infer("lstm", [input_of(noise(1, 3))], sequence_id=sequence, sequence_end=True)
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
        thread.join(60)
    assert len(answered) == 240
    assert {" ".join(reply.error_message.split()[5:7]) for reply in answered} <= {
        "", "INVALID_ARGUMENT SEQUENCE_NOT_STARTED:",
    }  # fmt: skip
    final = peer.ModelInfer(
        request(noise(1, 3), sequence_id=sequence, sequence_start=True, sequence_end=True)
    )
    assert final.raw_output_contents
    assert waited(lambda: served.metric("streamcell_slots_used", model="lstm") == 0)


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
