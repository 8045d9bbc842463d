"""The server's goals; each compares a figure of the run with a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from streamcell.benchmarks.cases import AIO, ENGINE, OIP, OURS

from .outcomes import Results

_CPU = "server_cpu_us_per_step"


@dataclass(frozen=True)
class Found:
    """The figures that goals use.

    Attributes:
        results: the loads'.
        idle: those of `at_rest.measure` with `ready_s`, if measured.
        tenants: those of `tenants.measure`, if measured.
    """

    results: Results
    idle: Mapping[str, Any]
    tenants: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals.

    Attributes:
        what: in words.
        figure: from what was found to the figure; None if it was not measured.
        bound: the maximum, or the minimum if `at_least`.
        unit: behind the figure.
        case: the case whose profile shows why the goal is missed, if any.
        why: what was found to stand in the way where the goal is missed, as sentences for the page.
    """

    what: str
    figure: Callable[[Found], float | None]
    bound: float
    at_least: bool = False
    unit: str = "×"
    case: str = ""
    why: str = ""

    def met(self, value: float) -> bool:
        """Whether `value` reaches the goal."""
        return value >= self.bound if self.at_least else value <= self.bound


def _worst(values: list[float | None], pick: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if len(known) == len(values) else None


def _ratio(case: str, figure: str, to: str) -> Callable[[Found], float | None]:
    return lambda found: found.results.ratio(case, figure, to)


def _across(case: str, base: str) -> Callable[[Found], float | None]:
    return lambda found: found.results.across("steps_per_s", case, base)


def _idle(name: str, scale: float = 1.0) -> Callable[[Found], float | None]:
    return lambda found: found.idle[name] * scale if name in found.idle else None


def _flooded(ratio: str, server: str = "tenants") -> Callable[[Found], float | None]:
    return lambda found: float(found.tenants[server][ratio]) if server in found.tenants else None


def _many(found: Found) -> float | None:
    across = [found.results.across("steps_per_s", f"ping-pong {n}", "ping-pong 64") for n in (256, 1024)]
    return _worst(across, min)


def _tails(found: Found) -> float | None:
    return _worst([found.results.within(f"ping-pong {n}", "p99_ms", "p50_ms") for n in (256, 1024)], max)


def _short(found: Found) -> float | None:
    return found.results.median("sessions of one 64", OURS, _CPU)


def _short_oip(found: Found) -> float | None:
    return found.results.median("sessions of one 64", OIP, _CPU)


_LOCK = (
    "Two threads share the interpreter's lock. Of the samples that hold it at 256 sessions (py-spy), the engine "
    "thread has 71 %: 17 hand out replies, 19 do the rest of completing the batch (metrics, counts, the socket's "
    "segment), 15 form it, 8 stage its rows. The serving thread has 29 %. grpcio's core and the kernel take as "
    "much again: each reply is one operation of the core, which cannot send several replies in one operation."
)
_MANY_WHY = (
    "A message needs the same Python calls in a batch of any size. So larger batches save only the model's part, "
    "which is already the smallest at 64. More streams use more memory than the processor's caches hold: from 64 "
    "to 256 and from 256 to 1,024 sessions the CPU a step also rises for the lane echo, which runs no model."
)
_PIPELINED_WHY = (
    "64 sessions in ping-pong already fill the batches, so waiting messages save no runs. The transport's and the "
    "interpreter's time a message limits both cases (the lane echo gains as little)."
)
_FRAME_WHY = (
    "The engine is idle while the client has the only frame: no run overlaps with packing, sending and parsing. "
    "With two frames in flight runs overlap with them, and the server meets the goal above."
)
_FRAMES_WHY = (
    "Frames already reach most of the engine's own speed. If ping-pong reaches more than a tenth of that speed, "
    "this model cannot run eight times as fast as ping-pong on this processor."
)
_SHORT_WHY = (
    "Each session of the native protocol is a separate HTTP/2 call. grpcio's core needs five operations to begin "
    "it, send its headers and status, and end it; a request of a unary sequence needs two. On the same machine at "
    "its usual speed a session takes 97 to 132 µs."
)

_FLOOD_WHY = (
    "The flood's client and the flooded server take the machine's cores: a large part of the difference is there as "
    "well if the flood goes to another server. In the flooded server the calm tenant's message waits for one turn of "
    "the flood's messages and for the running batch with its replies. Both hold the interpreter's lock."
)

_APART_WHY = (
    "No client takes the server's core. The calm tenant's message waits for one turn of the flood's messages and for "
    "the running batch with its replies. `max_batch_steps` of the flood bounds both (docs/security.md)."
)

GOALS = (
    Goal("ping-pong, 64 sessions: server CPU a step, over the grpc.aio echo's",
         _ratio("ping-pong 64", _CPU, AIO), 0.75, case="ping-pong 64"),
    Goal("ping-pong, 256 sessions: server CPU a step, over the grpc.aio echo's",
         _ratio("ping-pong 256", _CPU, AIO), 0.70, case="ping-pong 256", why=_LOCK),
    Goal("one session alone: p50, model included, over the grpc.aio echo's",
         _ratio("ping-pong 1", "p50_ms", AIO), 1.0, case="ping-pong 1"),
    Goal("Predict on the MLP, 64 callers: server CPU a call, over a grpc.aio unary echo's",
         _ratio("predict 64", _CPU, AIO), 0.45, case="predict 64"),
    Goal("256 and 1,024 sessions: steps/s over those of 64, the worse", _many, 1.0, True, case="ping-pong 1024",
         why=_MANY_WHY),
    Goal("256 and 1,024 sessions: p99 over p50, the worse", _tails, 3.0, case="ping-pong 1024"),
    Goal("pipelined, 16 outstanding, 1 session: steps/s over ping-pong's",
         _across("pipelined 1", "ping-pong 1"), 2.0, True, case="pipelined 1"),
    Goal("pipelined, 16 outstanding, 64 sessions: steps/s over ping-pong's",
         _across("pipelined 64", "ping-pong 64"), 2.0, True, case="pipelined 64", why=_PIPELINED_WHY),
    Goal("frames of 1,024 sessions, two on their way: steps/s over the engine's alone",
         _ratio("frames×2 1024", "steps_per_s", ENGINE), 0.8, True, case="frames×2 1024"),
    Goal("frames of 1,024 sessions, one at a time: steps/s over the engine's alone",
         _ratio("frames 1024", "steps_per_s", ENGINE), 0.8, True, case="frames 1024", why=_FRAME_WHY),
    Goal("frames of 1,024 sessions, one at a time: steps/s over ping-pong's",
         _across("frames 1024", "ping-pong 1024"), 8.0, True, case="frames 1024", why=_FRAMES_WHY),
    Goal("64 clients that open a session, send one step and end it: server CPU a session",
         _short, 150.0, unit=" µs", case="sessions of one 64", why=_SHORT_WHY),
    Goal("64 clients that start and end a sequence in one request: server CPU a sequence",
         _short_oip, 150.0, unit=" µs", case="sessions of one 64"),
    Goal("10,000 sessions at rest: server memory each beyond their state", _idle("bytes_each", 1 / 1024), 40.0,
         unit=" KiB"),
    Goal("10,000 sessions at rest: CPU a step of 64 active ones, over the same alone", _idle("active_cpu_ratio"), 1.1),
    Goal("state of a session in memory, over what its card says", _idle("state_over_card"), 1.0),
    Goal("another tenant's flood of 256 sessions, 16 messages ahead each: a calm tenant's p99, over its quiet one",
         _flooded("p99_ratio"), 2.0, why=_FLOOD_WHY),
    Goal("the same, over its p99 beside that flood on another server of this machine",
         _flooded("p99_over_elsewhere"), 2.0, why=_FLOOD_WHY),
    Goal("the same, over its quiet p99, with the server on a core of its own",
         _flooded("p99_ratio", "tenants, the server on a core of its own"), 2.0, why=_APART_WHY),
    Goal("from the start of the process to ready", _idle("ready_s"), 2.0, unit=" s"),
    Goal("an idle server's CPU", _idle("idle_cores", 100.0), 1.0, unit=" % of a core"),
)  # fmt: skip
