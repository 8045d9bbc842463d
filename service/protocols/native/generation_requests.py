"""Makes work of a `generate` message: every check that can be made before it is queued."""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import replace

from streamcell.card import Generation, Signature
from streamcell.proto import pb
from streamcell.service.access.grant import Grant
from streamcell.service.errors import BadGeneration, GenerationUnsupported, MalformedMessage
from streamcell.service.generation.beam_search import BeamSearch
from streamcell.service.generation.outcome import Outcome
from streamcell.service.generation.reply import GenerationListener, StopReason
from streamcell.service.generation.sampling import Chooser, Feedback, Recipe
from streamcell.service.generation.search_work import Search
from streamcell.service.generation.work import Generating
from streamcell.service.protocols.common.requests import OUTPUT_MODES, Limits, count_steps, output_mode
from streamcell.service.sessions.model import Model
from streamcell.service.sessions.session import Output, Session
from streamcell.service.sessions.table import Live

_FEEDBACK = {
    pb.FEEDBACK_VALUE: Feedback.VALUE,
    pb.FEEDBACK_ARGMAX: Feedback.ARGMAX,
    pb.FEEDBACK_SAMPLE: Feedback.SAMPLE,
}

_STOP_REASONS = {
    pb.STOP_REASON_STEPS: StopReason.STEPS,
    pb.STOP_REASON_CLASS: StopReason.CLASS,
    pb.STOP_REASON_REQUEST: StopReason.REQUEST,
    pb.STOP_REASON_NON_FINITE: StopReason.NON_FINITE,
}


def make_generating(
    request: pb.StreamRequest,
    live: Live[Model],
    limits: Limits,
    listener: GenerationListener,
    output: Output,
    grant: Grant | None,
    *,
    fresh: bool,
) -> Generating | Search:
    """Work for one `generate` message to the session `live`; otherwise as `make_generation` and `make_search`.

    It takes room of its tenant's `grant`, if there is one, until it is dropped.

    Raises:
        NotPermitted, QuotaExceeded: the tenant may not generate, or not so much at a time.
    """
    if grant is not None:
        grant.check("generate")
        grant.take_generation()
    work: Generating | Search
    try:
        if request.generate.HasField("beam"):
            work = make_search(request, live.model, limits, listener, live.session, fresh=fresh)
        else:
            work = make_generation(request, live.model, limits, listener, output, fresh=fresh)
    except BaseException:
        if grant is not None:
            grant.give_generation()
        raise
    work.owner = grant
    return work


def remake(data: bytes, model: Model, limits: Limits, listener: GenerationListener, told: int) -> Generating:
    """Work that continues an earlier process's generation after `told` timesteps; `data` is what `again` made.

    Raises:
        BadGeneration, …: as `make_generation`, if this server allows less.
        DecodeError: it is no request.
    """
    request = pb.StreamRequest.FromString(data)
    output = output_mode(request.output_mode, Output.ALL)
    work = make_generation(request, model, limits, listener, output, fresh=False)
    work.go_on(told)
    if work.outcome is not None:
        work.repeat(work.outcome)
        request.ClearField("outcome")
    work.asked = request.SerializeToString()
    return work


def again(request: pb.StreamRequest, work: Generating) -> bytes:
    """The request from which another process goes on with `work`: with the seed that was drawn, without first input.

    The client's own message may have any number of unknown fields, so it is made anew from the values that were taken.
    """
    asked = request.generate
    sampled = work.recipe.feedback is Feedback.SAMPLE
    kept = pb.Generate(
        steps=asked.steps,
        feedback=asked.feedback,
        temperature=work.recipe.temperature if sampled else None,
        top_k=asked.top_k,
        seed=work.recipe.seed if sampled else None,
        stop=sorted(work.stop),
        no_stop=not work.stop,
        steps_per_reply=asked.steps_per_reply,
    )
    return pb.StreamRequest(
        generate=kept, output_mode=OUTPUT_MODES[work.output], tag=request.tag
    ).SerializeToString()


def check_stop(request: pb.StreamRequest) -> None:
    """Raise MalformedMessage if `stop_generation` or `received` is not alone in its message."""
    if request.inputs or request.steps or request.HasField("generate") or request.HasField("open"):
        raise MalformedMessage("stop_generation or received stands alone in a message")


def make_generation(
    request: pb.StreamRequest,
    model: Model,
    limits: Limits,
    listener: GenerationListener,
    output: Output,
    *,
    fresh: bool,
) -> Generating:
    """Work for one `generate` message.

    Args:
        request: has `generate` set.
        model, limits: the session's.
        listener: gets the replies.
        output: the steps whose outputs are sent.
        fresh: no step was requested of the session before, so it will have no last output.

    Raises:
        GenerationUnsupported: the model's card does not say how it generates.
        BadGeneration: something is out of range, or contradicts the card or itself.
        WrongInputCount, WrongByteCount, NoSteps: the first input does not fit.
    """
    asked = request.generate
    generation = expect_generation(model)
    signature = model.file.signature
    _check_counts(asked, limits)
    recipe = _recipe(asked, generation)
    stop = stop_classes(asked, signature, generation)
    outcome = None
    if request.HasField("outcome"):
        outcome = outcome_of(request.outcome, asked.steps, recipe, signature, generation)
        if recipe.feedback is Feedback.SAMPLE and request.outcome.seed:
            recipe = replace(recipe, seed=request.outcome.seed)
    work = Generating(
        listener,
        _first_input(request, signature, generation, fresh=fresh),
        steps=asked.steps,
        recipe=recipe,
        stop=stop,
        per_reply=asked.steps_per_reply or 1,
        output=output,
        tells=recipe.feedback is not Feedback.VALUE,
        tag=request.tag,
        arrived_s=time.perf_counter(),
    )
    if outcome is not None:
        work.repeat(outcome)
    return work


def outcome_of(
    told: pb.Outcome, steps: int, recipe: Recipe, signature: Signature, generation: Generation
) -> Outcome:
    """What a client was told of a generation of so many timesteps that it asks for again.

    Raises:
        BadGeneration: that cannot have been.
    """
    reason = _STOP_REASONS.get(told.stop_reason)
    chooser = Chooser(signature, generation)
    chosen, first = chooser.check(told.chosen), chooser.check(told.first)
    fine = told.steps <= steps and first in (0, 1)
    fine = fine and chosen == (0 if recipe.feedback is Feedback.VALUE else told.steps)
    fine = fine and (reason is None) == (told.stop_reason == pb.STOP_REASON_UNSPECIFIED)
    if not fine or (reason is StopReason.STEPS and told.steps != steps):
        raise BadGeneration(
            "outcome: expected the steps, choices and first input that the replies to this generation told",
            field="outcome",
        )
    # Anew, for the client's own message may have any number of unknown fields.
    fields = ("steps", "chosen", "first", "stop_reason", "seed")
    kept = pb.Outcome(**{name: getattr(told, name) for name in fields})
    data = pb.StreamRequest(outcome=kept).SerializeToString()
    return Outcome(told.steps, told.chosen, told.first, reason, data)


def make_search(
    request: pb.StreamRequest,
    model: Model,
    limits: Limits,
    listener: GenerationListener,
    session: Session,
    *,
    fresh: bool,
) -> Search:
    """Work for one `generate` message with `beam`; the arguments are those of `make_generation`.

    Raises:
        SessionLimit: the model has no room for so many hypotheses.
        GenerationUnsupported, BadGeneration, WrongInputCount, WrongByteCount, NoSteps: as `make_generation`.
    """
    asked = request.generate
    generation = expect_generation(model)
    signature = model.file.signature
    _check_counts(asked, limits)
    if generation.head != "categorical":
        raise BadGeneration(f"generate.beam: a {generation.head} head has no classes", field="beam")
    if _recipe(asked, generation).feedback is not Feedback.ARGMAX or asked.steps_per_reply:
        raise BadGeneration("generate.beam goes with neither samples nor steps_per_reply", field="beam")
    beam = asked.beam
    widest = min(limits.max_beam_width, model.max_batch)
    if not 1 <= beam.width <= widest:
        raise BadGeneration(
            f"generate.beam.width: expected 1 to {widest}, got {beam.width}", limit=widest, got=beam.width
        )
    if beam.results > beam.width:
        raise BadGeneration(
            f"generate.beam.results: expected at most the width, {beam.width}, got {beam.results}"
        )
    power = beam.length_power if beam.HasField("length_power") else 1.0
    if not 0 <= power < math.inf:
        raise BadGeneration(f"generate.beam.length_power: expected a number of 0 or more, got {power:g}")
    search = BeamSearch(
        width=beam.width,
        results=beam.results or beam.width,
        steps=asked.steps,
        length_power=power,
        stop=stop_classes(asked, signature, generation),
    )
    first = _first_input(request, signature, generation, fresh=fresh)
    capacity = model.batcher.capacity
    return Search(session, listener, first, search, capacity, tag=request.tag, arrived_s=time.perf_counter())


def expect_generation(model: Model) -> Generation:
    """How the model generates.

    Raises:
        GenerationUnsupported: it does not.
    """
    generation = model.file.generation
    if generation is None:
        raise GenerationUnsupported(
            f"model {model.file.name!r} cannot generate: its card or sidecar has no `generation`. A forecast has it if "
            "it gives one value of every column, and no quantiles",
            model=model.file.name,
        )
    return generation


def _check_counts(asked: pb.Generate, limits: Limits) -> None:
    if not 1 <= asked.steps <= limits.max_generate_steps:
        raise BadGeneration(
            f"generate.steps: expected 1 to {limits.max_generate_steps}, got {asked.steps}",
            limit=limits.max_generate_steps,
            got=asked.steps,
        )
    if asked.steps_per_reply > limits.max_steps_per_message:
        raise BadGeneration(
            f"generate.steps_per_reply: expected at most {limits.max_steps_per_message}, got {asked.steps_per_reply}",
            limit=limits.max_steps_per_message,
            got=asked.steps_per_reply,
        )


def _recipe(asked: pb.Generate, generation: Generation) -> Recipe:
    real = generation.head == "real"
    feedback = _FEEDBACK.get(asked.feedback)
    if asked.feedback == pb.FEEDBACK_UNSPECIFIED:
        feedback = Feedback.VALUE if real else Feedback.ARGMAX
    if feedback is None or (feedback is Feedback.VALUE) > real or ((feedback is Feedback.ARGMAX) and real):
        raise BadGeneration(
            f"generate.feedback: a {generation.head} head has "
            f"{'FEEDBACK_VALUE' if real else 'FEEDBACK_ARGMAX'} and FEEDBACK_SAMPLE, got {asked.feedback}",
            head=generation.head,
        )
    if feedback is not Feedback.SAMPLE:
        for name in ("temperature", "seed", "top_k"):
            if asked.top_k if name == "top_k" else asked.HasField(name):
                raise BadGeneration(f"generate.{name} is for FEEDBACK_SAMPLE alone", field=name)
        return Recipe(feedback)
    if real and generation.deviation is None:
        raise BadGeneration(
            "generate.feedback: the model's card has no `deviation`, by which its output could be sampled"
        )
    if real and asked.top_k:
        raise BadGeneration("generate.top_k is not for a real head", field="top_k")
    temperature = asked.temperature if asked.HasField("temperature") else 1.0
    if not 0 < temperature < math.inf:
        raise BadGeneration(
            f"generate.temperature: expected a number above 0, got {temperature:g}; for the likeliest, ask for "
            "FEEDBACK_ARGMAX",
            field="temperature",
        )
    seed = asked.seed if asked.HasField("seed") else secrets.randbits(64)
    return Recipe(feedback, temperature, asked.top_k, seed)


def stop_classes(asked: pb.Generate, signature: Signature, generation: Generation) -> frozenset[int]:
    """The classes that end this generation.

    Raises:
        BadGeneration: the head has no classes, or not so many.
    """
    if asked.stop:
        if asked.no_stop:
            raise BadGeneration("generate.stop and generate.no_stop contradict each other")
        if generation.head != "categorical":
            raise BadGeneration(f"generate.stop: a {generation.head} head has no classes", field="stop")
        classes = Chooser(signature, generation).size
        if max(asked.stop) >= classes:
            raise BadGeneration(
                f"generate.stop: expected classes below {classes}, got {max(asked.stop)}", limit=classes
            )
        return frozenset(asked.stop)
    return frozenset() if asked.no_stop or generation.stop is None else frozenset((generation.stop,))


def _first_input(
    request: pb.StreamRequest, signature: Signature, generation: Generation, *, fresh: bool
) -> tuple[bytes, ...]:
    """The first input, or () if the last output gives it."""
    payloads = tuple(request.inputs)
    from_output = request.generate.from_output
    if payloads or request.steps:
        if from_output:
            raise BadGeneration("generate.from_output: the message brings a first input")
        steps = count_steps(signature, payloads, request.steps)
        if steps != 1:
            raise BadGeneration(
                f"expected a first input of one timestep, got {steps}: send earlier timesteps in an earlier message",
                got=steps,
            )
        return payloads
    if generation.start is not None and not from_output:
        return (Chooser(signature, generation).start(generation.start),)
    if fresh:
        raise BadGeneration.nothing()
    return ()
