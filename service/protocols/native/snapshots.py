"""Snapshots: sessions as bytes that leave the server, and that anybody may send back.

    magic[16]  format: uint32  signed: uint32  size: uint64  content[size]  crc32: uint32  hmac[32], if it is signed

Little-endian; the content is a `SnapshotContent`, the CRC-32 and the HMAC-SHA256 are those of all bytes before them.
The reader first checks the lengths, the CRC and, with a key, the HMAC, and trusts nothing before. Then the model's own
sizes say how long each value must be.
"""

from __future__ import annotations

import hmac
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from streamcell.card import Signature
from streamcell.proto import pb
from streamcell.service.errors import MessageTooLarge, cut, shown
from streamcell.service.protocols.common.openings import Given, check_openings
from streamcell.service.sessions.capacity import Ints
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.snapshot_errors import SnapshotInvalid, SnapshotMismatch
from streamcell.service.settings import Settings

FORMAT = 1
_MAGIC = b"StreamCell snap\n"
_HEAD = struct.Struct("<16sIIQ")
_CRC = struct.Struct("<I")
_HMAC_BYTES = 32
_MESSAGE_BYTES = 256  # of a message that carries a snapshot, without it
_MOST_STEPS = 1 << 42  # of a session; those of a stream are added up
_HANDLES = 4  # the highest handle of a stream, in sessions that the model may have
_KEY_BYTES = 4096  # that are read


class Snapshots:
    """Makes snapshots and reads them, with the server's key and bounds."""

    def __init__(
        self, key: bytes, max_message_bytes: int, *, allow_non_finite: bool, tenant: str = ""
    ) -> None:
        """Make one.

        Args:
            key: signs snapshots, and every snapshot must be signed with it; b"": none is signed.
            max_message_bytes: of a message that brings one.
            allow_non_finite: whether values that nobody has signed may be NaN or infinite.
            tenant: whose snapshots it makes and takes; empty if there are no tenants.
        """
        self._tenant = tenant
        self._key = key
        self._max_message_bytes = max_message_bytes
        self._most = max_message_bytes - _MESSAGE_BYTES
        self._allow_non_finite = allow_non_finite

    @classmethod
    def of(cls, settings: Settings) -> Snapshots:
        """As the settings say. Raises OSError if the key cannot be read."""
        path: Path | None = settings.snapshot_key_file
        key = b""
        if path is not None:
            with path.open("rb") as file:
                key = file.read(_KEY_BYTES)
        return cls(key, settings.max_message_bytes, allow_non_finite=settings.non_finite == "allow")

    def of_tenant(self, tenant: str) -> Snapshots:
        """The same for a tenant's snapshots."""
        return Snapshots(
            self._key, self._max_message_bytes, allow_non_finite=self._allow_non_finite, tenant=tenant
        )

    def seal(self, content: pb.SnapshotContent) -> bytes:
        """A snapshot's bytes.

        Raises:
            MessageTooLarge: no message could bring it back.
        """
        content.tenant = self._tenant
        size = content.ByteSize()
        if size + _HEAD.size + _CRC.size + _HMAC_BYTES > self._most:
            raise MessageTooLarge(
                f"the snapshot would have {size} bytes, and a message that brings it back may have {self._most}: "
                "start the server with a larger --max-message-bytes",
                limit=self._most,
                got=size,
            )
        data = _HEAD.pack(_MAGIC, FORMAT, bool(self._key), size) + content.SerializeToString()
        data += _CRC.pack(zlib.crc32(data))
        return data + self._sign(data) if self._key else data

    def _sign(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")

    def unseal(self, data: bytes) -> pb.SnapshotContent:
        """What a snapshot holds; nothing of that is checked yet.

        Raises:
            SnapshotInvalid: it is none, is damaged, was not signed with this server's key, or is another tenant's.
            SnapshotMismatch: it has another format.
        """
        if len(data) < _HEAD.size or not data.startswith(_MAGIC):
            raise SnapshotInvalid("these bytes are no snapshot: pass those that a snapshot call has returned")
        _, form, signed, size = _HEAD.unpack_from(data)
        if form != FORMAT:
            raise SnapshotMismatch(
                f"the snapshot has format {form}, this server reads format {FORMAT}: use a server of the release that "
                "made it",
                expected=FORMAT,
                got=form,
            )
        end = _HEAD.size + size
        if signed > 1 or len(data) != end + _CRC.size + _HMAC_BYTES * signed:
            raise SnapshotInvalid(
                "the snapshot is cut short, or longer than its header says: send all of its bytes and no others"
            )
        if _CRC.unpack_from(data, end)[0] != zlib.crc32(data[:end]):
            raise SnapshotInvalid("the snapshot is damaged: its check sum is wrong; use another copy")
        if bool(signed) != bool(self._key):
            raise SnapshotInvalid(
                "the snapshot is signed, and this server has no key: start it with --snapshot-key-file"
                if signed
                else "the snapshot is not signed, and this server takes only signed ones: make it on a server with the "
                "same --snapshot-key-file"
            )
        if signed and not hmac.compare_digest(self._sign(data[:-_HMAC_BYTES]), data[-_HMAC_BYTES:]):
            raise SnapshotInvalid(
                "the snapshot was signed with another key: give both servers the same --snapshot-key-file"
            )
        try:
            content = pb.SnapshotContent.FromString(data[_HEAD.size : end])
        except DecodeError as error:
            raise SnapshotInvalid("the snapshot's content is none: use another copy") from error
        if content.tenant != self._tenant:
            raise SnapshotInvalid(
                "the snapshot is another tenant's: only the tenant whose session it was may use it"
            )
        return content

    def image(
        self, content: pb.SnapshotContent, model: Any, *, frames: bool = False, trusted: bool = False
    ) -> Image:
        """The sessions of `content`, which fit `model`; `trusted`: no client has had it.

        Raises:
            SnapshotMismatch: it was made of another model, or of a stream of frames where a session is wanted.
            SnapshotInvalid: it contradicts itself, or has values that only a signed one may have.
            InvalidArgument: a value of the opening is wrong.
        """
        _check_model(content, model)
        if content.frames is not frames:
            kinds = ("a session", "a stream of frames")
            raise SnapshotMismatch(
                f"this is a snapshot of {kinds[content.frames]}, not of {kinds[frames]}: restore it as one",
                expected=kinds[frames],
                got=kinds[content.frames],
            )
        signature: Signature = model.file.signature
        steps = _packed(content.step_indices, "<u8")
        count = len(steps)
        handles = _packed(content.handles, "<u4")
        _expect(count == 1 or frames, "one session")
        _expect(
            len(handles) == (count if frames else 0) and count <= model.max_sessions, "a handle a session"
        )
        _expect(bool((steps >= 0).all() and (steps < _MOST_STEPS).all()), "step indices")
        _expect(len(np.unique(handles)) == len(handles), "handles")
        most = _HANDLES * model.max_sessions  # a table is as long as its highest handle
        _expect(
            int(handles.max(initial=0)) < most,
            f"handles below {most}: close expired members before a snapshot",
        )
        stepped = int(np.count_nonzero(steps))
        sizes = [state.session_bytes for state in signature.states]
        _expect([len(each) for each in content.values] == [stepped * size for size in sizes], "states")
        _expect(len(content.given) == len(signature.open_inputs), "values of the opening")
        named = zip(signature.open_inputs, content.given, strict=True)
        values = [Given(each.name, data) for each, data in named]
        given = (
            check_openings(signature, values, count, allow_non_finite=self._allow_non_finite) if count else ()
        )
        _expect(len(content.last_output) in (0, _fed_back(model)), "last output")
        if not (self._key or trusted):
            self._check_values(content, signature)
        return Image(
            steps,
            [
                np.frombuffer(each, np.uint8).reshape(stepped, size)
                for each, size in zip(content.values, sizes, strict=True)
            ],
            given,
            content.last_output,
            handles,
        )

    def _check_values(self, content: pb.SnapshotContent, signature: Signature) -> None:
        """Refuse what nobody has signed and no model may have written."""
        for state, data in zip(signature.states, content.values, strict=True):
            if not state.dtype.startswith("float"):
                # It may be an index, and one outside its table is read as memory by some devices.
                raise SnapshotInvalid(
                    f"state {shown(state.input)} is of {state.dtype}, and the snapshot is not signed: give the servers "
                    "that make and restore it a --snapshot-key-file"
                )
            if not (self._allow_non_finite or np.isfinite(np.frombuffer(data, state.dtype)).all()):
                raise SnapshotInvalid(
                    f"state {shown(state.input)} has a NaN or an infinity, and the snapshot is not signed: give the "
                    "servers that make and restore it a --snapshot-key-file"
                )


def content_of(model: Any, image: Image, *, frames: bool = False) -> pb.SnapshotContent:
    """The content of a snapshot of sessions of `model`; `frames`: those of a stream of frames."""
    content = model_of(model)
    content.values.extend(value.tobytes() for value in image.values)
    content.step_indices = image.step_indices.astype("<u8").tobytes()
    content.given.extend(value.tobytes() for value in image.given)
    content.last_output = image.last_output
    content.handles = image.handles.astype("<u4").tobytes()
    content.frames = frames
    return content


def model_of(model: Any) -> pb.SnapshotContent:
    """The content of a snapshot as far as the model alone says it."""
    file = model.file
    return pb.SnapshotContent(
        model=file.name,
        version=file.version,
        model_sha256=bytes.fromhex(file.sha256),
        states=_states(file.signature),
    )


def _states(signature: Signature) -> list[pb.StateSpec]:
    return [
        pb.StateSpec(
            input=each.input, output=each.output, dtype=each.dtype, shape=each.shape, bytes=each.session_bytes
        )
        for each in signature.states
    ]


def _check_model(content: pb.SnapshotContent, model: Any) -> None:
    file = model.file
    made, here = (content.model, content.version), (file.name, file.version)
    if made != here:
        raise SnapshotMismatch(
            f"the snapshot was made of model {shown(made[0])}, version {shown(made[1])}, not of {shown(here[0])}, "
            f"version {shown(here[1])}: restore it on that one",
            expected="/".join(here),
            got=cut("/".join(made)),
        )
    if content.model_sha256.hex() != file.sha256 or list(content.states) != _states(file.signature):
        raise SnapshotMismatch(
            f"the files of model {shown(here[0])}, version {shown(here[1])}, have changed since the snapshot was made: "
            "serve the old files under their version (--versions all), or begin anew",
            model=here[0],
            version=here[1],
        )


def _expect(fine: bool, what: str) -> None:
    if not fine:
        raise SnapshotInvalid(f"the snapshot contradicts itself or its model ({what}): use another copy")


def _packed(data: bytes, dtype: str) -> Ints:
    _expect(len(data) % np.dtype(dtype).itemsize == 0, "packed numbers")
    return np.frombuffer(data, dtype).astype(np.int64)


def _fed_back(model: Any) -> int:
    """Bytes of a timestep of the output that generations feed back; 0 if there is none."""
    generation = model.file.generation
    if generation is None:
        return 0
    return next(
        int(each.step_bytes) for each in model.file.signature.outputs if each.name == generation.output
    )
