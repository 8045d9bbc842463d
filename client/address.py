"""A server's address, as users write it, and as gRPC takes it."""

from __future__ import annotations

import ipaddress
import re

from .errors import InvalidInput

PORT = 8500
_LONGEST = 270  # a name of 253 characters, a colon, a port; or an IPv6 address with a zone
# gRPC's own ways to name servers.
_GRPC = re.compile(r"(dns|unix|unix-abstract|ipv4|ipv6|xds|vsock|passthrough):", re.IGNORECASE)
_URL = re.compile(r"(\w+)://([^/]*)")


def address(target: str) -> str:
    """`target` as gRPC takes it: with port 8500 if it has none, and an IPv6 address in brackets.

    Addresses that begin with one of gRPC's schemes, such as dns: or unix:, stay as they are.

    Raises:
        InvalidInput: WRONG_TARGET: it is empty, a URL, or its port is no port.
    """
    if _GRPC.match(target):
        return target
    if url := _URL.match(target):
        tls = ", tls=True" if url[1].lower() in ("https", "grpcs") else ""
        raise _wrong(target, f'leave "{url[1]}://" out: connect("{url[2]}"{tls})')
    if _is_ipv6(target):
        return f"[{target}]:{PORT}"
    bracketed = re.fullmatch(r"(\[[^\]]*\])(?::(.*))?", target)
    if bracketed:
        host, port = bracketed.groups()
        if not _is_ipv6(host[1:-1]):
            raise _wrong(target, "an IPv6 address stands in brackets, as [::1]:8500")
    elif target.count(":") > 1:
        raise _wrong(target, "an IPv6 address with a port needs brackets, as [::1]:8500")
    else:
        host, colon, text = target.partition(":")
        port = text if colon else None
    if not host or not re.fullmatch(r"\S+", host) or "/" in host:
        raise _wrong(target, "name a host, as localhost:8500")
    if port is None:
        return f"{host}:{PORT}"
    if not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise _wrong(target, f"the port is a number from 1 to 65535; without one it is {PORT}")
    return f"{host}:{port}"


def addresses(target: str) -> tuple[str, ...]:
    """One address, or several with commas between, each as `address` makes it. A list of gRPC's own is one.

    Raises:
        InvalidInput: WRONG_TARGET.
    """
    if _GRPC.match(target):
        return (target,)
    return tuple(dict.fromkeys(address(each.strip()) for each in target.split(",")))


def is_place(text: str) -> bool:
    """True if a server may tell this as the address of another one: HOST:PORT, nothing that gRPC takes for more."""
    if len(text) > _LONGEST or _GRPC.match(text) or text.count(":") == 0:
        return False
    try:
        return address(text) == text
    except InvalidInput:
        return False


def host_of(target: str) -> str:
    """The host of an address that `address` has made, without brackets; "" if it is not known."""
    if _GRPC.match(target):
        return target.rpartition("/")[2].rpartition(":")[0] if target.lower().startswith("dns:") else ""
    return target.rpartition(":")[0].strip("[]")


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _wrong(target: str, way_on: str) -> InvalidInput:
    return InvalidInput(
        f"target: expected HOST or HOST:PORT, got {target!r}: {way_on}", reason="WRONG_TARGET"
    )
