"""Random requests of a few sequences, good and bad, all at once on a stream: each is answered as one alone would be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest

from streamcell.proto.inference import oip, rpc
from tests.support.waiting import waited

Steps = np.ndarray[Any, Any]


@dataclass
class Oracle:
    """What one id's requests should be answered with, in their order."""

    live: bool = False
    why: set[str] = field(default_factory=lambda: {"SEQUENCE_NOT_STARTED"})
    steps: list[Steps] = field(default_factory=list)

    def expect(self, kind: str, x: Steps, start: bool, end: bool) -> set[str] | list[Steps]:
        """The reasons that an error may have, or the inputs whose last outputs are the answer."""
        if kind == "shape":
            if self.live or start:
                self.live, self.why = False, {"SEQUENCE_GAP"}
            return {"WRONG_SHAPE"}
        if start:
            self.live, self.steps = True, []
        if not self.live:
            return self.why
        if kind == "nan":
            # Whether an END behind it still reaches the sequence is a matter of time.
            self.live, self.why = False, {"SEQUENCE_GAP"}
            return {"NON_FINITE_INPUT"}
        self.steps.append(x)
        if end:
            self.live, self.why = False, {"SEQUENCE_NOT_STARTED"}
        return list(self.steps)


def _request(rng: np.random.Generator, number: int, sequence: int) -> tuple[Any, str, Steps, bool, bool]:
    kind = rng.choice(["good", "states", "shape", "nan"], p=[0.8, 0.1, 0.05, 0.05])
    x = rng.standard_normal((int(rng.choice([1, 1, 1, 3, 70])), 4 if kind == "shape" else 3)).astype(
        np.float32
    )
    if kind == "nan":
        x[-1, 1] = np.nan
    start, end = bool(rng.random() < 0.15), bool(rng.random() < 0.1)
    message = oip.ModelInferRequest(model_name="gru", id=str(number), raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    if kind == "states":
        for name in ("h_next", "y"):
            message.outputs.add(name=name)
    message.parameters["sequence_id"].int64_param = sequence
    if start:
        message.parameters["sequence_start"].bool_param = True
    if end:
        message.parameters["sequence_end"].bool_param = True
    return message, kind, x, start, end


@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.conformance), 1, 2])
def test_random_requests_are_answered_as_each_sequence_alone_would_be(
    served: Any, modules: Any, seed: int, expected: Callable[[str, Steps], Steps]
) -> None:
    import torch

    rng = np.random.default_rng(seed)
    base = 5000 + 100 * seed
    requests, answers = [], []
    oracles: dict[int, Oracle] = {}
    undecided: set[int] = set()
    for number in range(400):
        sequence = base + int(rng.integers(1, 7))
        message, kind, x, start, end = _request(rng, number, sequence)
        oracle = oracles.setdefault(sequence, Oracle())
        wanted = oracle.expect(kind, x, start, end)
        if start:
            undecided.discard(sequence)
        elif isinstance(wanted, set) and sequence in undecided and kind in ("good", "states", "nan"):
            wanted = {*wanted, "SEQUENCE_NOT_STARTED"}
        if kind == "nan" and isinstance(wanted, set) and len(x) > 64:
            wanted = {*wanted, "NON_FINITE_INPUT"}  # longer than a chunk, it is looked at as it arrives
        # A step behind a bad one may reach the sequence with its END before the bad one is found out.
        if kind != "shape" and end and isinstance(wanted, set):
            undecided.add(sequence)
        requests.append(message)
        answers.append((kind, wanted))

    def send() -> Iterator[oip.ModelInferRequest]:
        yield from requests
        for sequence in oracles:  # nothing is left behind
            last = oip.ModelInferRequest()
            last.CopyFrom(next(r for r, (kind, _) in zip(requests, answers, strict=True) if kind == "good"))
            last.parameters["sequence_id"].int64_param = sequence
            for name in ("sequence_start", "sequence_end"):
                last.parameters[name].bool_param = True
            yield last

    with grpc.insecure_channel(served.target) as channel:
        replies = list(rpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(send()))  # type: ignore[no-untyped-call]
    assert len(replies) == len(requests) + len(oracles)
    met = set()
    for number, (reply, (kind, wanted)) in enumerate(zip(replies[:400], answers, strict=True)):
        assert reply.infer_response.id == str(number)
        if isinstance(wanted, set):
            met.add(reply.error_message.split()[6].rstrip(":"))
            assert reply.error_message.split()[6].rstrip(":") in wanted, (number, reply.error_message, wanted)
            continue
        assert not reply.error_message, (number, reply.error_message)
        raw = reply.infer_response.raw_output_contents
        x = np.concatenate(wanted)[None]
        y = np.frombuffer(raw[-1], "<f4").reshape(-1, 2)
        np.testing.assert_allclose(y, expected("gru", x)[0, -len(y) :], rtol=1e-5, atol=1e-5)
        assert len(y) == len(wanted[-1])
        if kind == "states":
            with torch.no_grad():
                h = modules["gru"](torch.from_numpy(x))[1].numpy()
            np.testing.assert_allclose(np.frombuffer(raw[0], "<f4"), h.ravel(), rtol=1e-5, atol=1e-5)
    assert met == {"WRONG_SHAPE", "NON_FINITE_INPUT", "SEQUENCE_GAP", "SEQUENCE_NOT_STARTED"}
    assert waited(lambda: served.metric("streamcell_slots_used", model="gru") == 0)
