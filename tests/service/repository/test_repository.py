"""Models are found where they may lie, described by card, sidecar or graph; every bad one is reported at once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from streamcell.card import METADATA_KEY, ModelCard, Signature, State, Tensor, write_card
from streamcell.service.load_errors import (
    DetectionError,
    ModelLoadError,
    RepositoryError,
    SidecarError,
    SignatureError,
)
from streamcell.service.repository.model_file import discover, open_model
from tests.support.onnx_files import parsed, save

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", step_shape=(4,)),),
    outputs=(Tensor(name="y", dtype="float32", step_shape=(4,)),),
    states=(State(input="a", output="b", dtype="float32", shape=(4,), initial=0.5),),
    layout="batch",
)
SIDECAR = """
layout = "batch"
inputs = ["x"]
outputs = ["y"]
[[states]]
input = "a"
output = "b"
"""


def unnamed() -> onnx.ModelProto:
    """A delay line whose state's names say nothing."""
    return parsed(
        "(float[n,4] x, float[n,4] a) => (float[n,4] y, float[n,4] b) { y = Neg(a) b = Identity(x) }"
    )


def clear() -> onnx.ModelProto:
    """The same with names that say it."""
    return parsed(
        "(float[n,4] x, float[n,4] h) => (float[n,4] y, float[n,4] h_next) { y = Neg(h) h_next = Identity(x) }"
    )


def carded(signature: Signature = SIGNATURE) -> onnx.ModelProto:
    model = unnamed()
    write_card(model, ModelCard(name="delay", kind="Delay", signature=signature))
    return model


def test_models_by_file_and_by_version_folder_newest_last(tmp_path: Path) -> None:
    save(carded(), tmp_path / "zeta.onnx")
    for version in ("10", "9", "2"):
        save(clear(), tmp_path / "alpha" / version / "model.onnx")
    save(unnamed(), tmp_path / "alpha" / "11" / "model.onnx", SIDECAR)
    (tmp_path / "notes.txt").write_text("not a model")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden.onnx").write_bytes(b"")
    files = discover(tmp_path)
    assert [(f.name, f.version) for f in files] == [
        ("alpha", "2"),
        ("alpha", "9"),
        ("alpha", "10"),
        ("alpha", "11"),
        ("zeta", "1"),
    ]
    assert [f.path.relative_to(tmp_path).as_posix() for f in files][-2:] == [
        "alpha/11/model.onnx",
        "zeta.onnx",
    ]
    assert files[-1].card is not None
    assert files[-1].card.kind == "Delay"
    assert files[-1].signature == SIGNATURE
    assert files[0].card is None
    assert files[0].signature.states[0].output == "h_next"
    assert files[3].signature.states[0].output == "b"


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    """Kubernetes mounts a volume's files as links into a folder whose name begins with dots."""
    save(carded(), tmp_path / "models" / "..data_1" / "delay.onnx")
    os.symlink("..data_1/delay.onnx", tmp_path / "models" / "delay.onnx")
    assert [f.name for f in discover(tmp_path / "models")] == ["delay"]


def test_an_empty_folder_has_no_models(tmp_path: Path) -> None:
    assert discover(tmp_path) == []


@pytest.mark.parametrize(("make", "found"), [(False, "nothing"), (True, "a file")])
def test_what_is_no_folder_is_refused(make: bool, found: str, tmp_path: Path) -> None:
    path = tmp_path / "models"
    if make:
        path.write_text("")
    with pytest.raises(ModelLoadError, match=f"models: expected a folder of models, found {found}"):
        discover(path)


def test_every_bad_file_is_in_one_report(tmp_path: Path) -> None:
    save(carded(), tmp_path / "good.onnx")
    (tmp_path / "garbage.onnx").write_bytes(b"this is not a protobuf message")
    (tmp_path / "empty.onnx").write_bytes(b"")
    save(unnamed(), tmp_path / "unclear.onnx")
    save(unnamed(), tmp_path / "typo.onnx", SIDECAR.replace('"b"', '"bb"'))
    save(unnamed(), tmp_path / "broken.onnx", "layout = ")
    save(carded(), tmp_path / "both.onnx", SIDECAR)
    save(carded(SIGNATURE.model_copy(update={"layout": "batch_time"})), tmp_path / "wrong.onnx")
    bad_card = unnamed()
    bad_card.metadata_props.add(key=METADATA_KEY, value="{}")
    save(bad_card, tmp_path / "card.onnx")
    save(carded(), tmp_path / "a b.onnx")
    save(carded(), tmp_path / "loose" / "model.onnx")
    save(carded(), tmp_path / "named" / "v2" / "model.onnx")
    save(carded(), tmp_path / "other" / "3" / "weights.onnx")
    with pytest.raises(RepositoryError) as caught:
        discover(tmp_path)
    wanted = {
        "garbage.onnx": (ModelLoadError, "not an ONNX file"),
        "empty.onnx": (ModelLoadError, "not an ONNX file"),
        "unclear.onnx": (DetectionError, "unclear.toml"),
        "typo.toml": (SidecarError, "output 'bb'"),
        "broken.toml": (SidecarError, "not valid TOML"),
        "both.toml": (SidecarError, "override = true"),
        "wrong.onnx": (SignatureError, "[batch, time, 4]"),
        "card.onnx": (ModelLoadError, "card is not valid"),
        "a b.onnx": (ModelLoadError, "'a b' cannot be a model's name"),
        "loose/model.onnx": (ModelLoadError, "loose/1/model.onnx"),
        "named/v2": (ModelLoadError, "positive integer"),
        "other/3": (ModelLoadError, "expected model.onnx, found weights.onnx"),
    }
    errors = {e.path.relative_to(tmp_path).as_posix(): e for e in caught.value.errors if e.path is not None}
    assert set(errors) == set(wanted)
    for name, (kind, text) in wanted.items():
        assert isinstance(errors[name], kind), name
        assert text in str(errors[name])
        assert str(errors[name]) in str(caught.value)
    assert "12 models cannot be served" in str(caught.value)


def test_a_sidecar_stands_in_the_place_of_a_card_only_when_it_says_so(tmp_path: Path) -> None:
    path = save(carded(), tmp_path / "delay.onnx", "override = true" + SIDECAR + "initial = 2.0")
    file = open_model(path, "delay")
    assert file.signature.states[0].initial == 2.0
    assert file.card is not None
    assert file.card.signature.states[0].initial == 0.5


def test_a_sidecar_is_told_all_its_mistakes_together_with_the_card_it_stands_beside(tmp_path: Path) -> None:
    sidecar = SIDECAR.replace("layout", "batches = 1\nlayout").replace('"b"', '"bb"')
    path = save(carded(), tmp_path / "delay.onnx", sidecar)
    with pytest.raises(SidecarError) as caught:
        open_model(path, "delay")
    assert caught.value.path == path.with_suffix(".toml")
    for text in ("3 problems", "batches: unknown key; did you mean", "override = true", "output 'bb'"):
        assert text in str(caught.value)


def test_a_sidecar_may_rename_but_not_to_a_name_that_is_taken(tmp_path: Path) -> None:
    save(unnamed(), tmp_path / "a b.onnx", 'name = "delay"' + SIDECAR)
    assert [f.name for f in discover(tmp_path)] == ["delay"]
    save(carded(), tmp_path / "delay.onnx")
    with pytest.raises(RepositoryError, match=r"model 'delay' version 1 is .*a b\.onnx already"):
        discover(tmp_path)


def test_constants_come_with_the_file(tmp_path: Path) -> None:
    model = parsed("(float[n,4] x, float rate) => (float[n,4] y) { y = Mul(x, rate) }")
    sidecar = 'layout = "batch"\ninputs = ["x"]\noutputs = ["y"]\n[constants]\nrate = 3'
    file = open_model(save(model, tmp_path / "gain.onnx", sidecar), "gain")
    assert file.constants["rate"] == 3.0
    assert file.constants["rate"].dtype == np.float32
    assert file.signature.states == ()


def test_weights_in_a_file_of_their_own_are_read_on_load_only(tmp_path: Path) -> None:
    model = parsed("(float[n,4] x) => (float[n,4] y) { y = Mul(x, w) }", w=np.arange(4, dtype=np.float32))
    path = tmp_path / "gain.onnx"
    onnx.save(model, path, save_as_external_data=True, location="gain.weights", size_threshold=0)
    (file,) = discover(tmp_path)
    session = ort.InferenceSession(file.load().SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(["y"], {"x": np.ones((1, 4), np.float32)})
    np.testing.assert_array_equal(y, [[0, 1, 2, 3]])
    (tmp_path / "gain.weights").unlink()
    with pytest.raises(ModelLoadError, match=r"gain\.onnx: its external data cannot be read"):
        file.load()


def test_weights_outside_the_models_folder_are_refused(tmp_path: Path) -> None:
    model = parsed("(float[n,4] x) => (float[n,4] y) { y = Mul(x, w) }", w=np.arange(4, dtype=np.float32))
    path = save(model, tmp_path / "models" / "gain.onnx")
    (tmp_path / "secret").write_bytes(b"\0" * 16)
    model.graph.initializer[0].ClearField("raw_data")
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelLoadError, match="external data cannot be read"):
        open_model(path, "gain").load()
