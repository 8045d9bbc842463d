"""Images of sessions: sealed for one session at one place, by keys that can be changed."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from streamcell.service.store import functions
from streamcell.service.store.cipher import Checked, Cipher, ImageInvalid, Sealed
from streamcell.service.store.errors import StoreConfigError, StoredStateInvalid
from tests.support.mutants import mutant
from tests.support.stores import Opened, new_id
from tests.support.valkey import ValkeyServer

HERE, THERE = functions.place(3, 0), functions.place(4, 0)


def keys(path: Path, *lines: str) -> Path:
    path.write_text("# the store's keys\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(params=["checked", "sealed"])
def cipher(request: pytest.FixtureRequest, tmp_path: Path) -> Cipher:
    return Checked() if request.param == "checked" else Sealed(keys(tmp_path / "keys", secrets.token_hex(32)))


def holds(cipher: Cipher, invalid: type[Exception] = ImageInvalid) -> None:
    """What was sealed opens for its session and place, and nothing else does."""
    session, other = new_id(), new_id()
    for image in (b"", b"x", secrets.token_bytes(5000), secrets.token_bytes(5121)):
        sealed = cipher.seal(session, HERE, image)
        assert cipher.open(session, HERE, sealed) == image
        for who, where in ((other, HERE), (session, THERE)):
            with pytest.raises(invalid):
                cipher.open(who, where, sealed)
    for at in range(len(sealed)):
        if at % 97 == 0 or at < 40:
            with pytest.raises(invalid):
                cipher.open(session, HERE, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :])
            with pytest.raises(invalid):
                cipher.open(session, HERE, sealed[:at])


def test_an_image_opens_for_its_session_at_its_place_only(cipher: Cipher) -> None:
    holds(cipher)


def test_an_image_that_is_not_bound_to_its_place_is_noticed(tmp_path: Path) -> None:
    aead = mutant(
        "service.store.cipher",
        *("encrypt(nonce, image, session + place)", "encrypt(nonce, image, session)"),
        *("sealed[head + _NONCE_BYTES :], session + place)", "sealed[head + _NONCE_BYTES :], session)"),
    )
    crc = mutant("service.store.cipher", "zlib.crc32(session + place)", "0")
    sealed = aead.Sealed(keys(tmp_path / "keys", secrets.token_hex(32)))
    for wrong, module in ((sealed, aead), (crc.Checked(), crc)):
        with pytest.raises(pytest.fail.Exception, match="ImageInvalid"):
            holds(wrong, module.ImageInvalid)


def test_a_sealed_image_shows_nothing_and_is_never_twice_the_same(tmp_path: Path) -> None:
    cipher, session = Sealed(keys(tmp_path / "keys", secrets.token_hex(32))), new_id()
    sealed = [cipher.seal(session, HERE, b"secret" * 50) for _ in range(2)]
    assert sealed[0] != sealed[1]
    assert not any(b"secret" in each for each in sealed)


def test_a_server_with_keys_takes_nothing_unsealed_and_one_without_takes_nothing_sealed(
    tmp_path: Path,
) -> None:
    sealed, session = Sealed(keys(tmp_path / "keys", secrets.token_hex(32))), new_id()
    with pytest.raises(ImageInvalid, match="not encrypted"):
        sealed.open(session, HERE, Checked().seal(session, HERE, b"x"))
    with pytest.raises(ImageInvalid, match="--store-key-file"):
        Checked().open(session, HERE, sealed.seal(session, HERE, b"x"))


def test_a_key_is_changed_while_servers_run(tmp_path: Path) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    path, other, session = keys(tmp_path / "keys", old), keys(tmp_path / "others", old), new_id()
    first, second = Sealed(path), Sealed(other)
    before = first.seal(session, HERE, b"before")
    keys(path, old, new)
    first.reload()
    assert second.open(session, HERE, first.seal(session, HERE, b"x")) == b"x"  # the old one still seals
    keys(other, new, old)
    second.reload()
    assert first.open(session, HERE, second.seal(session, HERE, b"y")) == b"y"
    assert second.open(session, HERE, before) == b"before"
    keys(path, new)
    first.reload()
    with pytest.raises(ImageInvalid, match="its key"):
        first.open(session, HERE, before)


@pytest.mark.parametrize("text", ["", "# nothing\n", "abc\n", "00" * 31 + "\n", "zz" * 32 + "\n", "é\n"])
def test_a_key_file_that_cannot_be_used_is_told_and_the_keys_stay(tmp_path: Path, text: str) -> None:
    path, session = keys(tmp_path / "keys", secrets.token_hex(32)), new_id()
    cipher = Sealed(path)
    sealed = cipher.seal(session, HERE, b"x")
    path.write_text(text)
    with pytest.raises(StoreConfigError, match="openssl rand -hex 32"):
        cipher.reload()
    assert cipher.open(session, HERE, sealed) == b"x"
    path.unlink()
    with pytest.raises(StoreConfigError, match="--store-key-file"):
        Sealed(path)


def test_a_store_holds_only_sealed_images_and_another_key_is_told(
    replica: Callable[..., Opened], shared: ValkeyServer, tmp_path: Path
) -> None:
    one, two = (Sealed(keys(tmp_path / name, secrets.token_hex(32))) for name in ("one", "two"))
    a, b, c = replica("a", cipher=one), replica("b", cipher=two), replica("c", cipher=one)
    session = a.open(new_id(), create=True)
    a.step(session)
    a.release(session)
    assert b"state" not in shared.record(session.key)["image"]
    answer = b.ask(session.key, 2)
    assert isinstance(answer, StoredStateInvalid)
    moved = c.claim(session.key, 3)
    assert (moved.number, moved.image) == (1, b"state 1")
