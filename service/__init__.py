"""The server. `make_server(Settings.load(...))` loads and binds, `start` serves, `stop` drains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamcell.card.telemetry  # noqa: F401  # before ONNX Runtime is imported
from streamcell.service.logs import native_output  # noqa: F401  # before grpcio is imported
from streamcell.service.transport import grpc_polling as polling  # noqa: F401  # before grpcio is imported

if TYPE_CHECKING:
    from streamcell.service.engine.device import DeviceError
    from streamcell.service.logs.configure import configure as configure_logs
    from streamcell.service.transport.lane_choice import LaneError

    from .load_errors import ModelLoadError
    from .server import Server
    from .serving import make_server
    from .settings import Settings

__all__ = [
    "DeviceError",
    "LaneError",
    "ModelLoadError",
    "Server",
    "Settings",
    "configure_logs",
    "make_server",
]

# Imported when asked for, so that a process that runs no models need not load what runs them.
_PLACES = {
    "DeviceError": ("engine.device", "DeviceError"),
    "LaneError": ("transport.lane_choice", "LaneError"),
    "ModelLoadError": ("load_errors", "ModelLoadError"),
    "Server": ("server", "Server"),
    "Settings": ("settings", "Settings"),
    "configure_logs": ("logs.configure", "configure"),
    "make_server": ("serving", "make_server"),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f".{module}", __name__), attribute)
