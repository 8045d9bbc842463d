"""A server that demands signatures loads the signed bytes under the signed name, and nothing else."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from streamcell.service.load_errors import ModelLoadError, UntrustedModelError
from streamcell.service.repository.model_file import ModelFile, open_model
from streamcell.service.repository.selection import at_start
from streamcell.service.repository.signed import CONTEXT, TrustedKeys, signature_path, write_signature
from streamcell.service.settings import Settings
from tests.support.onnx_files import parsed, save
from tests.support.pipelines import PLAIN, SIDE, STAGES

KEY, FOREIGN = (
    Ed25519PrivateKey.from_private_bytes(bytes(32)),
    Ed25519PrivateKey.from_private_bytes(b"x" * 32),
)
GRAPH = (
    "(float[n,4] x, float[n,4] h) => (float[n,4] y, float[n,4] h_next) { y = Add(h, w) h_next = Add(x, v) }"
)
SIDECAR = """layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "h"
output = "h_next"
initial = 0.5
"""
W, V = np.arange(4, dtype=np.float32), np.full(4, 0.25, np.float32)
# In one test: each file that is opened, and what to do once with the one that it names.
opened: list[str] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        opened.append(os.path.basename(str(arguments[0])))


sys.addaudithook(_note)


def public(*keys: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return b"".join(
        k.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for k in keys
    )


@pytest.fixture
def trust(tmp_path: Path) -> TrustedKeys:
    (tmp_path / "signing.pub").write_bytes(public(KEY))
    return TrustedKeys.read(tmp_path / "signing.pub")


def sign(path: Path, key: Ed25519PrivateKey = KEY, name: str = "", version: str = "1") -> ModelFile:
    """Sign what is at `path` now."""
    file = open_model(path, name or path.stem, version)
    write_signature(path, [each for each in file.watched if each.exists()], file.name, version, key)
    return file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A signed model with a sidecar, and with its weights in another file."""
    path = tmp_path / "models" / "mine.onnx"
    path.parent.mkdir()
    made = parsed(GRAPH, w=W, v=V)
    onnx.save(made, path, save_as_external_data=True, location="mine.data", size_threshold=0)
    path.with_suffix(".toml").write_text(SIDECAR)
    sign(path)
    return path


def weights(file: ModelFile) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in file.load().graph.initializer}


def test_a_signed_model_is_what_it_is_without_a_signature(model: Path, trust: TrustedKeys) -> None:
    plain, signed = open_model(model, "mine"), open_model(model, "mine", trust=trust)
    assert signed.signature == plain.signature
    assert signed.signature.states[0].initial == 0.5
    assert signed.load() == plain.load()
    assert weights(signed)["w"].tolist() == W.tolist()
    assert weights(signed)["v"].tolist() == V.tolist()
    assert signed.sha256 == plain.sha256  # sessions that a journal keeps outlive the switch to signatures


def test_each_signed_file_is_read_once_for_each_time_it_is_parsed(model: Path, trust: TrustedKeys) -> None:
    """What a second opening would give may be another file."""
    opened.clear()
    file = open_model(model, "mine", trust=trust)
    assert [name for name in opened if name.startswith("mine")] == ["mine.onnx.sig", "mine.onnx", "mine.toml"]
    opened.clear()
    file.load()
    assert [name for name in opened if name.startswith("mine")] == ["mine.onnx", "mine.data"]


@pytest.mark.parametrize("name", ["mine.onnx", "mine.toml", "mine.data"])
@pytest.mark.parametrize("when", ["before it is described", "between description and load"])
def test_a_file_that_was_changed_is_refused_whenever_it_is_read(
    name: str, when: str, model: Path, trust: TrustedKeys
) -> None:
    file = open_model(model, "mine", trust=trust) if when.startswith("between") else None
    path = model.with_name(name)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    if file is not None and name == "mine.toml":
        assert file.load()  # it was read, and is not read again
        return
    with pytest.raises(UntrustedModelError, match=f"{name}: it is not the file that was signed"):
        (file or open_model(model, "mine", trust=trust)).load()


@pytest.mark.parametrize("change", [b"", b"more", None], ids=["truncated", "extended", "gone"])
def test_data_of_another_size_is_refused(change: bytes | None, model: Path, trust: TrustedKeys) -> None:
    data = model.with_name("mine.data")
    if change is None:
        data.unlink()
    else:
        data.write_bytes(data.read_bytes() + change if change else data.read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match=r"mine.data"):
        open_model(model, "mine", trust=trust).load()


def test_no_part_of_a_signature_is_one(model: Path, trust: TrustedKeys) -> None:
    place = signature_path(model)
    whole = place.read_bytes()
    for end in range(len(whole) - 1):
        place.write_bytes(whole[:end])
        with pytest.raises(
            UntrustedModelError, match=r"mine.onnx.sig: it is damaged|no trusted key has made"
        ):
            trust.check(model)
    place.write_bytes(whole + b"x")
    with pytest.raises(UntrustedModelError, match="damaged"):
        trust.check(model)


def test_a_changed_signature_says_what_the_signed_one_says_or_nothing(
    model: Path, trust: TrustedKeys
) -> None:
    place = signature_path(model)
    whole, files = place.read_bytes(), trust.check(model).files
    for at in range(len(whole)):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with suppress(UntrustedModelError):
            assert trust.check(model).files == files  # base64 has more than one spelling of its last bits


@pytest.mark.parametrize(
    "text", [b"[]", b"{}", b'{"name": 1, "version": "1", "files": {}}', b"\xff", b"[" * 9999]
)
def test_what_a_trusted_key_signed_in_another_form_is_refused(
    text: bytes, model: Path, trust: TrustedKeys
) -> None:
    signature_path(model).write_bytes(text + b"\n" + base64.b64encode(KEY.sign(CONTEXT + text)))
    with pytest.raises(UntrustedModelError, match="as this release writes them"):
        trust.check(model)


def test_a_signature_for_another_purpose_is_none(model: Path, trust: TrustedKeys) -> None:
    said = signature_path(model).read_bytes().split(b"\n")[0]
    signature_path(model).write_bytes(said + b"\n" + base64.b64encode(KEY.sign(said)))
    with pytest.raises(UntrustedModelError, match="no trusted key"):
        trust.check(model)


def test_no_signature_and_a_foreign_one_are_refused(model: Path, trust: TrustedKeys) -> None:
    sign(model, FOREIGN)
    with pytest.raises(
        UntrustedModelError, match=r"mine.onnx.sig: no trusted key .* private key of --require-sig"
    ):
        open_model(model, "mine", trust=trust)
    signature_path(model).unlink()
    with pytest.raises(
        UntrustedModelError, match=r"mine.onnx: it has no signature.*streamcell sign mine.onnx"
    ):
        open_model(model, "mine", trust=trust)


def test_keys_can_be_changed_over_with_two_in_the_file(model: Path, tmp_path: Path) -> None:
    both = tmp_path / "both.pub"
    both.write_bytes(public(FOREIGN, KEY))
    assert open_model(model, "mine", trust=TrustedKeys.read(both)).load()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "there is no public key in it"),
        (public(X25519PrivateKey.generate()), "of another kind"),
        (public(KEY).replace(b"M", b"!", 1), "cannot be read"),
        (None, "cannot be read: No such file"),
    ],
)
def test_keys_that_cannot_be_used_are_told(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "signing.pub"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelLoadError, match=told):
        TrustedKeys.read(path)


def test_a_model_at_another_place_is_not_the_signed_one(model: Path, trust: TrustedKeys) -> None:
    """An old version must not come back as a new one, nor one model as another."""
    for name, version in (("other", "1"), ("mine", "2")):
        with pytest.raises(
            UntrustedModelError, match=f"signed as 'mine' version '1', and is found as '{name}'"
        ):
            open_model(model, name, version, trust=trust)
    other = model.with_name("other.onnx")
    other.write_bytes(model.read_bytes())
    signature_path(other).write_bytes(signature_path(model).read_bytes())
    with pytest.raises(UntrustedModelError, match=r"other.onnx.sig: it is the signature of other files"):
        open_model(other, "mine", trust=trust)


def test_a_sidecar_is_signed_too(model: Path, trust: TrustedKeys) -> None:
    sidecar = model.with_suffix(".toml")
    text = sidecar.read_text()
    sidecar.unlink()
    with pytest.raises(UntrustedModelError, match="was signed and is gone"):
        open_model(model, "mine", trust=trust)
    sign(model)
    assert open_model(model, "mine", trust=trust)
    sidecar.write_text(text)
    with pytest.raises(UntrustedModelError, match=r"its sidecar mine.toml is not in its signature"):
        open_model(model, "mine", trust=trust)


def test_a_file_that_the_signature_does_not_name_is_not_read(model: Path, trust: TrustedKeys) -> None:
    write_signature(model, [model, model.with_suffix(".toml")], "mine", "1", KEY)
    with pytest.raises(UntrustedModelError, match=r"mine.data: .* signature does not name it"):
        open_model(model, "mine", trust=trust).load()


def link(place: Path, target: Path | str) -> None:
    place.unlink()
    place.symlink_to(target)


@pytest.mark.parametrize("name", ["mine.onnx", "mine.toml", "mine.data", "mine.onnx.sig"])
def test_a_link_counts_as_the_bytes_behind_it(name: str, model: Path, trust: TrustedKeys) -> None:
    place = model.with_name(name)
    aside = place.with_name("aside")
    aside.write_bytes(place.read_bytes())
    link(place, aside)
    assert open_model(model, "mine", root=model.parent, trust=trust).load()
    aside.write_bytes(aside.read_bytes()[::-1])
    with pytest.raises(UntrustedModelError):
        open_model(model, "mine", root=model.parent, trust=trust).load()
    for device in ("/dev/zero", "/dev/stdin"):
        link(place, device)
        with pytest.raises(ModelLoadError):
            open_model(model, "mine", trust=trust).load()


@pytest.mark.parametrize("name", ["mine.onnx", "mine.toml", "mine.data", "mine.onnx.sig"])
def test_a_named_pipe_in_the_place_of_a_file_waits_for_nobody(
    name: str, model: Path, trust: TrustedKeys
) -> None:
    file = open_model(model, "mine", trust=trust)
    place = model.with_name(name)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(ModelLoadError):
        open_model(model, "mine", trust=trust).load()
    if name in ("mine.onnx", "mine.data"):  # exchanged once it was checked
        with pytest.raises(ModelLoadError, match="regular file"):
            file.load()


def test_all_stages_of_a_pipeline_are_signed(tmp_path: Path, trust: TrustedKeys) -> None:
    for stage in ("a.onnx", "b.onnx"):
        save(parsed(PLAIN), tmp_path / stage)
    path = tmp_path / "whole.toml"
    path.write_text(SIDE + STAGES)
    sign(path)
    file = open_model(path, "whole", trust=trust)
    assert file.load() == open_model(path, "whole").load()
    assert file.signed is not None
    assert sorted(file.signed.files) == ["a.onnx", "b.onnx", "whole.toml"]
    save(parsed(PLAIN.replace("Tanh", "Sinh")), tmp_path / "b.onnx")
    with pytest.raises(UntrustedModelError, match=r"b.onnx"):
        file.load()
    with pytest.raises(UntrustedModelError, match=r"b.onnx"):
        open_model(path, "whole", trust=trust)


def test_a_folder_is_served_if_each_of_its_models_is_signed(
    model: Path, tmp_path: Path, trust: TrustedKeys
) -> None:
    settings = Settings(models=model.parent, require_signature=tmp_path / "signing.pub")
    found = at_start(settings)
    assert ([file.name for file in found.files], found.errors, found.notes) == (["mine"], [], [])
    save(parsed(GRAPH, w=W, v=V), model.parent / "more" / "3" / "model.onnx")
    assert [type(error) for error in at_start(settings).errors] == [UntrustedModelError]
    sign(model.parent / "more" / "3" / "model.onnx", name="more", version="3")
    assert [file.name for file in at_start(settings).files] == ["mine", "more"]


@pytest.fixture
def streamcell() -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str | Path, said: str = "") -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("streamcell"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, input=said, timeout=60)

    return run


def test_the_command_signs_with_keys_of_openssl_and_openssl_finds_the_signature_good(
    model: Path,
    tmp_path: Path,
    streamcell: Callable[..., subprocess.CompletedProcess[str]],
    program: Callable[[str], str],
) -> None:
    openssl, key, pub = program("openssl"), tmp_path / "s.key", tmp_path / "s.pub"

    def ssl(*arguments: str | Path) -> None:
        subprocess.run([openssl, *arguments], check=True, capture_output=True)

    ssl("genpkey", "-algorithm", "ed25519", "-out", key)
    ssl("pkey", "-in", key, "-pubout", "-out", pub)
    done = streamcell("sign", model, "--key", key)
    assert done.returncode == 0, done.stderr
    assert "mine.onnx.sig: mine version 1, 3 files" in done.stderr
    assert open_model(model, "mine", trust=TrustedKeys.read(pub)).load()
    said, signature, _ = signature_path(model).read_bytes().split(b"\n")
    (tmp_path / "said").write_bytes(CONTEXT + said)
    (tmp_path / "signature").write_bytes(base64.b64decode(signature))
    verify = ("pkeyutl", "-verify", "-pubin", "-inkey", pub, "-rawin", "-in", tmp_path / "said")
    ssl(*verify, "-sigfile", tmp_path / "signature")


def test_the_command_tells_what_it_cannot_sign(
    model: Path, tmp_path: Path, streamcell: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "wrong.key").write_bytes(public(KEY))
    done = streamcell("sign", model, "--key", tmp_path / "wrong.key")
    assert done.returncode == 1
    assert "expected an Ed25519 private key in PEM: openssl genpkey" in done.stderr
    assert "Traceback" not in done.stderr
