"""The server. `make_server(Settings.load(...))` loads and binds, `start` serves, `stop` drains.

Importing this loads neither grpcio nor ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import streamcell.card.telemetry  # noqa: F401  # before ONNX Runtime is imported
from streamcell.service.logs import native_output  # noqa: F401  # before grpcio is imported

from .load_errors import DeviceError, ModelLoadError
from .logs.configure import configure as configure_logs
from .settings import Settings

__all__ = ["AnyServer", "DeviceError", "ModelLoadError", "Settings", "configure_logs", "make_server"]


class AnyServer(Protocol):
    """A server of one process or several. Making it loads the models and binds the ports."""

    port: int
    metrics_port: int
    # Called when a client asks the server to shut down; `stop` does it.
    on_drain: Callable[[], None]

    def start(self) -> None:
        """Answer calls and report ready."""

    def kill(self) -> None:
        """Kill its other processes at once."""

    def reload(self) -> None:
        """Reload its certificates; new connections use them."""

    def stop(self) -> None:
        """Drain, and shut down; returns once everything has stopped."""


def make_server(settings: Settings) -> AnyServer:
    """Make the server that `settings` ask for.

    A process that serves calls `transport.grpc_polling.read_on_serving_thread` before, as `streamcell serve` does.

    Raises:
        ModelLoadError: there is no model, or one cannot be served; the text says which and why.
        DeviceError: the device is not available.
        LaneError: the fast lane was asked for and does not work with this grpcio.
        OSError: a port cannot be bound, the certificate cannot be used, or descriptors are too few.
    """
    from .transport.os_limits import check_descriptors

    check_descriptors(settings)
    if settings.tls_cert is not None and settings.tls_key is not None:
        from .transport.tls import read_pair

        read_pair(settings.tls_cert, settings.tls_key)
    from .access.authenticator import warn_if_open

    warn_if_open(settings)
    if settings.frontends:
        from .processes.supervisor import Supervisor

        return Supervisor(settings)
    from .server import Server

    return Server(settings)
