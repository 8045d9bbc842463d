"""Makes the WebSocket port, if the settings ask for it; imports `websockets` only then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamcell.service.metrics.websocket_metrics import WebSocketFigures
from streamcell.service.settings import Settings

if TYPE_CHECKING:
    from .port import WebSocketPort


def websocket_port(settings: Settings, figures: WebSocketFigures) -> WebSocketPort | None:
    """The port, before it listens; None if the settings name none. `figures`: where it counts.

    Raises:
        ModuleNotFoundError: `websockets` is not installed; the extra `websocket` brings it.
        OSError: the port cannot be bound, or the certificate cannot be used.
    """
    if settings.websocket_port is None:
        return None
    from .port import WebSocketPort

    return WebSocketPort(settings, figures)
