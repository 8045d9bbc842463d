"""`streamcell serve`: run the server until SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import typer

from .serve_flags import with_flags
from .server_settings import end_with_loads, read_settings


def _run(config: Path | None, flags: dict[str, Any]) -> int:
    from streamcell.service.gc_tuning import spare_imports, tune_gc

    spare_imports()
    from streamcell.service.transport.grpc_polling import read_on_serving_thread

    read_on_serving_thread()  # before grpcio is imported
    from streamcell.service import DeviceError, ModelLoadError, configure_logs, make_server
    from streamcell.service.denormals import flush_denormals
    from streamcell.service.signals import Signals
    from streamcell.service.transport.lane_choice import LaneError

    settings = read_settings("serve", config, flags)
    configure_logs(settings.log_level, settings.log_format)
    flush_denormals()  # before any thread starts
    signals = Signals(settings.settling_s + settings.grace_s + settings.stop_s)
    try:
        signals.server = server = make_server(settings)
        # As the signal does: its thread ends the wait below, and bounds the time to stop.
        server.on_drain = lambda: os.kill(os.getpid(), signal.SIGTERM)
        tune_gc()
        server.start()
    except (DeviceError, LaneError, ModelLoadError, OSError) as error:
        typer.echo(f"streamcell serve: {error}", err=True)
        if not settings.frontends:  # else models are loaded in another process
            end_with_loads(1)
        return 1
    signals.wait()
    server.stop()
    signals.done()
    return 0


command = with_flags(lambda config, flags: sys.exit(_run(config, flags)))
