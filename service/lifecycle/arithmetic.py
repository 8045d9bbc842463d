"""Chooses what a model that its file stores in int8 multiplies in: int8 or float32, one of them for all of its runs.

A session's answers must not depend on the runs it shares or on how its messages are joined. So the choice is made once,
as a model is loaded, and never for each size of run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import onnx
from structlog.typing import FilteringBoundLogger

from streamcell.card.graphs.int8_weights import stored_weights
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.engine.options import Arithmetic
from streamcell.service.engine.warm_up import FASTER, timed
from streamcell.service.errors import RunTimeout, node_error_text
from streamcell.service.settings import Settings

# To measure one size of batch. The shortest of a form's runs counts: on a busy machine most of them wait for a core.
_BUDGET_S = 0.1
# Beyond this size of batch a run takes so long that a load would, too.
_MOST_ROWS = 64
NONE_IN_INT8 = "none of its products can be in int8"


@dataclass(frozen=True)
class Choice:
    """What a model multiplies in.

    Attributes:
        arithmetic: for all of its runs.
        why: in words; "" if its file stores no weight in int8.
    """

    arithmetic: Arithmetic = "float32"
    why: str = ""

    def __str__(self) -> str:
        return f"{self.arithmetic}: {self.why}" if self.why else self.arithmetic


def choose(
    make: Callable[[EngineOptions], Engine],
    options: EngineOptions,
    model: onnx.ModelProto,
    settings: Settings,
    log: FilteringBoundLogger,
) -> Choice:
    """Measure single steps in both, if the settings leave it open.

    Args:
        make: an engine of the model with these options.
        options: what the settings give.
        model: as it is in the file.
        settings: whether to measure.
        log: bound to the model.
    """
    if not stored_weights(model.graph):
        return Choice()
    if options.device.kind != "cpu":
        return Choice("float32", f"on {options.device}")
    if settings.arithmetic != "auto":
        return Choice(settings.arithmetic, "as --arithmetic says")
    least = for_trial(options)
    try:
        in_int8 = make(replace(least, arithmetic="int8"))
        if in_int8.arithmetic != "int8":
            return Choice("float32", NONE_IN_INT8)
        in_int8.warm_up()
    except RunTimeout:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class
        log.warning("not in int8", error=node_error_text(error))
        return Choice("float32", "in int8 it fails")
    in_float32 = make(least)
    in_float32.warm_up()
    faster = {rows: _faster(in_float32, in_int8, rows) for rows in _sizes(in_int8)}
    mean = prod(faster.values()) ** (1 / len(faster))
    told = ", ".join(f"{factor:.2f} times as fast with {_sessions(rows)}" for rows, factor in faster.items())
    return Choice("int8" if mean * FASTER > 1 else "float32", f"int8 is {told}")


def for_trial(options: EngineOptions) -> EngineOptions:
    """Options of an engine that only scratch rows are run on: with the smallest pool, which is in no file."""
    return replace(options, max_sessions=1, make_journal=None)


def _sizes(engine: Engine) -> list[int]:
    if engine.fixed_batch:
        return [engine.fixed_batch]
    return sorted({1, min(8, engine.max_batch), min(_MOST_ROWS, engine.max_batch)})


def _sessions(rows: int) -> str:
    return "1 session" if rows == 1 else f"{rows} sessions"


def _faster(base: Engine, other: Engine, rows: int) -> float:
    """How many times as fast `other` runs one timestep of `rows` sessions."""
    runs = []
    for engine in (base, other):
        staged = engine.stage(rows, 1)
        engine.pad(staged, 0)
        runs.append(staged.go)
    before_s, after_s = map(min, timed(runs, _BUDGET_S))
    return before_s / after_s
