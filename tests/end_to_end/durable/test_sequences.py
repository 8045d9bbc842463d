"""Sequences of the Open Inference Protocol: over restarts, and exactly once for requests that say their numbers."""

from __future__ import annotations

import itertools
import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc

from streamcell.client import connect
from streamcell.client.local_server import ServerProcess
from streamcell.proto.inference import oip
from tests.support.frontends import Eventually
from tests.support.infer_requests import request, stub
from tests.support.kills import GONE, Checker, check_over_kills
from tests.support.life import Life
from tests.support.reconnecting import AT_ONCE
from tests.support.resumable import reason_of

IDS = itertools.count(1)
TOKEN = "a secret"
KILLS = 3


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels try again at once if the server is not back yet."""
    real = grpc.insecure_channel

    def channel(target: str, options: Any = ()) -> Any:
        return real(target, options=[*(options or ()), *AT_ONCE])

    monkeypatch.setattr(grpc, "insecure_channel", channel)


class Sequence:
    """The requests of one sequence."""

    def __init__(self, target: str, token: str = "", sequence: int | str = 0) -> None:
        self.id = sequence or next(IDS)
        self.token = token
        self._stub = stub(target)

    def message(self, number: int, *x: float, name: str = "", **more: Any) -> oip.ModelInferRequest:
        """A request that says its number, unless that is 0."""
        flags = {"sequence_id": self.id, "sequence_start": number == 1, **more}
        if number:
            flags["streamcell_number"] = number
        if self.token:
            flags.setdefault("streamcell_token", self.token)
        return request(np.array(x, np.float32).reshape(-1, 1), "sum", name, **flags)

    def send(self, number: int, *x: float, **more: Any) -> list[float]:
        """The outputs."""
        return sums(self._stub.ModelInfer(self.message(number, *x, **more), wait_for_ready=True, timeout=60))

    def error(self, number: int, *x: float, **more: Any) -> str:
        """The reason of the error."""
        with pytest.raises(grpc.RpcError) as raised:
            self.send(number, *x, **more)
        return reason_of(raised.value)[0]


def sums(reply: oip.ModelInferResponse) -> list[float]:
    found: list[float] = np.frombuffer(reply.raw_output_contents[0], "<f4").tolist()
    return found


@pytest.mark.conformance
def test_a_request_that_was_applied_gets_its_kept_reply_again(server: ServerProcess) -> None:
    mine = Sequence(server.target, TOKEN)
    assert mine.send(1, 1) == [1]
    assert mine.send(1, 1) == [1]
    assert mine.send(2, 2, 3) == [3, 6]
    for _ in range(3):
        assert mine.send(2, 2, 3) == [3, 6]
        assert mine.send(1, 1) == [1]
    assert mine.send(3, 4) == [10]
    assert mine.send(4, 5, sequence_end=True) == [15]
    assert mine.send(4, 5, sequence_end=True) == [15]
    assert mine.error(5, 1) == "SEQUENCE_NOT_STARTED"
    assert mine.send(1, 7) == [7]  # another sequence of that id


@pytest.mark.conformance
def test_a_gap_a_lost_reply_and_another_shape_are_told_and_change_nothing(server: ServerProcess) -> None:
    mine = Sequence(server.target)
    mine.send(1, 1)
    assert mine.error(3, 1) == "SEQUENCE_GAP"
    for number in range(2, 20):
        mine.send(number, 1)
    assert mine.error(1, 1) == "REPLIES_GONE"
    assert mine.error(19, 1, 1) == "WRONG_SHAPE"
    assert mine.error(21, 1) == "SEQUENCE_GAP"
    assert mine.send(20, 1) == [20]
    assert mine.send(0, 1) == [21]
    assert mine.error(21, 1) == "REPLIES_GONE"  # it did not say its number
    assert mine.send(22, 1) == [22]


@pytest.mark.parametrize("given", ["another", ""])
def test_another_token_is_told_what_an_unknown_sequence_is_and_ends_nothing(
    server: ServerProcess, given: str
) -> None:
    mine = Sequence(server.target, TOKEN)
    mine.send(1, 1)
    other, nobody = Sequence(server.target, given, mine.id), Sequence(server.target, given)

    def told(each: Sequence, number: int, **more: Any) -> tuple[str, str]:
        with pytest.raises(grpc.RpcError) as raised:
            each.send(number, 5, **more)
        reason, _, text = reason_of(raised.value)
        return reason, text.replace(str(each.id), "ID")

    for number in (0, 2):
        assert told(other, number) == told(nobody, number)
        assert told(other, number, sequence_end=True) == told(nobody, number, sequence_end=True)
    assert other.error(1, 5) == "SEQUENCE_NOT_STARTED"  # a START does not end it
    assert other.error(0, 5, sequence_start=True) == "SEQUENCE_NOT_STARTED"
    assert other.error(0, float("nan"), sequence_start=True) in ("SEQUENCE_NOT_STARTED", "NON_FINITE_INPUT")
    with connect(server.target) as client:
        (id_,) = [each.id for each in client.sessions() if each.step_index == 1 and each.model == "sum"][-1:]
        with pytest.raises(Exception, match="no live session"):
            client.close_session(id_)
    assert mine.send(2, 2) == [3]


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (-1, {}), (2, {"sequence_start": True}), (0, {"streamcell_number": 0}), (1, {"sequence_id": 0}),
        (1, {"streamcell_token": "x" * 129}), (1, {"streamcell_nummer": 1}), (0, {"streamcell_number": "1"}),
    ],
)  # fmt: skip
def test_numbers_and_tokens_that_are_none_are_refused(
    server: ServerProcess, number: int, more: dict[str, Any]
) -> None:
    assert Sequence(server.target).error(number, 1, **more) == "WRONG_PARAMETER"


def test_requests_that_wait_are_not_applied_twice(server: ServerProcess) -> None:
    """All requests of a stream are sent twice before any is answered; so are requests for states."""
    mine = Sequence(server.target, TOKEN)
    messages = []
    for number in range(1, 40):
        message = mine.message(number, 1, name=str(number))
        if number % 5 == 0:
            message.outputs.add(name="y")
            message.outputs.add(name="h_next")
        messages += [message, message]
    replies = list(stub(server.target).ModelStreamInfer(iter(messages)))
    assert [reply.error_message for reply in replies] == [""] * len(messages)
    assert [reply.infer_response.id for reply in replies] == [message.id for message in messages]
    found = [sums(reply.infer_response) for reply in replies]
    assert found == [[float(number)] for number in range(1, 40) for _ in range(2)]
    states = [r.infer_response.raw_output_contents[1] for r in replies if r.infer_response.id == "35"]
    assert states == [np.float32(35).tobytes()] * 2


@pytest.mark.conformance
def test_a_sequence_goes_on_over_a_kill(life: Life) -> None:
    plain, mine = Sequence(life.target, sequence="a text: é"), Sequence(life.target, TOKEN)
    assert plain.send(0, 1, sequence_start=True) == [1]
    assert plain.send(0, *[1] * 9) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert mine.send(1, 2) == [2]
    assert mine.send(2, 2) == [4]
    for _ in range(2):
        life.again()
        assert mine.send(2, 2) == [4]
        assert mine.send(1, 2) == [2]
    assert plain.send(0, 1) == [11]
    assert mine.error(4, 2) == "SEQUENCE_GAP"
    assert Sequence(life.target, "another", mine.id).error(3, 2) == "SEQUENCE_NOT_STARTED"
    assert mine.send(3, 2, sequence_end=True) == [6]
    assert plain.send(0, 1, sequence_end=True) == [12]
    life.again()
    assert mine.send(3, 2, sequence_end=True) == [6]
    assert mine.error(4, 2) == "SEQUENCE_NOT_STARTED"
    assert plain.error(0, 1) == "SEQUENCE_NOT_STARTED"


def test_an_orderly_restart_keeps_sequences_and_waits_for_none(life: Life) -> None:
    mine, ended = Sequence(life.target), Sequence(life.target)
    mine.send(1, 3)
    ended.send(0, 1, sequence_start=True, sequence_end=True)
    assert life.server.stop() == 0  # a server that waits is killed after half a minute
    life.begin()
    assert mine.send(2, 3) == [6]
    assert ended.error(0, 1) == "SEQUENCE_NOT_STARTED"


def test_a_reply_that_the_journal_has_no_room_for_is_refused_before_it_runs(life: Life) -> None:
    mine = Sequence(life.target)
    mine.send(1, 1)
    assert mine.error(2, *[1.0] * 600) == "MESSAGE_TOO_LARGE"


class Client(Checker):
    """Sends requests of 1 to 4 steps of the number 1 again and again until they are answered, and checks the sums."""

    def check(self) -> None:
        sequence, total = Sequence(self.target, f"token of {self.name}"), 0
        while not self.halt.is_set():
            steps = self.random.randint(1, 4)
            found = self._answered(sequence, steps)
            total += steps
            self.received += 1
            assert found[-1] == total, (found, total)

    def _answered(self, sequence: Sequence, steps: int) -> list[float]:
        while True:
            try:
                return sequence.send(self.received + 1, *[1.0] * steps)
            except grpc.RpcError as error:
                if error.code() not in GONE:
                    raise


def test_killed_servers_lose_no_numbered_request_and_double_none(life: Life, eventually: Eventually) -> None:
    clients = [Client(life.target, seed) for seed in range(8)]
    check_over_kills(clients, life.again, KILLS, eventually)


@pytest.fixture
def triton(life: Life) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(life.target) as client:
        yield client


def test_triton_s_client_sends_numbers_and_tokens(life: Life, triton: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    given = tritonclient.grpc.InferInput("x", [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), np.float32))

    def ask(number: int) -> float:
        triton.async_stream_infer(
            "sum",
            [given],
            sequence_id=77,
            sequence_start=number == 1,
            parameters={"streamcell_number": number, "streamcell_token": TOKEN},
        )
        result, error = answers.get(timeout=60)
        assert error is None, error
        return float(result.as_numpy("y")[0, 0])

    triton.start_stream(lambda result, error: answers.put((result, error)))
    assert [ask(1), ask(2), ask(2)] == [1, 2, 2]
    triton.stop_stream()
    life.again()
    triton.start_stream(lambda result, error: answers.put((result, error)))
    assert [ask(2), ask(3)] == [2, 3]
    triton.stop_stream()
