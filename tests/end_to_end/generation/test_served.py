"""Generation, served: held against a loop in PyTorch, on both lanes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from streamcell.client import Client, InvalidInput, ProtocolMisuse, StreamCellError, connect_async
from streamcell.client.local_server import ServerProcess
from streamcell.proto import pb

KEYS, CLASSES, SYMBOLS, GO, END = 12, 9, 7, 11, 0
Start = Callable[[str], Any]
Raw = Callable[[Any], Iterator[pb.StreamResponse]]


def chords(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).random((count, KEYS)) < 0.3).astype(np.float32)


def one_hot(index: int, size: int = CLASSES) -> np.ndarray[Any, Any]:
    return np.eye(size, dtype=np.float32)[index]


@pytest.mark.parametrize("per_reply", [1, 7, 64])
def test_a_chorale_goes_on_by_its_likeliest_keys(client: Client, loop: Start, per_reply: int) -> None:
    prompt, model = chords(5), loop("chords")
    for x in prompt:
        y = model.step(x)
    with client.session("chords") as session:
        session.run(prompt)
        steps = session.generate(40, steps_per_reply=per_reply)
        for step in steps:
            x = (y > 0).astype(np.float32)
            np.testing.assert_array_equal(step.fed, x)
            y = model.step(x)
            np.testing.assert_allclose(step.output, y, atol=2e-5)
            np.testing.assert_array_equal(step.chosen, y > 0)
        assert (steps.stop_reason, session.step_index) == ("steps", 45)
        x = chords(1)[0]  # a client's own step goes on from there: what was chosen last was not fed
        np.testing.assert_allclose(session.step(x), model.step(x), atol=2e-5)


@pytest.mark.parametrize("name", ["waves", pytest.param("noise", marks=pytest.mark.conformance)])
def test_values_are_fed_back_as_they_are(client: Client, loop: Start, name: str) -> None:
    """PyTorch is given what the server fed: in a loop left to itself, rounding grows and nothing bounds it."""
    x = np.array([0.5, -1.0, 0.25], np.float32)
    with client.session(name) as session:
        whole = session.generate(60, first=x).all()
        assert session.step_index == 60
        np.testing.assert_array_equal(whole.fed[0], x)
        np.testing.assert_array_equal(whole.fed[1:], whole.outputs[:-1])  # to the bit
        model = loop(name)
        np.testing.assert_allclose(whole.outputs, [model.step(each) for each in whole.fed], atol=1e-5)
        # The state is where those steps have brought it.
        np.testing.assert_allclose(session.step(x), model.step(x), atol=1e-5)


def test_letters_in_then_symbols_until_the_end_symbol(client: Client, loop: Start) -> None:
    ended = 0
    for seed in range(12):
        letters = np.random.default_rng(seed).integers(0, GO, 6)
        model = loop("spell")
        for letter in letters:
            model.step(letter)
        wanted, token = [], GO
        while len(wanted) < 15:
            wanted.append(int(model.step(token).argmax()))
            if wanted[-1] == END:
                break
            token = GO + wanted[-1]
        with client.session("spell") as session:
            session.run(letters)
            steps = session.generate(15)
            assert [step.chosen for step in steps] == wanted
            assert steps.stop_reason == ("class" if wanted[-1] == END else "steps")
            assert session.step_index == 6 + len(wanted)
            ended += wanted[-1] == END
    assert ended > 0


def test_the_first_input_is_the_requests_then_the_start_token_then_the_last_output(client: Client) -> None:
    with client.session("spell") as session:
        y = session.step(3)
        own = session.generate(1, first=GO + 2, stop=()).all()
        assert own.fed.tolist() == [GO + 2]
        assert session.generate(1, stop=()).all().fed.tolist() == [GO]
        y = session.step(4)
        assert session.generate(1, from_output=True, stop=()).all().fed.tolist() == [GO + y.argmax()]
    with client.session("words") as session:
        y = session.step(one_hot(1))
        np.testing.assert_array_equal(session.generate(1).all().fed[0], one_hot(int(y.argmax())))
        np.testing.assert_array_equal(session.generate(1, first=3).all().fed[0], one_hot(3))


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_a_generation_in_parts_is_the_generation_in_one(client: Client, cut: int) -> None:
    settings = {"temperature": 1.3, "seed": 5, "stop": (), "from_output": True}
    with client.session("words") as one, client.session("words") as parts:
        one.step(one_hot(2))
        parts.step(one_hot(2))
        whole = one.generate(10, **settings).all()
        first = parts.generate(cut, **settings).all()
        rest = parts.generate(10 - cut, **settings).all()
    np.testing.assert_array_equal(whole.chosen, np.concatenate((first.chosen, rest.chosen)))
    np.testing.assert_array_equal(whole.fed, np.concatenate((first.fed, rest.fed)))


@pytest.mark.conformance
def test_a_stop_class_ends_it_before_it_is_fed(client: Client) -> None:
    with client.session("words") as session:
        session.step(one_hot(2))
        free = session.generate(200, temperature=3.0, seed=1, stop=()).all()
    assert len(free.chosen) == 200
    classes = [int(free.fed[0].argmax()), *free.chosen.tolist()]
    for stop in set(classes):
        with client.session("words") as session:
            session.step(one_hot(2))
            ended = session.generate(200, temperature=3.0, seed=1, stop=stop).all()
            steps = classes.index(stop)
            assert ended.stop_reason == "class"
            assert session.step_index == 1 + steps
            assert ([] if ended.chosen is None else ended.chosen.tolist()) == classes[1 : steps + 1]
    with client.session("words") as session:  # the card's own
        session.step(one_hot(2))
        own = session.generate(200, temperature=3.0, seed=1)
        assert (sum(1 for _ in own), own.stop_reason) == (classes.index(CLASSES - 1), "class")


@pytest.mark.parametrize(("mode", "told"), [("all", 10), ("last", 1), ("none", 0)])
@pytest.mark.parametrize("per_reply", [1, 4, 100])
def test_replies_carry_the_outputs_that_were_asked_for(
    client: Client, mode: Any, told: int, per_reply: int
) -> None:
    with client.session("chords") as session:
        whole = session.generate(10, first=chords(1)[0]).all()
    with client.session("chords", output=mode) as session:
        steps = list(session.generate(10, first=chords(1)[0], steps_per_reply=per_reply))
    np.testing.assert_array_equal([step.chosen for step in steps], whole.chosen)
    np.testing.assert_array_equal([step.fed for step in steps], whole.fed)
    given = [step.output for step in steps if step.output is not None]
    assert len(given) == told
    if told:
        np.testing.assert_array_equal(given, whole.outputs[-told:])


def test_a_model_without_states_generates_too(client: Client, loop: Start) -> None:
    x, model = chords(1)[0], loop("markov")
    with client.session("markov") as session:
        for step in session.generate(8, first=x):
            np.testing.assert_array_equal(step.fed, x)
            x = (model.step(x) > 0).astype(np.float32)
            np.testing.assert_array_equal(step.chosen, x)


def test_the_same_on_asyncio(server: ServerProcess, client: Client) -> None:
    async def generate() -> tuple[Any, int, str]:
        async with connect_async(server.target) as other, other.session("words") as session:
            assert session.generation is not None
            assert session.generation.head == "categorical"
            await session.step(one_hot(2))
            whole = await session.generate(20, seed=3, stop=()).all()
            steps = session.generate(4000, seed=3, stop=())
            taken = 0
            async for _ in steps:
                taken += 1
                if taken == 5:
                    await steps.stop()
            assert session.step_index == 21 + taken
            assert taken < 4000
            async for _ in session.generate(4000, seed=3, stop=()):
                break  # left early: the next call stops it
            y = await session.step(one_hot(2))
            assert y.shape == (CLASSES,)
            return whole, session.step_index, steps.stop_reason

    whole, step_index, reason = asyncio.run(generate())
    assert reason == "request"
    assert step_index < 4000
    with client.session("words") as session:
        session.step(one_hot(2))
        np.testing.assert_array_equal(session.generate(20, seed=3, stop=()).all().chosen, whole.chosen)


def test_a_generation_that_is_left_or_stopped_applies_no_more_steps(client: Client, loop: Start) -> None:
    model, x = loop("chords"), chords(1)[0]
    with client.session("chords") as session:
        steps = session.generate(5000, first=x)
        fed = [next(steps).fed for _ in range(3)]
        steps.stop()
        fed += [step.fed for step in steps]
        assert steps.stop_reason == "request"
        assert session.step_index == len(fed) < 5000
        for each in fed:
            model.step(each)
        np.testing.assert_allclose(session.step(x), model.step(x), atol=2e-5)
        for _ in session.generate(5000):
            break
        np.testing.assert_array_equal(session.run(chords(3)).shape, (3, KEYS))
        assert session.step_index < 5000
        next(session.generate(5000))  # and closing does not wait for it


def test_messages_behind_a_generation_run_after_it(raw: Raw, loop: Start) -> None:
    model, x = loop("chords"), chords(1)[0]
    requests = [
        pb.StreamRequest(open=pb.OpenSession(model="chords"), inputs=[x.tobytes()], generate={"steps": 30}, tag=1),
        pb.StreamRequest(inputs=[x.tobytes()], tag=2),
        pb.StreamRequest(generate={"steps": 2, "steps_per_reply": 5}, tag=3),
        pb.StreamRequest(inputs=[chords(2).tobytes()], tag=4),
    ]  # fmt: skip
    replies = list(raw(requests))
    assert [reply.tag for reply in replies] == [1] * 30 + [2, 3, 4]
    assert [reply.step_index for reply in replies] == [*range(1, 31), 31, 33, 35]
    assert [reply.generated.stop_reason for reply in replies] == [0] * 29 + [1, 0, 1, 0]
    assert [reply.HasField("generated") for reply in replies] == [True] * 30 + [False, True, False]
    assert replies[0].opened.generation.max_steps == 5000
    outputs = [np.frombuffer(reply.outputs[0], np.float32) for reply in replies[:31]]
    fed = [x, *((y > 0).astype(np.float32) for y in outputs[:29]), x]  # what the server said, and not PyTorch
    np.testing.assert_allclose(outputs, [model.step(each) for each in fed], atol=2e-5)


def test_a_generation_that_waits_can_be_stopped_before_its_first_step(raw: Raw) -> None:
    x, long = chords(1)[0].tobytes(), pb.Generate(steps=3000, steps_per_reply=3000)
    requests = [
        pb.StreamRequest(open=pb.OpenSession(model="chords"), inputs=[x], generate=long, tag=1),
        pb.StreamRequest(generate=long, tag=2),
        pb.StreamRequest(stop_generation=2),
        pb.StreamRequest(stop_generation=7),
        pb.StreamRequest(inputs=[x], tag=3),
    ]  # fmt: skip
    first, second, third = raw(requests)
    assert (first.generated.stop_reason, first.step_index) == (pb.STOP_REASON_STEPS, 3000)
    assert (second.generated.stop_reason, second.step_index) == (pb.STOP_REASON_REQUEST, 3000)
    assert (third.tag, third.step_index) == (3, 3001)


@pytest.mark.parametrize(
    ("model", "generate", "text"),
    [
        ("words", {"steps": 0}, "steps: expected 1 to 5000, got 0"),
        ("words", {"steps": 5001}, "steps: expected 1 to 5000, got 5001"),
        ("words", {"steps": 1, "steps_per_reply": 4097}, "steps_per_reply: expected at most 4096"),
        ("words", {"steps": 1, "feedback": 1}, "a categorical head has FEEDBACK_ARGMAX and FEEDBACK_SAMPLE"),
        ("words", {"steps": 1, "feedback": 9}, "FEEDBACK_SAMPLE, got 9"),
        ("waves", {"steps": 1, "feedback": 2}, "a real head has FEEDBACK_VALUE and FEEDBACK_SAMPLE"),
        ("waves", {"steps": 1, "feedback": 3}, "no `deviation`"),
        ("noise", {"steps": 1, "feedback": 3, "top_k": 2}, "top_k is not for a real head"),
        ("words", {"steps": 1, "temperature": 2.0}, "temperature is for FEEDBACK_SAMPLE alone"),
        ("words", {"steps": 1, "seed": 2}, "seed is for FEEDBACK_SAMPLE alone"),
        ("words", {"steps": 1, "top_k": 2}, "top_k is for FEEDBACK_SAMPLE alone"),
        ("words", {"steps": 1, "feedback": 3, "temperature": 0}, "temperature: expected a number above 0"),
        ("words", {"steps": 1, "feedback": 3, "temperature": float("nan")}, "temperature: expected"),
        ("words", {"steps": 1, "stop": [CLASSES]}, "stop: expected classes below 9, got 9"),
        ("words", {"steps": 1, "stop": [1], "no_stop": True}, "contradict"),
        ("chords", {"steps": 1, "stop": [1]}, "a bernoulli head has no classes"),
        ("words", {"steps": 1}, "cannot generate yet"),
        ("spell", {"steps": 1, "from_output": True}, "cannot generate yet"),
    ],
)
def test_a_bad_generation_is_refused_by_reason(raw: Raw, model: str, generate: Any, text: str) -> None:
    request = pb.StreamRequest(open=pb.OpenSession(model=model), generate=pb.Generate(**generate))
    with pytest.raises(StreamCellError, match=text) as caught:
        list(raw([request]))
    assert caught.value.reason == "BAD_GENERATION"


def test_what_else_is_wrong_has_its_reason(raw: Raw) -> None:
    def reason(model: str, *requests: pb.StreamRequest) -> str:
        with pytest.raises(StreamCellError) as caught:
            list(raw([pb.StreamRequest(open=pb.OpenSession(model=model)), *requests]))
        return caught.value.reason

    x = one_hot(1).tobytes()
    two = pb.StreamRequest(inputs=[x * 2], generate={"steps": 1})
    assert reason("mute", pb.StreamRequest(generate={"steps": 1})) == "GENERATION_UNSUPPORTED"
    assert reason("words", two) == "BAD_GENERATION"
    assert reason("words", pb.StreamRequest(inputs=[x, x], generate={"steps": 1})) == "WRONG_INPUT_COUNT"
    both = pb.StreamRequest(inputs=[x], generate={"steps": 1, "from_output": True})
    assert reason("words", both) == "BAD_GENERATION"
    assert reason("words", pb.StreamRequest(inputs=[x], stop_generation=0)) == "MALFORMED_MESSAGE"
    infinite = np.full(3, np.inf, np.float32).tobytes()
    assert reason("waves", pb.StreamRequest(inputs=[infinite], generate={"steps": 3})) == "NON_FINITE_INPUT"
    outside = np.array([99]).tobytes()
    assert reason("spell", pb.StreamRequest(inputs=[outside], generate={"steps": 3})) == "INDEX_OUT_OF_RANGE"


def test_the_client_refuses_first_and_the_session_lives_on(client: Client) -> None:
    with client.session("mute") as session:
        assert session.generation is None
        with pytest.raises(ProtocolMisuse, match="cannot generate") as misuse:
            session.generate(1)
        assert misuse.value.reason == "GENERATION_UNSUPPORTED"
        assert session.step(np.zeros(3, np.float32)).shape == (2,)
    bad: list[dict[str, Any]] = [
        {"steps": 0}, {"steps": 9999}, {"steps": 1, "temperature": -1}, {"steps": 1, "feedback": "dice"},
        {"steps": 1, "seed": -1}, {"steps": 1, "first": 99}, {"steps": 1, "first": np.zeros(2, np.float32)},
    ]  # fmt: skip
    with client.session("words") as session:
        for settings in bad:
            with pytest.raises(InvalidInput):
                session.generate(**settings)
        assert session.step(one_hot(1)).shape == (CLASSES,)


def test_models_say_how_they_generate(client: Client) -> None:
    models = {model.name: model.generation for model in client.models()}
    assert models["mute"] is None
    spell = models["spell"]
    assert spell is not None
    assert (spell.head, spell.encoding, spell.offset, spell.start, spell.stop) == (
        "categorical", "index", GO, GO, END,
    )  # fmt: skip
    assert (spell.output, spell.input, spell.max_steps) == ("y", "x", 5000)
    assert client.model("chords").generation == models["chords"]
