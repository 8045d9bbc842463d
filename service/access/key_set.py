"""The public keys that sign JWTs: a JSON Web Key Set (RFC 7517) from a file or, fetched regularly, from an address."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt
import structlog

from streamcell.service.errors import cut
from streamcell.service.threads import NoThread, started

from .access_errors import AccessConfigError

_log = structlog.get_logger(__name__)

FLAG = "--jwt-jwks"
_MOST_BYTES = 1024 * 1024
_LEAST_RSA_BITS = 2048
_FETCH_S = 5.0  # without a byte
_WHOLE_S = 10.0  # for all of an answer, however slowly it trickles in
_REFRESH_S = 300.0  # an address is asked at least so often
_LEAST_S = 10.0  # and, for keys that it did not have, no more often

# By key type and curve; no symmetric ones: whoever can check such a signature could make it.
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS: dict[tuple[str, str], tuple[str, ...]] = {
    ("RSA", ""): _RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


class Key(NamedTuple):
    """A public key and the algorithms that it may be used with."""

    key: Any
    algorithms: tuple[str, ...]


class KeySet:
    """The keys by their `kid`. Threads read them while one thread replaces them."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Read or fetch the keys.

        Raises:
            AccessConfigError: they cannot be read or fetched, or none can be used.
        """
        self.path = None if "://" in source else Path(source)
        self._source = source
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._asked_s = -_LEAST_S
        self._wanted = False  # a token names a key that is not here
        self._fetch: _Fetch | None = None
        self.changes = 0
        if self.path is None:
            _check_address(source)
        self.reload()

    def find(self, kid: str | None) -> Key | None:
        """The key of that id; without an id the only key. For an unknown id the address is soon asked again."""
        keys = self._keys
        if kid is None:
            return next(iter(keys.values())) if len(keys) == 1 else None
        key = keys.get(kid)
        if key is None:
            self._wanted = True
        return key

    def reload(self) -> None:
        """Read or fetch the keys again.

        Raises:
            AccessConfigError: they cannot be read or fetched; the known ones stay.
        """
        self._asked_s, self._wanted = self._clock(), False
        data = self._fetched() if self.path is None else _read(self.path)
        keys = _parsed(self._source, data)
        self._keys = keys
        self.changes += 1

    def _fetched(self) -> bytes:
        """What the address answers; only one request at a time, even if its answer arrives slowly."""
        if self._fetch is None or self._fetch.over.is_set():
            try:
                self._fetch = _Fetch(self._source)
            except NoThread as error:
                raise AccessConfigError(f"{FLAG} {self._source}: {error}") from error
        return self._fetch.answer()

    def look(self) -> None:
        """Ask the address again if it is time. Not for the serving thread."""
        if self.path is not None:
            return
        since_s = self._clock() - self._asked_s
        if since_s >= _REFRESH_S or (self._wanted and since_s >= _LEAST_S):
            try:
                self.reload()
            except AccessConfigError as error:
                _log.error("keys of tokens not fetched, the previous ones stay", error=str(error))


def _check_address(address: str) -> None:
    """Raise AccessConfigError for an address whose answer others could write."""
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and _loopback(parts.hostname or "")):
        return
    raise AccessConfigError(f"{FLAG} {address}: expected https://, or http:// on this machine, or a file")


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects could lead to an address that was not checked."""

    def redirect_request(self, *args: Any) -> None:
        return None


class _Fetch:
    """One request to an address, on a separate thread: nobody waits longer than `_WHOLE_S` for the answer."""

    def __init__(self, address: str) -> None:
        self.over = threading.Event()
        self._address = address
        self._answer: bytes | Exception = b""
        self._began_s = time.monotonic()
        started("keys", self._ask)

    def _ask(self) -> None:
        try:
            with urllib.request.build_opener(_NoRedirects).open(self._address, timeout=_FETCH_S) as reply:
                self._answer = reply.read(_MOST_BYTES + 1)
        except Exception as error:
            self._answer = error
        self.over.set()

    def answer(self) -> bytes:
        """The answer; raises AccessConfigError if it does not come in time, is an error, or is too long."""
        if not self.over.wait(max(0.0, self._began_s + _WHOLE_S - time.monotonic())):
            raise AccessConfigError(f"{FLAG} {self._address}: no whole answer in {_WHOLE_S:g} s")
        data = self._answer
        if isinstance(data, (OSError, ValueError, HTTPException)):
            raise AccessConfigError(f"{FLAG} {self._address}: {cut(data)}") from data
        if isinstance(data, Exception):
            raise data
        if len(data) > _MOST_BYTES:
            raise AccessConfigError(f"{FLAG} {self._address}: over {_MOST_BYTES} bytes")
        return data


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AccessConfigError(f"{FLAG} {path}: {error.strerror}") from error


def _parsed(source: str, data: bytes) -> dict[str, Key]:
    try:
        listed = json.loads(data)["keys"]
        each = [entry for entry in listed if isinstance(entry, dict)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise AccessConfigError(f'{FLAG} {source}: no key set: expected {{"keys": [...]}}') from error
    keys: dict[str, Key] = {}
    for at, entry in enumerate(each):
        allowed = _ALGORITHMS.get((str(entry.get("kty")), str(entry.get("crv", ""))), ())
        if entry.get("use", "sig") != "sig":
            continue
        if "alg" in entry:
            allowed = tuple(name for name in allowed if name == entry["alg"])
        if not allowed:
            continue
        try:
            key = jwt.PyJWK(entry, algorithm=allowed[0]).key
        except jwt.PyJWTError as error:
            raise AccessConfigError(f"{FLAG} {source}: key {at}: {error}") from error
        if "d" in entry:
            raise AccessConfigError(
                f"{FLAG} {source}: key {at} is a private key: publish its public part only"
            )
        if allowed[0] in _RSA and key.key_size < _LEAST_RSA_BITS:
            raise AccessConfigError(
                f"{FLAG} {source}: key {at} has {key.key_size} bits, expected {_LEAST_RSA_BITS}"
            )
        keys[str(entry.get("kid", f"#{at}"))] = Key(key, allowed)
    if not keys:
        raise AccessConfigError(f"{FLAG} {source}: no RSA, EC or Ed25519 key for signatures in it")
    return keys
