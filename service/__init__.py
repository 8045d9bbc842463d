"""The server. `Server(Settings.load(...))` loads and binds, `start` serves, `stop` drains."""

import streamcell.card.telemetry  # noqa: F401  # before ONNX Runtime is imported

from . import polling  # noqa: F401  # before grpcio is imported
from .device import DeviceError
from .lane_choice import LaneError
from .load_errors import ModelLoadError
from .logs import configure as configure_logs
from .server import Server
from .settings import Settings

__all__ = ["DeviceError", "LaneError", "ModelLoadError", "Server", "Settings", "configure_logs"]
