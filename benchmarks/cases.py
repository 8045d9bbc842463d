"""The cases of `make bench` that are measured on the wire, and the servers that take them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from streamcell.benchmarks.load.spec import Load

OURS, AIO, LANE, ENGINE, OIP = "streamcell", "aio_echo", "lane_echo", "engine", "streamcell_oip"
FRONTENDS = "streamcell_frontends"
_ALL = (OURS, AIO, LANE, ENGINE)


@dataclass(frozen=True)
class Target:
    """A target of loads.

    Attributes:
        name: what results call it.
        address: "HOST:PORT".
        pids: its processes, whose CPU time is measured; empty if they are not on this machine.
        batches: reads (rows, runs) of its batches so far.
        load: settings that replace those of the case, such as dialect="oip" and the model's tensors.
        run: takes a load instead of the load generator, for a target that is not a server.
    """

    name: str
    address: str = ""
    pids: tuple[int, ...] = ()
    batches: Callable[[], tuple[float, float]] | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    run: Callable[[Load], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Case:
    """One line of the table: differences from a `Load`'s defaults, and the targets that it runs on, if they run.

    `open_to_peers`: other servers with sessions run it too, for it has one step a message and waits for each answer.
    """

    name: str
    load: Mapping[str, Any]
    targets: tuple[str, ...] = _ALL
    open_to_peers: bool = False


def cases(sessions: Iterable[int] = (1, 8, 64, 256, 1024)) -> list[Case]:
    """The cases of `make bench` on the wire."""
    found = [Case(f"ping-pong {n}", {"sessions": n}, (*_ALL, OIP), open_to_peers=True) for n in sessions]
    found += [Case(f"pipelined {n}", {"sessions": n, "outstanding": 16}) for n in (1, 8, 64)]
    found += [Case(f"chunks {n}", {"sessions": n, "steps": 16}) for n in (1, 64)]
    found += [Case(f"predict {n}", {"sessions": n, "dialect": "predict", "model": "mlp"}) for n in (1, 64)]
    found += [
        Case("open-loop 64", {"sessions": 64, "rate": 2000.0}, (OURS, AIO, LANE, OIP), open_to_peers=True)
    ]
    found.append(Case("sessions of one 64", {"sessions": 64, "messages": 1}, (OURS, AIO, LANE, OIP)))
    # The kernel distributes connections, not streams, over front ends.
    found += [
        Case(f"spread {n}", {"sessions": n, "connections": 8}, (OURS, FRONTENDS)) for n in (64, 256, 1024)
    ]
    frames = (OURS, ENGINE)
    found += [Case(f"frames {n}", {"sessions": n, "dialect": "frames"}, frames) for n in (64, 1024)]
    found += [Case("frames×2 1024", {"sessions": 1024, "dialect": "frames", "outstanding": 2}, frames)]
    return found


def load_for(case: Case, target: Target, **more: Any) -> Load:
    """The load of `case` as `target` takes it."""
    load = replace(Load(target.address, pids=target.pids), **{**case.load, **more, **target.load})
    if target.name in (AIO, LANE):
        load = replace(load, dialect="echo-unary" if load.dialect == "predict" else "echo")
    return load


def targets_of(case: Case, targets: Mapping[str, Target], peers: Iterable[str] = ()) -> list[Target]:
    """The targets that `case` runs on, in the case's order, peers last."""
    names = (*case.targets, *(peers if case.open_to_peers else ()))
    return [targets[name] for name in names if name in targets]
