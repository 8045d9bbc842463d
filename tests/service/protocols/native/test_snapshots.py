"""A snapshot's bytes: whatever is wrong with them is found before anything of them is believed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcell.card import OpenInput, Signature, State, Tensor
from streamcell.proto import pb
from streamcell.service.errors import MessageTooLarge, ServiceError
from streamcell.service.protocols.native.snapshots import _CRC, _HEAD, Snapshots, content_of
from streamcell.service.repository.describe import Description
from streamcell.service.repository.model_file import ModelFile
from streamcell.service.sessions.image import Image
from streamcell.service.sessions.snapshot_errors import SnapshotInvalid, SnapshotMismatch

KEY = bytes(range(32))


class Model:
    max_sessions = 8

    def __init__(self, dtype: str = "float32", version: str = "1") -> None:
        states = (
            State(input="h", output="n", dtype=dtype, shape=(2, 3)),  # type: ignore[arg-type]
            State(input="v", output="w", dtype="float32", shape=(2,)),
        )
        signature = Signature(
            inputs=(Tensor(name="x", dtype="float32"),),
            outputs=(Tensor(name="y", dtype="float32"),),
            states=states,
            open_inputs=(OpenInput(name="v", dtype="float32", step_shape=(2,)),),
        )
        self.file = ModelFile("m", version, Path("m.onnx"), Description(signature, "card"), (), ())


def reader(key: bytes = b"", most: int = 1 << 16, *, allow_non_finite: bool = False) -> Snapshots:
    return Snapshots(key, most, allow_non_finite=allow_non_finite)


def image(steps: int = 5, value: float = 1.5, dtype: str = "float32") -> Image:
    state = np.full((1 if steps else 0, 6), value).astype(dtype)
    given = np.ones((1, 2), np.float32).view(np.uint8)
    return Image(np.array([steps]), [state.view(np.uint8), given[: len(state)]], [given])


def content(**changes: Any) -> pb.SnapshotContent:
    made = content_of(Model(), image())
    for name, value in changes.items():
        if isinstance(value, list):
            made.ClearField(name)  # type: ignore[arg-type]
            getattr(made, name).extend(value)
        else:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize("key", [b"", KEY])
@pytest.mark.parametrize("steps", [0, 5])
def test_what_goes_in_comes_out(key: bytes, steps: int) -> None:
    snapshots, given = reader(key), image(steps)
    found = snapshots.image(snapshots.unseal(snapshots.seal(content_of(Model(), given))), Model())
    assert found.step_indices.tolist() == [steps]
    assert found.opening(0) == given.opening(0)
    assert [each.tolist() for each in found.values] == [each.tolist() for each in given.values]


@pytest.mark.parametrize("key", [b"", KEY])
def test_any_other_bit_and_any_other_length_is_refused(key: bytes) -> None:
    snapshots = reader(key)
    data = snapshots.seal(content())
    for at in range(len(data)):
        for bit in range(8):
            wrong = data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            with pytest.raises((SnapshotInvalid, SnapshotMismatch)):
                snapshots.unseal(wrong)
        with pytest.raises(SnapshotInvalid):
            snapshots.unseal(data[:at])
    with pytest.raises(SnapshotInvalid):
        snapshots.unseal(data + b"\0")


@pytest.mark.parametrize("size", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_length_that_lies_is_no_length(size: int) -> None:
    data = bytearray(reader().seal(content()))
    _HEAD.pack_into(data, 0, data[:16], 1, 0, size)
    data[-4:] = _CRC.pack(zlib.crc32(bytes(data[:-4])))
    with pytest.raises(SnapshotInvalid, match="cut short"):
        reader().unseal(bytes(data))


def test_a_signature_is_of_all_of_it_and_of_one_key() -> None:
    signed, plain = reader(KEY).seal(content()), reader().seal(content())
    forged = bytearray(plain)
    _HEAD.pack_into(forged, 0, plain[:16], 1, 1, len(plain) - _HEAD.size - 4)
    forged[-4:] = _CRC.pack(zlib.crc32(bytes(forged[:-4])))
    for key, data, remedy in (
        (KEY, plain, "--snapshot-key-file"),
        (b"", signed, "--snapshot-key-file"),
        (KEY[::-1], signed, "--snapshot-key-file"),
        (KEY, bytes(forged) + bytes(32), "another key"),
    ):
        with pytest.raises(SnapshotInvalid, match=remedy):
            reader(key).unseal(data)


@pytest.mark.parametrize(
    "wrong",
    [
        {"step_indices": b""},
        {"step_indices": bytes(7)},
        {"step_indices": bytes(16)},
        {"step_indices": b"\xff" * 8},
        {"step_indices": bytes(8)},  # with a state
        {"values": []},
        {"values": [bytes(23), bytes(8)]},
        {"values": [bytes(24)]},
        {"values": [bytes(24), bytes(8), b""]},
        {"values": [b""] * 1000},
        {"given": []},
        {"given": [bytes(7)]},
        {"given": [np.array([1, np.nan], np.float32).tobytes()]},
        {"last_output": bytes(4)},
        {"handles": bytes(4)},
        {"frames": True},
        {"model_sha256": bytes(32)},
        {"version": "2"},
        {"model": "another"},
        {"states": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("key", [b"", KEY])
def test_content_that_does_not_fit_is_refused_signed_or_not(wrong: dict[str, Any], key: bytes) -> None:
    snapshots = reader(key)
    sealed = snapshots.unseal(snapshots.seal(content(**wrong)))
    with pytest.raises(ServiceError) as caught:
        snapshots.image(sealed, Model())
    assert caught.value.reason in {
        "SNAPSHOT_INVALID", "SNAPSHOT_MISMATCH", "WRONG_BYTE_COUNT", "NON_FINITE_INPUT",
    }  # fmt: skip


def frames_of(handles: list[int], steps: list[int]) -> pb.SnapshotContent:
    stepped = sum(each > 0 for each in steps)
    return content(
        frames=True,
        step_indices=np.array(steps, "<u8").tobytes(),
        handles=np.array(handles, "<u4").tobytes(),
        values=[bytes(24 * stepped), bytes(8 * stepped)],
        given=[bytes(8 * len(steps))],
    )


@pytest.mark.parametrize(
    ("handles", "steps"),
    [([1, 1], [1, 2]), ([2**32 - 1], [1]), ([32], [1]), ([1], [1, 2]), (list(range(9)), [1] * 9)],
    ids=str,
)
def test_handles_that_no_stream_has_are_refused(handles: list[int], steps: list[int]) -> None:
    with pytest.raises(SnapshotInvalid):
        reader().image(frames_of(handles, steps), Model(), frames=True)


def test_a_stream_s_sessions_come_back_by_their_handles() -> None:
    found = reader().image(frames_of([7, 2, 31], [0, 3, 4]), Model(), frames=True)
    assert (found.handles.tolist(), found.step_indices.tolist()) == ([7, 2, 31], [0, 3, 4])
    assert [each.shape for each in found.values] == [(2, 24), (2, 8)]
    none = reader().image(frames_of([], []), Model(), frames=True)
    assert not len(none.handles)


Made = Callable[[], pb.SnapshotContent]


@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", np.nan), ("float32", np.inf), ("int64", 3.0), ("bool", 1.0)]
)
def test_values_that_a_client_could_do_harm_with_need_a_signature(dtype: str, value: float) -> None:
    model, given = Model(dtype), image(5, value, dtype)
    with pytest.raises(SnapshotInvalid, match="--snapshot-key-file"):
        reader().image(content_of(model, given), model)
    assert reader(KEY).image(content_of(model, given), model).states(0) == given.states(0)


def test_a_server_that_allows_non_finite_values_takes_them_here_too() -> None:
    given = image(5, np.inf)
    assert reader(allow_non_finite=True).image(content_of(Model(), given), Model()).states(0) == given.states(
        0
    )


def test_what_no_message_could_bring_back_is_not_made() -> None:
    with pytest.raises(MessageTooLarge, match="--max-message-bytes"):
        reader(most=300).seal(content())


@pytest.mark.parametrize("key", [b"", KEY])
def test_a_snapshot_is_its_tenants(key: bytes) -> None:
    tenants = {name: reader(key).of_tenant(name) for name in ("acme", "bank")} | {"": reader(key)}
    for owner, its in tenants.items():
        data = its.seal(content())
        for name, each in tenants.items():
            if name == owner:
                assert each.unseal(data).tenant == owner
            else:
                with pytest.raises(SnapshotInvalid, match="another tenant's"):
                    each.unseal(data)
