"""A connection to the store: one thread's, made anew when it breaks, with a limit on the time of each call."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from . import functions
from .errors import FAILED, FULL, NO_REPLICA, REFUSED, TIMEOUT, UNREACHABLE, StoreConfigError, StoreFailure

_SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_UNKNOWN = "Function not found"
REPLICA_S = 1.0  # that the store's replica may take
_WAIT = functions.packed(b"WAIT", b"1", b"%d" % int(REPLICA_S * 1000))
# How errors begin that no second attempt mends.
_UNSUITABLE = {
    "unknown command": "the store must be Valkey, or Redis from 7.0",
    "ACL failure in script": "the store's user may not do that",
    "CROSSSLOT": "the store must not be a cluster: use one primary with replicas",
    "MOVED": "the store must not be a cluster: use one primary with replicas",
}


@dataclass(frozen=True)
class StoreAddress:
    """Where the store is, and who calls.

    Attributes:
        host, port: of its primary.
        tls: whether to use TLS; then its certificate must be for `host`.
        user, password: of its access control list; None: the default user, no password.
        password_file: has the password instead, read for each connection.
        ca: PEM file of authorities; None: the system's.
        database: its number.
    """

    host: str
    port: int
    tls: bool = False
    user: str | None = None
    password: str | None = None
    password_file: Path | None = None
    ca: Path | None = None
    database: int = 0

    @classmethod
    def parse(
        cls, url: str, user: str | None = None, password_file: Path | None = None, ca: Path | None = None
    ) -> StoreAddress:
        """The address of a URL such as valkeys://user:password@host:6379/0.

        Raises:
            StoreConfigError: it is none, or a file cannot be read; the text never has the password.
        """
        expected = "expected valkey://HOST:PORT, or valkeys:// for TLS"
        try:
            parts = urlsplit(url)
            port, path = parts.port or 6379, parts.path.strip("/")
        except ValueError:
            raise StoreConfigError(f"--store: {expected}") from None
        if parts.scheme not in _SCHEMES or not parts.hostname or parts.query or parts.fragment:
            raise StoreConfigError(f"--store: {expected}; it has no options")
        if path and not path.isdecimal():
            raise StoreConfigError(f"--store: {expected}; behind it only the number of a database, as /0")
        tls = _SCHEMES[parts.scheme]
        if ca is not None and not tls:
            raise StoreConfigError("--store-ca needs a store with TLS: valkeys:// in --store")
        password = unquote(parts.password) if parts.password else None
        name = user or (unquote(parts.username) if parts.username else None)
        address = cls(parts.hostname, port, tls, name, password, password_file, ca, int(path or 0))
        address.credentials()
        return address

    def credentials(self) -> tuple[str, ...]:
        """Password, or user and password, as the file has it now; empty: none.

        Raises:
            StoreConfigError: the file cannot be read.
        """
        password = self.password
        if self.password_file is not None:
            try:
                password = self.password_file.read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise StoreConfigError(f"--store-password-file {self.password_file}: {error}") from None
        if self.user is None and password is None:
            return ()
        return (password or "",) if self.user is None else (self.user, password or "")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class _Credentials:
    """As valkey-py's `CredentialProvider`."""

    def __init__(self, address: StoreAddress) -> None:
        self._address = address

    def get_credentials(self) -> tuple[str, ...]:
        return self._address.credentials()


class Connection:
    """Sends commands and reads their answers. One thread calls; any thread may call `limit` and `abort`."""

    def __init__(
        self, address: StoreAddress, name: str, *, timeout_s: float, text: str = functions.TEXT
    ) -> None:
        """Make it, not yet connected.

        Args:
            address: the store's.
            name: what the store's CLIENT LIST shows.
            timeout_s: of connecting, and of each part of an answer.
            text: of the functions, to load them if the store has none.

        Raises:
            ModuleNotFoundError: `valkey` is not installed; the extra `store` brings it.
        """
        from valkey import connection as valkey_connection

        kind: Any = valkey_connection.SSLConnection if address.tls else valkey_connection.Connection
        tls: dict[str, Any] = {}
        if address.tls:
            tls = {
                "ssl_check_hostname": True,
                "ssl_ca_certs": None if address.ca is None else str(address.ca),
            }
        self._valkey: Any = kind(
            host=address.host,
            port=address.port,
            db=address.database,
            credential_provider=_Credentials(address) if address.credentials() else None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            client_name=name,
            **tls,
        )
        self.address = address
        self._timeout_s = timeout_s
        self._text = text
        self._busy_s: float | None = None  # since when a call is under way

    def call(self, *parts: bytes) -> Any:
        """The answer to one command.

        Raises:
            StoreFailure: there is none, or it is an error.
        """
        return self.ask(functions.packed(*parts))

    def ask(self, command: bytes) -> Any:
        """The same of a packed command."""
        (answer,) = self.exchange([command])
        if isinstance(answer, StoreFailure):
            raise answer
        return answer

    def exchange(self, commands: Sequence[bytes], *, confirmed: bool = False) -> list[Any]:
        """The answers to packed commands, which are sent at once; an error that concerns one command is its answer.

        If the store lacks the functions, they are loaded and the commands that failed for it are sent again.
        `confirmed`: one of the store's replicas must have what was written.

        Raises:
            StoreFailure: not all of them were answered or confirmed. Some may have been carried out.
        """
        answers = self._exchange(commands, confirmed)
        lacking = [at for at, answer in enumerate(answers) if _lacks_functions(answer)]
        if lacking:
            self.load()
            again = self._exchange([commands[at] for at in lacking], confirmed)
            for at, answer in zip(lacking, again, strict=True):
                answers[at] = answer
        return answers

    def load(self) -> None:
        """Load the functions into the store, over those of their name.

        Raises:
            StoreFailure: the store does not take them.
        """
        (answer,) = self._exchange([functions.packed(b"FUNCTION", b"LOAD", b"REPLACE", self._text.encode())])
        if isinstance(answer, StoreFailure):
            raise StoreFailure(answer.kind, f"the store does not load StreamCell's functions: {answer}")

    def _exchange(self, commands: Sequence[bytes], confirmed: bool = False) -> list[Any]:
        from valkey import exceptions

        sent = [*commands, _WAIT] if confirmed else commands
        self._busy_s = time.monotonic()
        try:
            self._valkey.send_packed_command([b"".join(sent)], check_health=False)
            answers = [self._answer(exceptions) for _ in sent]
        except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
            raise self._broken(REFUSED, error) from None
        except exceptions.TimeoutError as error:
            raise self._broken(TIMEOUT, error) from None
        except (exceptions.ValkeyError, OSError, ValueError, RecursionError) as error:
            kind = REFUSED if "certificate verify failed" in str(error) else UNREACHABLE
            raise self._broken(kind, error) from None
        finally:
            self._busy_s = None
        if confirmed:
            count = answers.pop()
            if isinstance(count, StoreFailure):
                raise count
            if count < 1:
                raise StoreFailure(NO_REPLICA, "no replica of the store has confirmed what was written")
        return answers

    def _answer(self, exceptions: Any) -> Any:
        try:
            return self._valkey.read_response(disable_decoding=True)
        except exceptions.OutOfMemoryError as error:
            return StoreFailure(FULL, f"the store is full: {error}")
        except exceptions.NoPermissionError as error:
            return StoreFailure(REFUSED, f"the store's user may not do that: {error}")
        except (
            exceptions.ReadOnlyError
        ) as error:  # no longer the primary: another address may be behind the name
            raise self._broken(UNREACHABLE, error) from None
        except exceptions.ResponseError as error:
            for beginning, what in _UNSUITABLE.items():
                if str(error).startswith(beginning):
                    return StoreFailure(REFUSED, f"{what}: {error}")
            return StoreFailure(FAILED, str(error))

    def _broken(self, kind: str, error: Exception) -> StoreFailure:
        self.close()
        return StoreFailure(kind, f"{self.address}: {error}")

    def limit(self, most_s: float) -> None:
        """End the call under way if it takes longer than `most_s`, even if the store keeps sending."""
        since_s = self._busy_s
        if since_s is not None and time.monotonic() - since_s > most_s:
            self.abort()

    def abort(self) -> None:
        """End what waits for the store."""
        sock = self._valkey._sock
        if sock is not None:
            with suppress(OSError):
                # Below TLS: the thread that reads sees the end, and cleans up itself.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it; the next call connects again. For the thread that calls."""
        self._valkey.disconnect()

    def listen(self, wait_s: float) -> list[Any] | None:
        """What the store sends on a channel; None: nothing in `wait_s`.

        Raises:
            StoreFailure: the connection has broken.
        """
        from valkey import exceptions

        try:
            if not self._valkey.can_read(timeout=wait_s):
                return None
            answer = self._valkey.read_response(disable_decoding=True)
        except (exceptions.ValkeyError, OSError, ValueError, AttributeError) as error:
            raise self._broken(UNREACHABLE, error) from None
        return answer if isinstance(answer, list) else None


def _lacks_functions(answer: object) -> bool:
    return isinstance(answer, StoreFailure) and answer.kind == FAILED and _UNKNOWN in str(answer)
