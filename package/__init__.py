"""StreamCell: serves models that have memory, as live sessions over gRPC.

    with streamcell.local("models") as client, client.session("chorales") as session:
        y = session.step(x)

The parts are sub-packages (`streamcell.client`, `streamcell.service`, …) in folders of their own beside this one; none
of them needs this file, so a folder of links to them without it is a working `streamcell` as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from streamcell.client.local import LocalClient, LocalStart, Recipe

__version__: str

__all__ = ["__version__", "local", "local_async"]


def local(
    models: str | Path | nn.Module,
    example_x: Any = None,
    *,
    name: str = "",
    export: Mapping[str, Any] | None = None,
    connect: Mapping[str, Any] | None = None,
    **settings: Any,
) -> LocalClient:
    """Start a server in a child process and return its client, which stops it when it is left or closed.

    The server takes free ports of 127.0.0.1 and ends with this process, even if that is killed.

    Args:
        models: a folder of models; or a PyTorch module, which is exported, proved against PyTorch and served.
        example_x: for a module of your own, what goes in: a tensor [batch, time, *step], a dict of them by parameter,
            or texts such as "x:float32[3]" and "tokens:int64". A model of `streamcell.models` needs none.
        name: the module's name as a model; if not given, its class's.
        export: further arguments of `export_module` or `export_model`, such as ``{"precision": "int8"}``.
        connect: arguments of `streamcell.client.connect`, such as ``{"timeout_s": 5}``.
        settings: settings of `streamcell serve`, such as ``max_sessions=8`` or ``non_finite="allow"``.

    Raises:
        FileNotFoundError: there is no such folder.
        ExportError: the module cannot be exported, or its export computes something else than the module.
        ServerProcessError: the server did not start; the text says why.
    """
    from streamcell.client.local import LocalClient

    return LocalClient(_recipe(models, example_x, name, export, connect, settings))


def local_async(
    models: str | Path | nn.Module,
    example_x: Any = None,
    *,
    name: str = "",
    export: Mapping[str, Any] | None = None,
    connect: Mapping[str, Any] | None = None,
    **settings: Any,
) -> LocalStart:
    """The same for asyncio: ``async with streamcell.local_async("models") as client``."""
    from streamcell.client.local import LocalStart

    return LocalStart(_recipe(models, example_x, name, export, connect, settings))


def _recipe(
    models: Any,
    example_x: Any,
    name: str,
    export: Mapping[str, Any] | None,
    connect: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> Recipe:
    from streamcell.client import Options
    from streamcell.client.local import Recipe

    what: Path | Callable[[Path], object]
    if isinstance(models, (str, Path)):
        if example_x is not None or name or export:
            raise TypeError(
                "example_x, name and export are for a module; a folder's models have been exported"
            )
        what = Path(models)
    else:
        what = _writer(models, example_x, name or type(models).__name__, export or {})
    return Recipe(what, settings, Options(**(connect or {})))


def _writer(module: Any, example_x: Any, name: str, export: Mapping[str, Any]) -> Callable[[Path], object]:
    """Writes `module` into a folder."""
    from torch import nn

    from streamcell.export import (
        InputSpec,
        SpecError,
        examples_from,
        export_model,
        export_module,
        forward_takes,
    )
    from streamcell.models import SequenceModel

    if not isinstance(module, nn.Module):
        raise TypeError(f"expected a folder of models or a torch module, got {type(module).__name__}")
    if isinstance(module, SequenceModel):
        return lambda folder: export_model(module, folder / f"{name}.onnx", **export)
    if example_x is None:
        takes = next(iter(forward_takes(module)), "x")
        raise SpecError(
            f'say what goes into {type(module).__name__}, with the sizes of one timestep: "{takes}:float32[3]", or '
            f'"{takes}:int64" for tokens; or give an example, a tensor [batch, time, ...]'
        )
    if isinstance(example_x, str):
        example_x = [example_x]
    if isinstance(example_x, Sequence):
        specs = [InputSpec.parse(text) for text in example_x]
        example_x = examples_from(module, specs, 1 if export.get("time_axis") is False else 2)
    return lambda folder: export_module(module, folder / f"{name}.onnx", example_x=example_x, **export)


if not TYPE_CHECKING:  # to a type checker, a module with this function has every name

    def __getattr__(name):
        """Look up the version when it is asked for: importing a part reads no package metadata."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("streamcell")
