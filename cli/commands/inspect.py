"""`streamcell inspect`: shows how the server would serve one model file, and drafts a sidecar."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from .server_settings import end_with_loads, read_settings

if TYPE_CHECKING:
    from streamcell.card import Tensor
    from streamcell.service.graph.interface import GraphValue
    from streamcell.service.lifecycle.inspection import Inspection

_WHY = {
    "graph": "by their names in the graph",
    "card": "by the card in the file",
    "sidecar": "by the sidecar",
}


def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.onnx", help="The model, or the TOML file of a pipeline.")
    ],
    write: Annotated[
        bool,
        typer.Option("--write", help="Write the sidecar beside it: what is known, and ? for what is not."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    proof: Annotated[
        Literal["off", "quick", "full"],
        typer.Option(help="How thoroughly to prove the model: off, quick or full."),
    ] = "full",
) -> None:
    """Load a model like the server does; print inputs, outputs, states with their source, and problems.

    Settings come from STREAMCELL_* variables and the configuration file, as the server's do. Exit codes: 0 if the
    model can be served, restricted or not; 1 if it cannot; 2 if the command is wrong or nothing could be written.
    """
    from streamcell.service import DeviceError, configure_logs

    settings = read_settings("inspect", None, {"models": file.parent, "proof": proof, "log_level": "error"})
    configure_logs(settings.log_level, settings.log_format)
    from streamcell.service.lifecycle.inspection import inspect_model
    from streamcell.service.load_errors import printable

    if not file.is_file():
        what = (
            "it is a folder: name a file in it"
            if file.is_dir()
            else "no such file: name an .onnx file or a pipeline's .toml"
        )
        _fail(f"{file}: {what}")
    try:
        found = inspect_model(file, settings)
    except DeviceError as error:
        _fail(error)
    if as_json:
        typer.echo(json.dumps(_finite(_as_json(found)), indent=2))
    else:
        typer.echo(printable("\n".join(_lines(found))))
    code = 1 if found.problems else 0
    if write:
        _write(found)
    elif not as_json and found.problems and not found.sidecar.exists() and found.sidecar_text():
        typer.echo(f"--write drafts a sidecar: {found.sidecar}")
    _end(code)


def _fail(error: object) -> NoReturn:
    typer.echo(f"streamcell inspect: {error}", err=True)
    _end(2)


def _end(code: int) -> NoReturn:
    end_with_loads(code)
    sys.exit(code)


def _write(found: Inspection) -> None:
    text = found.sidecar_text()
    if text is None:
        _fail(f"{found.sidecar} was not written: the model cannot be read")
    try:
        with found.sidecar.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        _fail(f"{found.sidecar} exists already; move it away so that a new one can be written")
    except OSError as error:
        _fail(f"{found.sidecar}: {error.strerror}")
    typer.echo(f"wrote {found.sidecar}", err=True)


def _lines(found: Inspection) -> Iterator[str]:
    if found.problems:
        count = len(found.problems)
        yield f"{found.path}: cannot be served: {count} problem{'s' if count > 1 else ''}"
    else:
        yield f"{found.path}: can be served as {found.name!r}, version {found.version}"
    yield from _list("problems", found.problems)
    if found.interface is not None and found.description is None:
        yield "the graph has"
        yield str(found.interface)
    if found.likely_states:
        yield from _list(
            "likely states, by name or shape", [f"{i} → {o}" for i, o in found.likely_states.items()]
        )
    if found.description is not None:
        yield from _described(found)
    if found.proof:
        sessions = f"up to {found.max_batch} sessions" if found.max_batch > 1 else "one session"
        steps = f"up to {found.max_chunk} timesteps each" if found.max_chunk > 1 else "one timestep each"
        yield f"a run takes {sessions}, {steps}"
        yield from _list("restricted", found.restrictions)
        yield f"arithmetic: {found.arithmetic}"
        yield f"proof: {found.proof}"
    yield from _list("notes", found.notes)


def _described(found: Inspection) -> Iterator[str]:
    description = found.description
    assert description is not None
    signature = description.signature
    declared = {} if found.interface is None else {**found.interface.all_inputs, **found.interface.outputs}
    yield f"described by: the {description.source}; layout {signature.layout}"
    for title, tensors in (
        ("inputs, a timestep", signature.inputs),
        ("inputs, at the opening", signature.open_inputs),
        ("outputs, a timestep", signature.outputs),
    ):
        yield from _list(title, [_tensor(each, declared.get(each.name)) for each in tensors])
    if signature.lengths is not None:
        yield f"lengths: {signature.lengths}"
    yield from _list(
        "constants", [f"{name} = {value.tolist()}" for name, value in description.constants.items()]
    )
    if signature.states:
        yield from _list(
            f"states, {signature.session_bytes} bytes a session, {_WHY[description.source]}",
            description.states(most=len(signature.states)),
        )
    else:
        yield "states: none"


def _list(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = list(lines)
    if lines:
        yield title
        yield from ("  - " + line.rstrip().replace("\n", "\n    ") for line in lines)


def _tensor(tensor: Tensor, port: GraphValue | None) -> str:
    ranges = f", {tensor.index_ranges[0][0]} to {tensor.index_ranges[0][1]}" if tensor.index_ranges else ""
    declared = f" (in the graph {port})" if port is not None else ""
    return f"{tensor.name}: {tensor.dtype}{list(tensor.step_shape)}{ranges}{declared}"


def _as_json(found: Inspection) -> dict[str, Any]:
    interface, description = found.interface, found.description
    report: dict[str, Any] = {
        "file": str(found.path),
        "name": found.name,
        "version": found.version,
        "served": not found.problems,
        "problems": found.problems,
        "notes": found.notes,
        "graph": None,
        "likely_states": [{"input": i, "output": o} for i, o in found.likely_states.items()],
        "described_by": None,
        "signature": None,
        "session_bytes": None,
        "constants": {},
        "proof": found.proof or None,
        "arithmetic": found.arithmetic or None,
        "restrictions": found.restrictions,
        "max_batch": found.max_batch or None,
        "max_chunk": found.max_chunk or None,
    }
    if interface is not None:
        report["graph"] = {
            "inputs": [_port(each) for each in interface.all_inputs.values()],
            "outputs": [_port(each) for each in interface.outputs.values()],
        }
    if description is not None:
        report["described_by"] = description.source
        report["signature"] = description.signature.model_dump(mode="json")
        report["session_bytes"] = description.signature.session_bytes
        report["constants"] = {name: value.tolist() for name, value in description.constants.items()}
    return report


def _finite(value: Any) -> Any:
    """`value` with infinity and NaN as texts, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _port(port: GraphValue) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": port.dims}
