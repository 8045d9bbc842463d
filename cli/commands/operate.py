"""Commands for a running server: list models and sessions, close, load, unload, drain."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from .connection import LOCAL, BearerFile, Place, Target, Tls, TlsRoots
from .system_errors import cannot_open
from .terminal import as_line

if TYPE_CHECKING:
    from streamcell.client import Client, Replica, StreamCellError


_Argument, _Option = typer.Argument, typer.Option
_Json: TypeAlias = Annotated[bool, _Option("--json", help="Print JSON.")]
_Timeout: TypeAlias = Annotated[float, _Option(min=0.001, help="Seconds to wait for an answer.")]

# What to do about an error, by its reason or its gRPC code.
REMEDIES = {
    "UNAVAILABLE": "is a server running there? `streamcell serve` starts one, --target names another, --tls uses TLS",
    "DEADLINE_EXCEEDED": "the server takes longer than --timeout; it may still do what was asked",
    "UNAUTHENTICATED": "this server wants to know who asks: --bearer-file FILE",
    "PERMISSION_DENIED": "only the server's operators may do this: --bearer-file FILE with an operator's token",
    "UNIMPLEMENTED": "the server is of an older release, or is not StreamCell",
    "MODEL_NOT_FOUND": "`streamcell models` lists those that there are",
    "SESSION_NOT_FOUND": "`streamcell sessions` lists the live ones; one that can be resumed is closed with --ticket",
    "NO_STORE": "start all replicas with the same --store; `streamcell drain` without --fraction shuts this one down",
    "STILL_MOVING": "wait until those have gone, or ask for a fraction of 1",
    "DRAIN_OFF": "start the server with --remote-drain, or send its process SIGTERM",
    "MODEL_CONTROL_OFF": "start the server with --model-control explicit",
    "MODEL_LOAD_FAILED": "what was served before is still served; `streamcell inspect FILE` tells more",
    "MODEL_IN_USE": "`streamcell sessions` lists its sessions: close them first, or serve with --unload wait",
    "SERVER_DRAINING": "the server is shutting down",
}


@dataclass(frozen=True)
class _Asked:
    """The options of all these commands: which server to call, and whether to print JSON."""

    command: str
    place: Place
    as_json: bool

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client; an error ends the command with a line that names the remedy, and exit code 1."""
        from streamcell.client import StreamCellError

        target = self.place.target
        try:
            with self.place.connect() as client:
                yield client
        except StreamCellError as error:
            typer.echo(f"streamcell {self.command}: {_told(error, target)}", err=True)
            raise typer.Exit(1) from None
        except BrokenPipeError:  # the program that reads our output has closed it: Typer ends quietly
            raise
        except OSError as error:
            typer.echo(f"streamcell {self.command}: {cannot_open(error, target)}", err=True)
            raise typer.Exit(2) from None


def _asks(timeout_s: float = 10.0) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of `run(asked, …)`: behind its own arguments it has the options that make an `_Asked`."""

    def made(run: Callable[..., None]) -> Callable[..., None]:
        def command(
            target: Target = LOCAL,
            as_json: _Json = False,
            timeout: _Timeout = timeout_s,
            tls: Tls = False,
            tls_roots: TlsRoots = None,
            bearer_file: BearerFile = None,
            **own: Any,
        ) -> None:
            place = Place(target, timeout, tls, tls_roots, bearer_file)
            run(_Asked(run.__name__, place, as_json), **own)

        _, *own = inspect.signature(run, eval_str=True).parameters.values()
        *shared, _ = inspect.signature(command, eval_str=True).parameters.values()
        # Typer makes the command line of it.
        command.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = run.__name__, run.__doc__
        return command

    return made


def _told(error: StreamCellError, target: str) -> str:
    remedy = REMEDIES.get(error.reason) or REMEDIES.get(error.code.name)
    text = as_line(error)
    told = f"{text if text.startswith(target) else f'{target}: {text}'} [{error.reason}]"
    return f"{told}\n  {remedy}" if remedy else told


@_asks()
def status(asked: _Asked) -> None:
    """Say whether the server takes sessions, and how many are live on each model. Exit code 3: it takes none."""
    with asked.client() as client:
        ready = client.ready()
        models, replica = client.models(), client.replica()
        live = Counter((each.model, each.version, each.state) for each in client.sessions())
        found: list[dict[str, Any]] = [
            {
                "name": each.name,
                "version": each.version,
                "kind": each.kind,
                "sessions": {
                    state: count
                    for (name, version, state), count in sorted(live.items())
                    if (name, version) == (each.name, each.version)
                },
                "max_sessions": each.max_sessions,
                "restrictions": list(each.restrictions),
            }
            for each in models
        ]
        if asked.as_json:
            told = {
                "target": asked.place.target, "ready": ready, "replica": asdict(replica), "models": found,
            }  # fmt: skip
            typer.echo(json.dumps(told, indent=2))
        else:
            typer.echo(f"{asked.place.target}: {'ready' if ready else 'not ready: it takes no new sessions'}")
            typer.echo(_described(replica))
            rows = [
                (
                    each["name"],
                    each["version"],
                    each["kind"],
                    ", ".join(f"{count} {state}" for state, count in each["sessions"].items()) or "none",
                    "; ".join(each["restrictions"]),
                )
                for each in found
            ]
            _print(("model", "version", "kind", "sessions", "restricted to"), rows)
        if not ready:
            raise typer.Exit(3)


@_asks()
def models(asked: _Asked) -> None:
    """List every version of every model that is served or in the server's folder, and why it is not served."""
    with asked.client() as client:
        found = client.repository()
    if asked.as_json:
        typer.echo(json.dumps([asdict(each) for each in found], indent=2))
    else:
        rows = [(each.name, each.version, each.state or "not loaded", each.reason) for each in found]
        _print(("model", "version", "state", "reason"), rows)


@_asks()
def sessions(
    asked: _Asked,
    model: Annotated[str, _Argument(help="Only the sessions on this model.", show_default=False)] = "",
) -> None:
    """List the live sessions, oldest first. With --json, one object a line."""
    with asked.client() as client:
        if asked.as_json:
            for each in client.sessions(model):
                typer.echo(json.dumps(asdict(each)))
            return
        rows = [
            (
                each.id,
                each.model,
                each.version,
                each.state,
                each.step_index,
                each.queued_messages,
                f"{each.age_s:.0f}",
                f"{each.idle_s:.0f}",
                each.peer,
            )
            for each in client.sessions(model)
        ]
    _print(("session", "model", "version", "state", "steps", "queued", "age s", "idle s", "peer"), rows)


@_asks()
def close(
    asked: _Asked,
    session: Annotated[str, _Argument(help="Id of the session, as `streamcell sessions` lists it.")],
    ticket: Annotated[
        Path | None, _Option(help="File with the ticket of a session that can be resumed, as JSON.")
    ] = None,
) -> None:
    """End a session of any client; its state is gone."""
    from streamcell.client import Ticket

    with asked.client() as client:
        try:
            held = Ticket.from_json(ticket.read_text()) if ticket is not None else None
        except (ValueError, TypeError):
            typer.echo(
                f"streamcell close: {ticket}: it is no ticket: expected the JSON of Ticket.to_json", err=True
            )
            raise typer.Exit(2) from None
        steps = client.close_session(session, held)
    _done(asked, {"session": session, "steps": steps}, f"closed {session} after {steps} timesteps")


@_asks(timeout_s=300.0)
def load(
    asked: _Asked,
    model: Annotated[str, _Argument(help="Name of the model.")],
) -> None:
    """Load what the server's folder now has of a model; new sessions get it once the command has ended."""
    with asked.client() as client:
        client.load_model(model)
        served = [each.version for each in client.repository() if (each.name, each.state) == (model, "READY")]
    _done(asked, {"model": model, "versions": served}, f"serving {model} {', '.join(served)}")


@_asks(timeout_s=300.0)
def unload(
    asked: _Asked,
    model: Annotated[str, _Argument(help="Name of the model.")],
) -> None:
    """Stop serving a model. The command ends once its last session has, and its memory is free."""
    with asked.client() as client:
        client.unload_model(model)
    _done(asked, {"model": model}, f"unloaded {model}")


@_asks()
def drain(
    asked: _Asked,
    fraction: Annotated[
        float | None,
        _Option(
            help="Go on, but move this part of the sessions in the shared store to other replicas.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Shut the server down as SIGTERM does: no new sessions, a grace period for the live ones, then the end."""
    with asked.client() as client:
        if fraction is not None:
            count = client.drain_replica(fraction)
            text = f"moving {count} session{'' if count == 1 else 's'} to other replicas"
            _done(asked, {"fraction": fraction, "sessions": count}, text)
            return
        live, grace_s = client.drain()
    text = f"draining: {live} sessions are live and have {grace_s:g} s to end"
    _done(asked, {"live_sessions": live, "grace_s": grace_s}, text)


def _described(replica: Replica) -> str:
    """A line about one of several servers: what it is called, where it is, and its shared store."""
    reached = f" at {replica.address}" if replica.address else ""
    lease = f"lease valid for {replica.lease_s:.1f} s" if replica.lease_s else "lease lost"
    store = f"store {replica.store}, {lease}" if replica.store else "no store"
    return as_line(f"replica {replica.name or 'without a name'}{reached}, {store}")


def _done(asked: _Asked, facts: Mapping[str, Any], text: str) -> None:
    typer.echo(json.dumps(facts) if asked.as_json else as_line(text))


def _print(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns, padded; a column without a value in any row is left out."""
    lines = [[*head], *([as_line(cell) for cell in row] for row in rows)]
    used = [at for at in range(len(head)) if not rows or any(line[at] for line in lines[1:])]
    widths = {at: max(len(line[at]) for line in lines) for at in used}
    for line in lines:
        typer.echo("  ".join(line[at].ljust(widths[at]) for at in used).rstrip())
