"""The store's functions, called by hand as replicas call them, in any order."""

from __future__ import annotations

from typing import Any

from streamcell.service.store import functions
from streamcell.service.store.connection import Connection
from tests.support.stores import TOKEN
from tests.support.valkey import ValkeyServer


class Calls:
    """Calls of the functions, as replicas make them."""

    def __init__(self, server: ValkeyServer, text: str) -> None:
        self.connection = Connection(server.address, "test", timeout_s=10.0, text=text)
        self.connection.load()

    def ask(self, name: str, keys: list[bytes], *arguments: bytes | str | int) -> Any:
        parts = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
        return self.connection.ask(functions.call(name, keys, parts))

    def join(self, boot: str) -> int:
        floor = self.ask("join", [functions.lease_key(boot), functions.FENCE], "", 60_000)
        return int(floor)

    def renew(self, boot: str) -> bool:
        return bool(self.ask("renew", [functions.lease_key(boot)], "", 60_000))

    def run_out(self, boot: str) -> None:
        """The time of its lease is over."""
        self.connection.call(b"DEL", functions.lease_key(boot))

    def claim(
        self, boot: str, key: bytes, attempt: int, *, create: bool = False, held: int = 0, token: bytes = TOKEN,
        tenant: str = "", again: bool = False, image: tuple[int, bytes] = (0, b""),
    ) -> Any:  # fmt: skip
        keys = [functions.lease_key(boot), functions.record_key(key), functions.FENCE]
        number, content = image
        return self.ask(
            "claim", keys, boot, token, f"{attempt:020d}", int(again), tenant, "m", int(create), held, 0, 1000,
            functions.place(number, 0), content,
        )  # fmt: skip

    def owned(self, boot: str, key: bytes, attempt: int, **more: Any) -> int:
        """The fence of a claim that succeeds."""
        answer = self.claim(boot, key, attempt, **more)
        assert answer[0] == b"OK", answer
        return int(answer[1])

    def put(
        self, boot: str, key: bytes, fence: int, number: int, steps: int = 0, *, gives: bool = False
    ) -> bytes:
        keys = [functions.lease_key(boot), functions.record_key(key)]
        image = b"%s %d.%d" % (boot.encode(), number, steps)
        told: bytes = self.ask("put", keys, boot, int(gives), fence, functions.place(number, steps), image)
        return told

    def delete(self, boot: str, key: bytes, fence: int) -> None:
        self.ask("delete", [functions.record_key(key)], boot, fence)

    def sweep(self, boot: str, key: bytes, linger_ms: int) -> bytes:
        letters: bytes = self.ask("sweep", [functions.record_key(key)], boot, linger_ms)
        return letters

    def image(self, key: bytes) -> bytes | None:
        found: bytes | None = self.connection.call(b"HGET", functions.record_key(key), b"image")
        return found

    def there(self, key: bytes) -> bool:
        return bool(self.connection.call(b"EXISTS", functions.record_key(key)))

    def lives(self, boot: str) -> bool:
        """Whether its lease is there."""
        return bool(self.connection.call(b"EXISTS", functions.lease_key(boot)))

    def at(self, key: bytes) -> bytes | None:
        """The record's place; None: there is no record."""
        found: bytes | None = self.connection.call(b"HGET", functions.record_key(key), b"at")
        return found
