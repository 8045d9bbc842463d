"""One process or several: the choice is the settings', and what serves looks the same."""

from __future__ import annotations

from typing import Protocol

from streamcell.service.transport.os_limits import check_descriptors
from streamcell.service.transport.tls import read_pair

from .settings import Settings


class Serving(Protocol):
    """A server: made, it has its models and its port; started, it answers; stopped, it is gone."""

    port: int
    metrics_port: int

    def start(self) -> None:
        """Answer calls and report ready."""

    def kill(self) -> None:
        """End its other processes at once."""

    def reload(self) -> None:
        """Read its certificates anew, for connections that come."""

    def stop(self) -> None:
        """Drain, and shut down; returns once everything has stopped."""


def make_server(settings: Settings) -> Serving:
    """The server that `settings` ask for.

    Raises:
        ModelLoadError: there is no model, or one cannot be served; the text says which and why.
        DeviceError: the device cannot be had.
        LaneError: the fast lane was asked for and does not work with this grpcio.
        OSError: a port cannot be bound, the certificate cannot be used, or descriptors are too few.
    """
    check_descriptors(settings)
    if settings.tls_cert is not None and settings.tls_key is not None:
        read_pair(settings.tls_cert, settings.tls_key)
    if settings.frontends:
        from streamcell.service.processes.supervisor import Supervisor

        return Supervisor(settings)
    from .server import Server

    return Server(settings)
