"""The way to a server: explains errors that gRPC, a proxy or the network made, and says what to do."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from .address import host_of

_Code = grpc.StatusCode
_PAGE = "docs/deploy.md, Behind a proxy"
_HTTP_STATUS = re.compile(r"http2 header with status: (\d+)")
_BY_HTTP_STATUS = {
    "403": "a proxy between refuses this client",
    "404": "no gRPC server answers at this path: the target may be a web server, or a proxy that does not pass it on",
    "408": f"a proxy between waited too long for this client: raise its time-out ({_PAGE})",
    "413": f"a proxy between takes no body so large: raise its bound ({_PAGE}), or send fewer timesteps",
    "429": "a proxy between takes no more calls for now: try again later",
    "502": f"a proxy between did not reach the server: see that it runs, and that the proxy speaks HTTP/2 ({_PAGE})",
    "503": f"a proxy between has no server for this call, or no room: see that one runs, or try again ({_PAGE})",
    "504": f"a proxy between waited too long for the server: raise its time-out for silent streams ({_PAGE})",
}
# What texts of grpc's core mean, and what to do; the first that fits.
_BY_TEXT = tuple(
    (re.compile(pattern, re.DOTALL), hint)
    for pattern, hint in (
        (
            "CERTIFICATE_VERIFY_FAILED|certificate verify failed",
            "give the roots that signed its certificate, tls=PATH of a PEM file, and name the host as it does",
        ),
        ("WRONG_VERSION_NUMBER", "the server speaks plain text there: leave tls out"),
        (
            r"http1\.x server|Expected SETTINGS frame",
            "that port does not speak gRPC; is it the metrics port? gRPC's is 8500, or what --port says",
        ),
        (
            "upstream connect error|upstream request timeout|no healthy upstream|stream timeout",
            f"a proxy between did not reach the server, or gave up: see that it runs, and its time-outs ({_PAGE})",
        ),
        (
            "Connection refused",
            "no server listens there: start one, streamcell serve --models FOLDER, or see its --host and --port",
        ),
        (
            "DNS resolution failed|Name or service not known|Domain name not found",
            "no machine is called so: see the target's spelling",
        ),
        (
            "RST_STREAM|GOAWAY|Socket closed|Connection reset|Broken pipe|ping timeout|EOF",
            "the connection or the stream was cut: the server has ended or speaks TLS, or a proxy between has a "
            f"time-out or a limit ({_PAGE}); session(…, resume=True) goes on after such a cut",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Route:
    """The way to one server.

    Attributes:
        target: as gRPC takes it.
        proxy: the HTTP proxy that gRPC connects through; "" for none.
        variable: the environment variable that names the proxy.
    """

    target: str
    proxy: str = ""
    variable: str = ""

    @classmethod
    def to(cls, target: str, arguments: Iterable[tuple[str, Any]] = ()) -> Route:
        """The way that gRPC takes to `target` with these channel arguments."""
        if dict(arguments).get("grpc.enable_http_proxy", 1) in (0, False):
            return cls(target)
        return cls(target, *_proxy(host_of(target), os.environ))

    def explain(self, code: grpc.StatusCode, text: str) -> str:
        """The text of a status that no server of ours has sent, with the target and what helps."""
        told = f"{text or 'no details'} ({code.name})"
        if code is _Code.UNIMPLEMENTED:
            return f"{self.target}: {told}: it is no StreamCell server, or an older one: see the target"
        hint = self._hint(code, text)
        through = f" through the proxy {self.proxy} of {self.variable}" if self.proxy else ""
        if not hint:
            return f"{self.target}: {told}" if code is _Code.UNAVAILABLE else told
        return f"{self.target}{through}: {told}: {hint}"

    def _hint(self, code: grpc.StatusCode, text: str) -> str:
        if (status := _HTTP_STATUS.search(text)) is not None and not self.proxy:
            return _BY_HTTP_STATUS.get(status[1], f"a proxy between, or a web server, says so ({_PAGE})")
        if self.proxy and code in (_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED):
            host = host_of(self.target) or "HOST"
            return (
                f"if the server is not behind this proxy: export no_proxy={host}, or connect(…, "
                'options=[("grpc.enable_http_proxy", 0)])'
            )
        if code in (_Code.UNAVAILABLE, _Code.INTERNAL, _Code.UNKNOWN, _Code.CANCELLED):
            return next((hint for pattern, hint in _BY_TEXT if pattern.search(text)), "")
        return ""


def _proxy(host: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """The proxy that gRPC takes to `host`, and the variable that names it; empty texts for none."""
    variable = next(
        (name for name in ("grpc_proxy", "https_proxy", "http_proxy") if environment.get(name)), ""
    )
    if not host or not variable:
        return "", ""
    excepted = environment.get("no_grpc_proxy") or environment.get("no_proxy") or ""
    if any(_matches(host, each.strip()) for each in excepted.split(",")):
        return "", ""
    # Without the password that may stand in it.
    return re.sub(r"//[^/@]*@", "//", environment[variable]), variable


def _matches(host: str, pattern: str) -> bool:
    if not pattern:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
    except ValueError:
        return host.lower().endswith(pattern.lower())
