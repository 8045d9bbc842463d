"""What a sequence's client is told of a step that is refused, and what becomes of the steps behind it."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from streamcell.proto.inference import oip
from tests.support.arrays import noise
from tests.support.infer_requests import Expected, close, ids, request, stub

NAN = np.full((1, 3), np.nan, np.float32)


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
