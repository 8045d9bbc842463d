"""Signatures of models: a file beside each that says which bytes may be loaded, under which name and version.

`NAME.onnx.sig` has two lines. The first is a JSON object with the model's name, its version, and the size and SHA-256
of each of its files: the .onnx file (or a pipeline's TOML file and its stages), its sidecar, its external data. The
second is the Ed25519 signature (RFC 8032) of `CONTEXT` and the first line, in base64. The server reads each
file of a signed model into memory once, and checks and parses it there. So nobody can exchange a file between check
and use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcell.service.errors import shown
from streamcell.service.load_errors import ModelLoadError, UntrustedModelError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

# What is signed begins with it, so a signature that was made for something else is none.
CONTEXT = b"streamcell model signature 1\n"
_MOST_KEY_BYTES = 1024 * 1024
_MOST_SIGNATURE_BYTES = 16 * 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


@dataclass(frozen=True)
class SignedFiles:
    """The files that a valid signature names.

    Attributes:
        folder: the folder of the model's file.
        name: the name that the model is signed for.
        version: the version that it is signed for.
        files: size in bytes and SHA-256 in hexadecimal, by the path below `folder`.
    """

    folder: Path
    name: str
    version: str
    files: Mapping[str, tuple[int, str]]

    def __contains__(self, path: Path) -> bool:
        return self._key(path) in self.files

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def size(self, path: Path) -> int:
        """The signed size of `path` in bytes.

        Raises:
            UntrustedModelError: the signature does not name it.
        """
        return self._signed(path)[0]

    def sha256(self, path: Path) -> bytes:
        """The signed SHA-256 of `path`.

        Raises:
            UntrustedModelError: the signature does not name it.
        """
        return bytes.fromhex(self._signed(path)[1])

    def _signed(self, path: Path) -> tuple[int, str]:
        try:
            return self.files[self._key(path)]
        except KeyError:
            raise UntrustedModelError(
                "it belongs to a signed model, whose signature does not name it; remove it, or sign the model again",
                path,
            ) from None

    def read(self, path: Path) -> bytes:
        """The content of `path`, once it is known to be what was signed.

        Raises:
            UntrustedModelError: it is not, or the signature does not name it.
            ModelLoadError: it cannot be read.
        """
        size, digest = self._signed(path)
        data = read_regular(path, size)
        if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            raise UntrustedModelError(
                "it is not the file that was signed: its content differs; put the signed file back, or sign the model "
                "again",
                path,
            )
        return data


class TrustedKeys:
    """Public keys whose signatures count."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = tuple(keys)

    @classmethod
    def read(cls, path: Path) -> TrustedKeys:
        """The Ed25519 keys of a PEM file, one or more.

        Raises:
            ModelLoadError: there is none, one is of another kind, or the package cryptography is missing.
        """
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
            from cryptography.hazmat.primitives.serialization import load_pem_public_key
        except ModuleNotFoundError as error:
            raise ModelLoadError(
                "signatures need the package cryptography: pip install 'streamcell[signed]'"
            ) from error
        keys = []
        expected = "expected Ed25519 public keys in PEM: openssl pkey -in PRIVATE -pubout -out PUBLIC"
        for pem in _PEM.findall(read_regular(path, _MOST_KEY_BYTES)):
            try:
                key = load_pem_public_key(pem)
            except ValueError as error:
                raise ModelLoadError(f"a public key in it cannot be read; {expected}", path) from error
            if not isinstance(key, Ed25519PublicKey):
                raise ModelLoadError(f"a public key in it is of another kind; {expected}", path)
            keys.append(key)
        if not keys:
            raise ModelLoadError(f"there is no public key in it; {expected}", path)
        return cls(keys)

    def check(self, path: Path) -> SignedFiles:
        """The files that the signature of the model file `path` names.

        Raises:
            UntrustedModelError: there is no signature, it is damaged, or no trusted key has made it.
        """
        from cryptography.exceptions import InvalidSignature

        place = signature_path(path)
        if not os.path.lexists(place):
            raise UntrustedModelError(
                f"it has no signature, and this server demands one: streamcell sign {path.name} --key PRIVATE makes "
                f"{place.name}",
                path,
            )
        said, signature = _parts(read_regular(place, _MOST_SIGNATURE_BYTES), place)
        for key in self._keys:
            try:
                key.verify(signature, CONTEXT + said)
            except InvalidSignature:
                continue
            return _manifest(said, path, place)
        raise UntrustedModelError(
            "no trusted key has made this signature; sign the model with the private key of --require-signature, or "
            "add the signer's public key to that file",
            place,
        )


def signature_path(path: Path) -> Path:
    """The path of the signature of the model file `path`; it may not exist."""
    return path.with_name(f"{path.name}.sig")


def write_signature(
    path: Path, files: Iterable[Path], name: str, version: str, key: Ed25519PrivateKey
) -> Path:
    """Sign the model file `path` with all its `files` as `version` of `name`, and return the signature's path.

    Raises:
        ModelLoadError: a file cannot be read.
        OSError: the signature cannot be written.
    """
    named = {}
    for each in sorted(files):
        data = read_regular(each)
        named[each.relative_to(path.parent).as_posix()] = [len(data), hashlib.sha256(data).hexdigest()]
    said = json.dumps({"name": name, "version": version, "files": named}, ensure_ascii=True).encode()
    place = signature_path(path)
    hidden = place.with_name(f".{place.name}.{os.getpid()}")
    hidden.write_bytes(said + b"\n" + base64.b64encode(key.sign(CONTEXT + said)) + b"\n")
    hidden.replace(place)
    return place


def read_private_key(path: Path, passphrase: bytes | None = None) -> Ed25519PrivateKey:
    """The Ed25519 private key of a PEM file.

    Raises:
        TypeError: it is encrypted and there is no passphrase.
        ModelLoadError: it is no such key, or the passphrase is wrong.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    expected = "expected an Ed25519 private key in PEM: openssl genpkey -algorithm ed25519 -out PRIVATE"
    try:
        key = load_pem_private_key(read_regular(path, _MOST_KEY_BYTES), passphrase)
    except ValueError as error:
        raise ModelLoadError(f"it cannot be read, or its passphrase is wrong; {expected}", path) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ModelLoadError(f"its key is of another kind; {expected}", path)
    return key


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file, at most `most` bytes and one more, which tells that there are more.

    Raises:
        ModelLoadError: it is no regular file, or it cannot be read.
    """
    try:
        # A named pipe would otherwise wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ModelLoadError("expected a regular file", path)
            left = os.fstat(descriptor).st_size if most is None else most + 1
            parts = []
            while left and (part := file.read(left)):
                parts.append(part)
                left -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
    except OSError as error:
        raise ModelLoadError(f"cannot be read: {error.strerror}", path) from error


def _parts(text: bytes, place: Path) -> tuple[bytes, bytes]:
    """What was signed, and the signature."""
    lines = text.split(b"\n")
    try:
        said, encoded = lines[0], lines[1]
        signature = base64.b64decode(encoded, validate=True)
    except (IndexError, binascii.Error):
        signature = b""
    if len(signature) != 64 or lines[2:] not in ([], [b""]):
        raise UntrustedModelError(
            "it is damaged: expected a line of JSON and a line with its signature; sign the model again",
            place,
        )
    return said, signature


def _manifest(said: bytes, path: Path, place: Path) -> SignedFiles:
    """What a valid signature says of the model file `path`. Another release may have made the signature."""
    try:
        data: Any = json.loads(said)
        name, version, files = data["name"], data["version"], data["files"]
        named = {
            str(key): (size, digest)
            for key, (size, digest) in files.items()
            if isinstance(size, int) and size >= 0 and _SHA256.fullmatch(digest)
        }
        if not (isinstance(name, str) and isinstance(version, str) and len(named) == len(files)):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UntrustedModelError(
            "it does not say name, version and files as this release writes them; sign the model again", place
        ) from error
    signed = SignedFiles(path.parent, name, version, named)
    if path not in signed:
        raise UntrustedModelError(
            f"it is the signature of other files, among them {shown(next(iter(named), 'none'))}; sign {path.name}",
            place,
        )
    return signed


def check_called(signed: SignedFiles, name: str, version: str, path: Path) -> None:
    """Check that a model has the name and version that it was signed for: its place must not change them.

    Raises:
        UntrustedModelError: it was signed for another name or version.
    """
    if (signed.name, signed.version) != (name, version):
        raise UntrustedModelError(
            f"it is signed as {shown(signed.name)} version {shown(signed.version)}, and is found as {shown(name)} "
            f"version {shown(version)}; put it back to its place, or sign it for this one",
            path,
        )
