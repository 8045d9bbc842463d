"""Makes a model's engine with what its proof demands: one session a run, one timestep a run, or none at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx
from structlog.typing import FilteringBoundLogger

from streamcell.card import Signature
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.engine.proof import Difference, FailsAloneError, ProofResult, prove
from streamcell.service.graph.causes import fixes_rows, forgets, mixes_rows, mixes_steps
from streamcell.service.load_errors import ModelLoadError
from streamcell.service.settings import Settings

from .arithmetic import NONE_IN_INT8, Choice, choose, for_trial

_MOST_CAUSES = 3


@dataclass(frozen=True)
class Proved:
    """An engine in which sessions do not affect each other.

    Attributes:
        engine: the engine, restricted as it must be.
        restrictions: by kind ("rows", "steps") what it is restricted to, and why.
        proof: what was compared, in words.
        arithmetic: what it multiplies in.
    """

    engine: Engine
    restrictions: dict[str, str]
    proof: str
    arithmetic: Choice


def proved_engine(
    make: Callable[[EngineOptions], Engine],
    options: EngineOptions,
    model: onnx.ModelProto,
    settings: Settings,
    log: FilteringBoundLogger,
    remedy: str,
) -> Proved:
    """Make an engine and prove that sessions do not affect each other in it.

    Args:
        make: an engine of the model with these options.
        options: what the settings give.
        model: as it is in the file, to name causes.
        settings: whether and for how long to prove.
        log: bound to the model.
        remedy: what to do if no run of it succeeds.

    Raises:
        ModelLoadError: no way of running the model gives right answers; it names output, values and cause.
        RunTimeout: a run took longer than a run may take.
    """
    choice = choose(make, options, model, settings, log)
    if choice.arithmetic == "int8":
        prover = make(replace(for_trial(options), arithmetic="int8"))
        if prover.arithmetic != "int8":
            choice = Choice("float32", NONE_IN_INT8)
        elif settings.proof != "off":
            result, why = _in_int8(prover, settings, log)
            if not why:
                return Proved(make(replace(options, arithmetic="int8")), {}, str(result), choice)
            choice = Choice("float32", f"int8 is not exact: {why}")
    options = replace(options, arithmetic=choice.arithmetic)
    engine = make(options)
    if settings.proof == "off":
        return Proved(engine, {}, "off", choice)
    # What mixes rows or timesteps does so on every device. A card's memory is left to its own thread.
    on_host = options.device.kind == "cpu"
    fixed = engine.fixed_shapes  # a card's runs are padded, in time too
    least = replace(
        options, device=Device(), max_sessions=1, cuda_graphs=None, fixed_shapes=fixed, make_journal=None
    )
    prover = engine if on_host else make(least)
    try:
        result = prove(prover, full=settings.proof == "full", limit_s=settings.proof_s, log=log)
    except FailsAloneError as error:
        raise ModelLoadError(
            _told(f"with one session and one timestep it fails: {error}; {remedy}", fixes_rows(model.graph))
        ) from error
    if not result.found:
        return Proved(engine, {}, str(result), choice)
    restrictions: dict[str, str] = {each.kind: _restriction(each, model, engine) for each in result.found}
    engine.close()
    engine = make(
        replace(
            options,
            max_batch=1 if "rows" in restrictions else options.max_batch,
            max_chunk=1 if "steps" in restrictions else options.max_chunk,
        )
    )
    return Proved(engine, restrictions, str(result), choice)


def _in_int8(engine: Engine, settings: Settings, log: FilteringBoundLogger) -> tuple[ProofResult | None, str]:
    """The proof that int8 gives each row, alone and among others, step by step and in chunks, the same to the bit.

    Coarse values would hide behind the tolerance of float32 what has one scale for a whole batch.

    Returns:
        the result, and "" or why it is not exact.

    Raises:
        ModelLoadError: it is not, and the settings ask for it.
    """
    result = None
    try:
        result = prove(
            engine, full=settings.proof == "full", limit_s=settings.proof_s, log=log, to_the_bit=True
        )
        why = str(result.found[0]) if result.found else ""
        if result.unproved and not result.ways:
            why = result.unproved
    except FailsAloneError as error:
        why = f"it fails: {error}"
    if not why:
        return result, ""
    if settings.arithmetic == "int8":
        raise ModelLoadError(f"int8 is not exact: {why}; leave --arithmetic out, and it runs in float32")
    log.warning("not in int8", error=why)
    return result, why


def _restriction(found: Difference, model: onnx.ModelProto, engine: Engine) -> str:
    """The restriction that `found` demands, with the reason; raises ModelLoadError if none helps."""
    signature = engine.signature
    if found.kind == "rows":
        causes = mixes_rows(model, signature)
        if found.ragged:
            causes = [f"its states advance past {signature.lengths!r}"]
        if fixed := _fixed_output(found, model.graph, signature):
            raise ModelLoadError(
                f"{fixed}: runs with several sessions fail; leave it out of the outputs, or set `max_batch = 1` in the "
                "sidecar to run one session at a time"
            )
        if engine.fixed_batch:
            raise ModelLoadError(_told(f"{found}, and the graph fixes its batch", causes))
        return _told(f"one session a run: {found}", causes)
    if lost := forgets(model.graph):
        raise ModelLoadError(_told(str(found), lost))
    return _told(f"one timestep a run: {found}", mixes_steps(model, signature))


def _told(text: str, causes: list[str]) -> str:
    return f"{text} ({'; '.join(causes[:_MOST_CAUSES])})" if causes else text


def _fixed_output(found: Difference, graph: onnx.GraphProto, signature: Signature) -> str:
    """The output or state output whose declared batch axis is a number, if the run failed and there is one."""
    if not found.error:
        return ""
    lead = 1 if signature.layout == "time_batch" else 0
    axes = {tensor.name: lead for tensor in signature.outputs}
    axes |= {state.output: state.batch_axis for state in signature.states}
    for value in graph.output:
        dims = value.type.tensor_type.shape.dim
        axis = axes.get(value.name)
        if axis is not None and axis < len(dims) and dims[axis].HasField("dim_value"):
            return f"output {value.name!r} has {dims[axis].dim_value} rows whatever the batch is"
    return ""
