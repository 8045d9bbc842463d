"""Generations, without transport: makes their requests and reads their replies. Both clients share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from streamcell.client.errors import InvalidInput, ProtocolMisuse, ServerFault
from streamcell.client.values import GenerationInfo
from streamcell.proto import pb

from .signature import SignatureCodec
from .tensors import TensorCodec

Feedback: TypeAlias = Literal["value", "argmax", "sample"]

_FEEDBACK: dict[str, pb.Feedback] = {
    "": pb.FEEDBACK_UNSPECIFIED,
    "value": pb.FEEDBACK_VALUE,
    "argmax": pb.FEEDBACK_ARGMAX,
    "sample": pb.FEEDBACK_SAMPLE,
}


@dataclass(frozen=True, slots=True)
class Step:
    """One generated step.

    Attributes:
        fed: the step's input, `[*step_shape]`; None if the client does not know it.
        output: the step's output, as `Session.step` returns it; None if the output mode leaves it out.
        chosen: what this output gives: a class as an int, or the next input `[*step_shape]`. The next step, if any, is
            fed with it. None if `output` itself is fed back and the output mode leaves it out.
    """

    fed: Any
    output: Any
    chosen: Any


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole generation.

    Attributes:
        fed: the steps' inputs, `[steps, *step_shape]`.
        outputs: the steps' outputs, `[steps, *step_shape]`, without those that the output mode leaves out; a dict of
            arrays if the model has several outputs.
        chosen: what each step's output gives: classes int64[steps], or inputs `[steps, *step_shape]`.
        stop_reason: "steps", "class", "request" or "non_finite".
        seed: the seed of the samples.
    """

    fed: Any
    outputs: Any
    chosen: Any
    stop_reason: str
    seed: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A result of a beam search.

    Attributes:
        classes: the classes, a final stop class included.
        log_probability: of all classes together, in nats.
        score: the log-probability divided by the length to the requested power.
        stopped: True if it ends with a stop class; otherwise it was cut at the number of steps.
    """

    classes: tuple[int, ...]
    log_probability: float
    score: float
    stopped: bool


def generate_message(
    info: GenerationInfo | None,
    steps: int,
    *,
    feedback: Feedback | None,
    temperature: float | None,
    top_k: int | None,
    seed: int | None,
    stop: int | Iterable[int] | None,
    from_output: bool,
    steps_per_reply: int,
    beam: pb.BeamSearch | None = None,
) -> pb.Generate:
    """The wire message of a generation. A temperature, a top-k or a seed implies samples.

    Raises:
        ProtocolMisuse: GENERATION_UNSUPPORTED.
        InvalidInput: BAD_GENERATION; the server makes the remaining checks.
    """
    if info is None:
        raise ProtocolMisuse(
            "this model cannot generate: its card has no section on generation. A forecast has one if it gives "
            "one value of every column, and no quantiles",
            reason="GENERATION_UNSUPPORTED",
        )
    if not 1 <= steps <= info.max_steps:
        raise _bad(f"steps: expected 1 to {info.max_steps}, got {steps}")
    if feedback is None and (temperature is not None or top_k is not None or seed is not None):
        feedback = "sample"
    if (feedback or "") not in _FEEDBACK:
        raise _bad(f"feedback: expected 'value', 'argmax' or 'sample', got {feedback!r}")
    if temperature is not None and not temperature > 0:
        raise _bad(f"temperature: expected a number above 0, got {temperature}")
    classes = None if stop is None else [stop] if isinstance(stop, int) else list(stop)
    try:
        return pb.Generate(
            steps=steps,
            feedback=_FEEDBACK[feedback or ""],
            temperature=temperature,
            top_k=top_k or 0,
            seed=seed,
            stop=classes,
            no_stop=classes == [],
            from_output=from_output,
            steps_per_reply=steps_per_reply,
            beam=beam,
        )
    except (TypeError, ValueError) as error:  # a number outside protobuf's range
        raise _bad(str(error)) from None


def beam_search_message(
    info: GenerationInfo | None,
    steps: int,
    *,
    width: int,
    results: int | None,
    length_power: float,
    stop: int | Iterable[int] | None,
    from_output: bool,
) -> pb.Generate:
    """The wire message of a beam search. Raises like `generate_message`."""
    if info is not None and info.head != "categorical":
        raise _bad(f"a beam search needs a categorical head, this model's is {info.head}")
    if width < 1 or not 0 <= (results or 0) <= width:
        raise _bad(
            f"width, results: expected a width of at least 1 and 0 to `width` results; got {width}, {results}"
        )
    return generate_message(
        info,
        steps,
        feedback=None,
        temperature=None,
        top_k=None,
        seed=None,
        stop=stop,
        from_output=from_output,
        steps_per_reply=0,
        beam=pb.BeamSearch(width=width, results=results or 0, length_power=length_power),
    )


def _bad(text: str) -> InvalidInput:
    return InvalidInput(text, reason="BAD_GENERATION")


class Generation:
    """Makes steps of one generation's replies.

    Attributes:
        tag: the request's tag.
        stop_reason: "" until the last reply has arrived.
        seed: the seed of the samples, once the first reply has arrived.
        stopping: True if it was asked to stop.
        hypotheses: the results of a beam search.
    """

    def __init__(
        self, codec: SignatureCodec, info: GenerationInfo, tag: int, first: Any, value: bool
    ) -> None:
        """`first`: the first input `[*step_shape]`, None if the server makes it; `value`: outputs are fed back."""
        self.tag = tag
        self.stop_reason = ""
        self.seed = 0
        self.stopping = False
        self._codec = codec
        self._input: TensorCodec = codec.the_input
        self._info = info
        self._fed = first
        self._value = value
        self._steps: deque[Step] = deque()
        self.hypotheses: list[Hypothesis] = []

    @property
    def finished(self) -> bool:
        """True if no reply is due."""
        return bool(self.stop_reason)

    def next(self) -> Step | None:
        """Take the oldest step; None if there is none."""
        return self._steps.popleft() if self._steps else None

    def drop(self) -> None:
        """Drop the steps that were not taken."""
        self._steps.clear()

    def take(self, reply: pb.StreamResponse) -> None:
        """Add the steps of one reply. Raises ServerFault if it is malformed."""
        if not reply.HasField("generated"):
            raise ServerFault("a reply to a generation lacks the field `generated`", reason="MALFORMED_REPLY")
        generated = reply.generated
        self.seed = self.seed or generated.seed
        if generated.first:
            first = self._decode(generated.first, 1)[0]
            self._fed = self.encode(first)
        chosen = self._decode(generated.chosen, generated.steps) if generated.chosen else None
        outputs = self._codec.decode(reply.outputs, (reply.steps,))
        left_out = generated.steps - reply.steps  # outputs, by the output mode
        for index in range(generated.steps):
            output = None if outputs is None or index < left_out else _at(outputs, index - left_out)
            choice = None if chosen is None else chosen[index]
            if self._value:
                choice = None if output is None else self._fed_back(output)
            self._steps.append(Step(self._fed, output, _plain(choice)))
            self._fed = None if choice is None else self.encode(choice)
        self.hypotheses += [
            Hypothesis(tuple(each.classes), each.log_probability, each.score, each.stopped)
            for each in generated.hypotheses
        ]
        if generated.stop_reason:
            name = pb.StopReason.Name(generated.stop_reason)
            self.stop_reason = name.removeprefix("STOP_REASON_").lower()

    def _decode(self, data: bytes, steps: int) -> Any:
        """Decode choices: classes int64[steps], or inputs [steps, *step_shape]."""
        if self._info.head != "categorical":
            return self._input.decode(data, (steps,))
        if len(data) != 4 * steps:
            raise ServerFault(
                f"{steps} classes take {4 * steps} bytes, got {len(data)}", reason="MALFORMED_REPLY"
            )
        return np.frombuffer(data, "<u4").astype(np.int64)

    def encode(self, chosen: Any) -> Any:
        """The input `[*step_shape]` for a choice: a class, or an input, which is returned as it is."""
        if self._info.head != "categorical":
            return chosen
        return encode_token(self._info, self._input, int(chosen) + self._info.offset)

    def _fed_back(self, output: Any) -> Any:
        value = output[self._info.output] if isinstance(output, dict) else output
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(self._input.dtype)

    def whole(self, steps: list[Step]) -> Generated:
        """All `steps` as arrays."""
        outputs = [step.output for step in steps if step.output is not None]
        joined: Any = None
        if outputs and isinstance(outputs[0], dict):
            joined = {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}
        elif outputs:
            joined = np.stack(outputs)
        return Generated(
            _stacked([step.fed for step in steps]),
            joined,
            _stacked([step.chosen for step in steps]),
            self.stop_reason,
            self.seed,
        )


def encode_token(info: GenerationInfo, codec: TensorCodec, token: int) -> Any:
    """The input `[*step_shape]` for a token."""
    if info.encoding == "index":
        return np.full(codec.step_shape, token, codec.dtype)
    if not 0 <= token < codec.step_shape[0]:
        raise _bad(f"first: expected a token below {codec.step_shape[0]}, got {token}")
    one_hot = np.zeros(codec.step_shape, codec.dtype)
    one_hot[token] = 1
    return one_hot


def _plain(choice: Any) -> Any:
    return int(choice) if isinstance(choice, np.integer) else choice


def _at(outputs: Any, index: int) -> Any:
    if isinstance(outputs, dict):
        return {name: array[index] for name, array in outputs.items()}
    return outputs[index]


def _stacked(values: list[Any]) -> Any:
    return np.stack(values) if values and all(value is not None for value in values) else None
