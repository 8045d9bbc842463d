"""Metrics of the WebSocket port, counted by its event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# Why a connection becomes no WebSocket: the page's site, no known subprotocol, the token, --max-websockets, or too many
# whose handshake is not over.
REASONS = ("origin", "subprotocol", "token", "limit", "handshakes")
_DIRECTIONS = ("received", "sent")


class WebSocketFigures(Collector):
    """Collects the `streamcell_websocket…` families; all are 0 if there is no such port."""

    def __init__(self) -> None:
        self._open = self._opened = 0
        self._refused: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def opened(self) -> None:
        """Count a WebSocket that begins."""
        self._open += 1
        self._opened += 1

    def ended(self) -> None:
        """Count one that has ended."""
        self._open -= 1

    def refused(self, reason: str) -> None:
        """Count a connection that becomes none, for one of `REASONS`."""
        self._refused[reason] += 1

    def received(self, frame: str | bytes) -> None:
        """Count a client's message."""
        self._count("received", frame)

    def sent(self, frame: str | bytes) -> None:
        """Count a message to a client."""
        self._count("sent", frame)

    def _count(self, direction: str, frame: str | bytes) -> None:
        self._messages[direction] += 1
        self._bytes[direction] += (
            len(frame) if isinstance(frame, bytes) or frame.isascii() else len(frame.encode())
        )

    def collect(self) -> Iterable[Metric]:
        """All families."""
        yield GaugeMetricFamily("streamcell_websockets", "Open WebSockets.", value=self._open)
        yield CounterMetricFamily("streamcell_websockets_opened", "WebSockets opened.", value=self._opened)
        refused = CounterMetricFamily(
            "streamcell_websockets_refused", "Connections that became no WebSocket.", labels=("reason",)
        )
        for reason in REASONS:
            refused.add_metric([reason], self._refused[reason])
        messages = CounterMetricFamily(
            "streamcell_websocket_messages", "Messages of WebSockets.", labels=("direction",)
        )
        sizes = CounterMetricFamily(
            "streamcell_websocket_bytes", "Bytes of these messages, without framing.", labels=("direction",)
        )
        for direction in _DIRECTIONS:
            messages.add_metric([direction], self._messages[direction])
            sizes.add_metric([direction], self._bytes[direction])
        yield from (refused, messages, sizes)
