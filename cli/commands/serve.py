"""`streamcell serve`: run the server until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .serve_flags import with_flags

if TYPE_CHECKING:
    from streamcell.service import Settings as ServerSettings


def _run(config: Path | None, flags: dict[str, Any]) -> int:
    from pydantic import ValidationError

    from streamcell.service.transport.grpc_polling import read_on_serving_thread

    read_on_serving_thread()  # before grpcio is imported
    from streamcell.service import DeviceError, ModelLoadError, Settings, configure_logs, make_server
    from streamcell.service.gc_tuning import tune_gc
    from streamcell.service.signals import Signals
    from streamcell.service.transport.lane_choice import LaneError

    try:
        settings = Settings.load(config, **flags)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "settings"
            typer.echo(f"streamcell serve: {name}: {problem['msg']}", err=True)
        return 2
    except (FileNotFoundError, ValueError) as error:  # ValueError: the TOML does not parse
        typer.echo(f"streamcell serve: {error}", err=True)
        return 2
    configure_logs(settings.log_level, settings.log_format)
    signals = Signals(settings.grace_s + settings.stop_s)
    try:
        signals.server = server = make_server(settings)
        tune_gc()
        server.start()
    except (DeviceError, LaneError, ModelLoadError, OSError) as error:
        typer.echo(f"streamcell serve: {error}", err=True)
        _end_with_loads(settings)
        return 1
    signals.wait()
    server.stop()
    signals.done()
    return 0


def _end_with_loads(settings: ServerSettings) -> None:
    """End the process if a load that was given up still runs: the interpreter would wait for it."""
    if settings.frontends:  # models are loaded in another process
        return
    from streamcell.service.lifecycle.load_thread import abandoned

    if abandoned():
        sys.stderr.flush()
        os._exit(1)


command = with_flags(lambda config, flags: sys.exit(_run(config, flags)))
