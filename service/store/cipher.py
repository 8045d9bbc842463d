"""Seals the images of sessions: the store's owner can neither read nor change them. Without a key they have a crc."""

from __future__ import annotations

import hashlib
import hmac
import os
import zlib
from pathlib import Path
from typing import Any, Protocol

from .errors import StoreConfigError

_PLAIN, _SEALED = b"\x01", b"\x02"
_KEY_BYTES, _ID_BYTES, _NONCE_BYTES, _CRC_BYTES = 32, 4, 12, 4
_FLAG = "--store-key-file"
# Of more bytes at once zlib's crc gives the interpreter to another thread, and then waits for it: for each session
# anew, that costs more than the crc.
_CRC_AT_ONCE = 5120


class ImageInvalid(Exception):
    """Bytes that this replica's keys do not open, or that were changed."""


class Cipher(Protocol):
    """Seals and opens images. They belong to a session at a place: another's do not open."""

    def seal(self, session: bytes, place: bytes, image: bytes) -> bytes:
        """What goes into the store."""

    def open(self, session: bytes, place: bytes, sealed: bytes) -> bytes:
        """The image.

        Raises:
            ImageInvalid: it is none, was changed, or is of another session or place.
        """


class Checked:
    """Images as they are, with a checksum against damage."""

    def seal(self, session: bytes, place: bytes, image: bytes) -> bytes:
        """The image behind its checksum."""
        return _PLAIN + _crc(session, place, image) + image

    def open(self, session: bytes, place: bytes, sealed: bytes) -> bytes:
        """As `Cipher.open`."""
        if sealed[:1] == _SEALED:
            raise ImageInvalid(f"it is encrypted, and this replica has no {_FLAG}")
        image = sealed[1 + _CRC_BYTES :]
        if sealed[:1] != _PLAIN or sealed[1 : 1 + _CRC_BYTES] != _crc(session, place, image):
            raise ImageInvalid("it was not written by StreamCell, or is damaged")
        return image


def _crc(session: bytes, place: bytes, image: bytes) -> bytes:
    crc = zlib.crc32(session + place)
    whole = memoryview(image)
    for at in range(0, len(image), _CRC_AT_ONCE):
        crc = zlib.crc32(whole[at : at + _CRC_AT_ONCE], crc)
    return crc.to_bytes(_CRC_BYTES, "big")


class Sealed:
    """AES-256-GCM. Each session has a key of its own, so random nonces do not run out."""

    def __init__(self, path: Path) -> None:
        """Read the keys: 64 hexadecimal digits a line. The first one seals, all open.

        Raises:
            StoreConfigError: the file cannot be used.
            ModuleNotFoundError: `cryptography` is not installed; the extra `store` brings it.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.path = path
        self._aead = AESGCM
        self._invalid = InvalidTag
        # By name, and the name of the one that seals.
        self._keys: tuple[dict[bytes, bytes], bytes] = ({}, b"")
        self.reload()

    def reload(self) -> None:
        """Read the keys again.

        Raises:
            StoreConfigError: the file cannot be used; the keys stay as they were.
        """
        expected = (
            f"{_FLAG} {self.path}: expected lines of 64 hexadecimal digits, as `openssl rand -hex 32` writes"
        )
        try:
            lines = self.path.read_text(encoding="ascii").splitlines()
            keys = [bytes.fromhex(line) for each in lines if (line := each.partition("#")[0].strip())]
        except (OSError, ValueError) as error:
            raise StoreConfigError(f"{expected}: {error}") from None
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise StoreConfigError(expected)
        names = [hashlib.sha256(key).digest()[:_ID_BYTES] for key in keys]
        self._keys = dict(zip(names, keys, strict=True)), names[0]

    def seal(self, session: bytes, place: bytes, image: bytes) -> bytes:
        """As `Cipher.seal`."""
        keys, name = self._keys
        nonce = os.urandom(_NONCE_BYTES)
        sealed: bytes = self._of(keys[name], session).encrypt(nonce, image, session + place)
        return _SEALED + name + nonce + sealed

    def open(self, session: bytes, place: bytes, sealed: bytes) -> bytes:
        """As `Cipher.open`."""
        head = 1 + _ID_BYTES
        name, nonce = sealed[1:head], sealed[head : head + _NONCE_BYTES]
        if sealed[:1] != _SEALED:
            raise ImageInvalid("it is not encrypted")
        key = self._keys[0].get(name)
        if key is None:
            raise ImageInvalid(f"its key is not in {_FLAG}")
        try:
            return bytes(
                self._of(key, session).decrypt(nonce, sealed[head + _NONCE_BYTES :], session + place)
            )
        except (self._invalid, ValueError):
            raise ImageInvalid("it was changed, or belongs to another session") from None

    def _of(self, key: bytes, session: bytes) -> Any:
        return self._aead(hmac.digest(key, session, "sha256"))
