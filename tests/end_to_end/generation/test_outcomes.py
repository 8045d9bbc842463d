"""A generation that is sent again with what its client was told of it: the same choices, then free ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.proto import pb
from streamcell.service.generation.sampling import Feedback, Recipe
from streamcell.service.protocols.native.generation_requests import outcome_of
from streamcell.service.server import Server
from tests.support.kill_points import serving
from tests.support.resumable import Raw, save_dice, save_sum

STEPS = 12


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = save_dice(save_sum(tmp_path_factory.mktemp("models")))
    with serving(models=folder, max_sessions=8, settle_s=0, grace_s=0) as made:
        yield made


def one_hot(face: int) -> bytes:
    return np.eye(4, dtype="<f4")[face].tobytes()


class Dice:
    """A session of `dice`."""

    def __init__(self, server: Server, model: str = "dice") -> None:
        self.raw = Raw(f"127.0.0.1:{server.port}", pb.StreamRequest(open=pb.OpenSession(model=model)))
        self.raw.opened()

    def generate(self, outcome: pb.Outcome | None = None, **asked: Any) -> list[pb.StreamResponse]:
        """The replies to a generation."""
        request = pb.StreamRequest(generate=pb.Generate(**{"steps": STEPS, **asked}), outcome=outcome)
        self.raw.send(request)
        replies = [self.raw.reply()]
        while not replies[-1].generated.stop_reason:
            replies.append(self.raw.reply())
        return replies

    def fed(self, faces: Sequence[int]) -> list[np.ndarray[Any, Any]]:
        """The outputs behind these inputs."""
        outputs = []
        for face in faces:
            self.raw.send(pb.StreamRequest(inputs=[one_hot(face)]))
            outputs.append(np.frombuffer(self.raw.reply().outputs[0], "<f4"))
        return outputs


def faces(replies: Sequence[pb.StreamResponse]) -> list[int]:
    chosen: list[int] = np.frombuffer(b"".join(each.generated.chosen for each in replies), "<u4").tolist()
    return chosen


def told(*chosen: int, reason: pb.StopReason = pb.STOP_REASON_UNSPECIFIED, **fields: Any) -> pb.Outcome:
    return pb.Outcome(
        steps=len(chosen), chosen=np.array(chosen, "<u4").tobytes(), stop_reason=reason, **fields
    )


def test_choices_that_were_told_are_made_again_whatever_the_outputs_say(server: Server) -> None:
    free = faces(Dice(server).generate())
    # No run would choose these.
    forced = [(face + 1) % 4 for face in free[:5]]
    replies = Dice(server).generate(told(*forced))
    chosen = faces(replies)
    assert chosen[:5] == forced
    assert len(chosen) == STEPS
    # The model was fed with them, and behind them each choice is the likeliest again.
    outputs = Dice(server).fed([0, *chosen[:-1]])
    answered = [np.frombuffer(each.outputs[0], "<f4") for each in replies]
    assert np.array_equal(outputs, answered)
    assert [int(each.argmax()) for each in outputs[5:]] == chosen[5:]
    assert replies[-1].generated.stop_reason == pb.STOP_REASON_STEPS


def test_a_sample_goes_on_with_the_seed_that_was_told(server: Server) -> None:
    asked: dict[str, Any] = {"feedback": pb.FEEDBACK_SAMPLE, "temperature": 3.0}
    first = Dice(server).generate(**asked)
    seed = first[0].generated.seed
    again = Dice(server).generate(told(*faces(first)[:4], seed=seed), **asked)
    assert again[0].generated.seed == seed
    assert faces(again) == faces(first)


@pytest.mark.parametrize(
    ("reason", "steps"),
    [
        (pb.STOP_REASON_REQUEST, 0),
        (pb.STOP_REASON_REQUEST, 4),
        (pb.STOP_REASON_CLASS, 1),
        (pb.STOP_REASON_CLASS, 4),
        (pb.STOP_REASON_NON_FINITE, 4),
    ],
)
def test_it_ends_as_it_was_told(server: Server, steps: int, reason: pb.StopReason) -> None:
    replies = Dice(server).generate(told(*[3] * steps, reason=reason))
    assert replies[-1].generated.stop_reason == reason
    assert faces(replies) == [3] * steps
    assert replies[-1].step_index == steps


def test_it_begins_as_it_was_told_with_an_input_that_the_last_output_gave(server: Server) -> None:
    dice = Dice(server)
    dice.fed([1, 2])
    first = np.array([3], "<u4").tobytes()
    replies = dice.generate(told(2, first=first), steps=3, from_output=True)
    assert replies[0].generated.first == first
    chosen = faces(replies)
    assert chosen[0] == 2
    outputs = Dice(server).fed([1, 2, 3, *chosen[:-1]])[2:]
    assert np.array_equal(outputs, [np.frombuffer(each.outputs[0], "<f4") for each in replies])
    dice = Dice(server)
    dice.fed([1, 2])
    outcome = told(first=first, reason=pb.STOP_REASON_CLASS)
    (ended,) = dice.generate(outcome, steps=3, from_output=True)
    assert (ended.generated.first, ended.generated.stop_reason) == (first, pb.STOP_REASON_CLASS)
    assert ended.step_index == 2


def test_outputs_that_are_fed_back_are_only_counted(server: Server) -> None:
    one = np.float32(1).tobytes()
    for reason, steps in ((pb.STOP_REASON_REQUEST, 3), (pb.STOP_REASON_UNSPECIFIED, 8)):
        session = Dice(server, "sum")
        request = pb.StreamRequest(inputs=[one], generate=pb.Generate(steps=8))
        request.outcome.steps, request.outcome.stop_reason = 3, reason
        session.raw.send(request)
        total = 0
        while True:
            reply = session.raw.reply()
            total += reply.generated.steps
            if reply.generated.stop_reason:
                break
        assert total == steps


@pytest.mark.parametrize(
    ("outcome", "model"),
    [
        (pb.Outcome(steps=2, chosen=bytes(4)), "dice"),
        (pb.Outcome(steps=1, chosen=bytes(3)), "dice"),
        (pb.Outcome(steps=1, chosen=(4).to_bytes(4, "little")), "dice"),
        (pb.Outcome(steps=STEPS + 1, chosen=bytes(4 * STEPS + 4)), "dice"),
        (pb.Outcome(steps=1 << 63, chosen=bytes(4)), "dice"),
        (pb.Outcome(steps=1, chosen=bytes(4), first=bytes(8)), "dice"),
        (pb.Outcome(steps=1, chosen=bytes(4), first=b"\xff" * 4), "dice"),
        (pb.Outcome(steps=1, chosen=bytes(4), stop_reason=pb.STOP_REASON_STEPS), "dice"),
        (pb.Outcome(steps=1, chosen=bytes(4), stop_reason=99), "dice"),  # type: ignore[arg-type]
        (pb.Outcome(steps=1, chosen=bytes(4)), "sum"),
    ],
)
def test_an_outcome_that_cannot_have_been_is_refused(server: Server, outcome: pb.Outcome, model: str) -> None:
    session = Dice(server, model)
    first = [np.float32(1).tobytes()] if model == "sum" else []
    session.raw.send(pb.StreamRequest(inputs=first, generate=pb.Generate(steps=STEPS), outcome=outcome))
    reason, facts, text = session.raw.error()
    assert (reason, facts["field"]) == ("BAD_GENERATION", "outcome")
    assert "told" in text


def test_nothing_is_kept_of_an_outcome_but_its_fields(server: Server) -> None:
    """It is in the session's record from then on, which is written again and again."""
    file = server.host.models.find("dice", "").file
    fields = pb.Outcome(steps=1, chosen=bytes(4))
    foreign = b"\xfa\x07\x64" + bytes(100)  # of a field that this release does not know
    told = pb.Outcome.FromString(fields.SerializeToString() + foreign)
    assert file.generation is not None
    kept = outcome_of(told, STEPS, Recipe(Feedback.ARGMAX), file.signature, file.generation)
    assert kept.data == pb.StreamRequest(outcome=fields).SerializeToString()
