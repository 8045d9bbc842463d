"""Every kind of the project's models: PyTorch = ONNX Runtime, held by a check that is not the exporter's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from streamcell.card import read_card
from streamcell.export import ExportError, export_model
from streamcell.models import MLP, SequenceModel, build

I, H, O = 5, 12, 4  # noqa: E741

CASES: dict[str, dict[str, Any]] = {
    **{f"rnn-{f}": {"kind": "rnn", "nonlinearity": f} for f in ("tanh", "relu", "sigmoid")},
    **{f"lstm-{f}": {"kind": "lstm", "candidate": f} for f in ("tanh", "relu")},
    "gru-before": {"kind": "gru", "reset_after": False},
    "gru-after": {"kind": "gru", "reset_after": True},
    "rnn-3-layers": {"kind": "rnn", "num_layers": 3},
    "lstm-2-layers": {"kind": "lstm", "num_layers": 2},
    "gru-3-layers": {"kind": "gru", "num_layers": 3},
    "gru-after-2-layers": {"kind": "gru", "num_layers": 2, "reset_after": True},
    "lstm-affines": {"kind": "lstm", "num_layers": 2, "input_affine": True, "output_affine": True},
    "gru-after-affines": {"kind": "gru", "reset_after": True, "input_affine": True, "output_affine": True},
    **{f"lstm-{f}-out": {"kind": "lstm", "output_activation": f} for f in ("sigmoid", "tanh", "softmax")},
    "rnn-softmax-affine": {"kind": "rnn", "output_activation": "softmax", "output_affine": True},
    "lstm-voices": {"kind": "lstm", "voices": 3, "distribution": "bernoulli_logits"},
    "gru-voices-affines": {
        "kind": "gru",
        "voices": 2,
        "distribution": "bernoulli_logits",
        "input_affine": True,
        "output_affine": True,
    },
    "mlp-voices": {"kind": "mlp", "hidden_sizes": [H], "voices": 1, "distribution": "bernoulli_logits"},
    "mlp-linear": {"kind": "mlp", "hidden_sizes": []},
    **{
        f"mlp-{f}": {"kind": "mlp", "hidden_sizes": [H, H], "activation": f}
        for f in ("sigmoid", "tanh", "relu", "gelu")
    },
    **{
        f"mlp-{f}-norm-residual": {
            "kind": "mlp",
            "hidden_sizes": [H, H, 7],
            "activation": f,
            "batch_norm": True,
            "residual": True,
        }
        for f in ("relu", "gelu")
    },
    "mlp-affines": {"kind": "mlp", "hidden_sizes": [H], "input_affine": True, "output_affine": True},
    # The first block is residual: the scaled input is needed by itself.
    "mlp-residual-affine": {
        "kind": "mlp",
        "hidden_sizes": [I],
        "residual": True,
        "input_affine": True,
        "batch_norm": True,
        "output_activation": "tanh",
        "output_affine": True,
    },
    "lstm-residual": {"kind": "lstm", "num_layers": 3, "residual": True},
    "gru-norm": {"kind": "gru", "num_layers": 2, "layer_norm": True, "input_affine": True},
    "rnn-tied": {"kind": "rnn", "num_layers": 4, "tie_layers": True},
    # Input and hidden size are the same: the first layer is residual and tied as well.
    "lstm-all": {
        "kind": "lstm",
        "hidden_size": I,
        "num_layers": 3,
        "residual": True,
        "layer_norm": True,
        "tie_layers": True,
        "input_affine": True,
        "output_affine": True,
    },
    "gru-one-layer-residual-norm": {"kind": "gru", "hidden_size": I, "residual": True, "layer_norm": True},
    **{f"cnn-{f}": {"kind": "cnn", "channels": [H, 7], "activation": f} for f in ("relu", "gelu", "tanh")},
    "cnn-norm": {"kind": "cnn", "channels": [H, H, H], "batch_norm": True, "kernel_size": 5},
    "cnn-affines": {"kind": "cnn", "channels": [H], "input_affine": True, "output_affine": True},
    "tcn": {"kind": "tcn", "channels": [H, H]},
    "tcn-wide": {"kind": "tcn", "channels": [I, 7, 7], "kernel_size": 4, "dilation_base": 3},
    "tcn-norm": {
        "kind": "tcn",
        "channels": [H, H, H],
        "kernel_size": 2,
        "batch_norm": True,
        "activation": "sigmoid",
        "output_activation": "softmax",
        "input_affine": True,
    },
    "mlp-linear-affines": {"kind": "mlp", "hidden_sizes": [], "input_affine": True, "output_affine": True},
}


def make(case: dict[str, Any], seed: int = 3) -> SequenceModel:
    """A model with every parameter and saved buffer away from its default, so that nothing can cancel out."""
    config: dict[str, Any] = {"input_size": I, "output_size": O, **case}
    if config["kind"] in ("rnn", "lstm", "gru"):
        config.setdefault("hidden_size", H)
    torch.manual_seed(seed)
    model = build(config)
    saved = model.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and name in saved:
                away = 0.5 + torch.rand_like(buffer)
                buffer.copy_(away if name.endswith(("scale", "var")) else away - 1)
    return model.eval()


def plain_run(
    session: ort.InferenceSession, x: np.ndarray, states: list[np.ndarray], names: tuple[str, ...]
) -> tuple[np.ndarray, list[np.ndarray]]:
    feed = {"x": x, **dict(zip(names, states, strict=True))}
    if names:
        feed["lengths"] = np.full(len(x), x.shape[1], np.int32)
    y, *after = session.run(["y", *(f"{name}_next" for name in names)], feed)
    return y, after


@pytest.mark.parametrize("case", CASES)
def test_plain_onnx_runtime_gives_what_pytorch_gives(case: str, tmp_path: Path) -> None:
    model = make(CASES[case])
    card = export_model(model, tmp_path / "m.onnx")
    assert card.proof["max_error"] <= 1e-5

    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(4, 11, I)
    with torch.no_grad():
        y, *last = model(x)
    names = model.state_names
    zeros = [state.numpy() for state in model.initial_state(4)]
    given, after = plain_run(session, x.numpy(), zeros, names)
    np.testing.assert_allclose(given, y.numpy(), atol=2e-6, rtol=1e-5)
    for a, b in zip(after, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6, rtol=1e-5)

    states = zeros
    for t in range(11):
        given, states = plain_run(session, x[:, t : t + 1].numpy(), states, names)
        np.testing.assert_allclose(given[:, 0], y[:, t].numpy(), atol=2e-6, rtol=1e-5)
    for a, b in zip(states, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6, rtol=1e-5)


RAGGED = [
    "rnn-tanh",
    "lstm-2-layers",
    "gru-3-layers",
    "gru-after-2-layers",
    "lstm-all",
    "cnn-norm",
    "tcn-wide",
]


@pytest.mark.parametrize("case", RAGGED)
def test_rows_of_different_lengths_share_a_run(case: str, tmp_path: Path) -> None:
    model = make(CASES[case])
    export_model(model, tmp_path / "m.onnx")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x, lengths = torch.randn(5, 9, I), [9, 1, 4, 2, 7]
    state = [0.5 * torch.randn_like(s) for s in model.initial_state(5)]
    names = model.state_names
    feed = {"x": x.numpy(), "lengths": np.array(lengths, np.int32)}
    feed.update({name: s.numpy() for name, s in zip(names, state, strict=True)})
    y, *after = session.run(["y", *(f"{name}_next" for name in names)], feed)
    with torch.no_grad():
        wanted, *last = model(x, *state, lengths=torch.tensor(lengths))
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(y[row, :length], wanted[row, :length].numpy(), atol=2e-6, rtol=1e-5)
    for a, b in zip(after, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["lstm-all", "cnn-norm", "tcn-wide"])
def test_without_lengths_every_row_has_the_same(case: str, tmp_path: Path) -> None:
    model = make(CASES[case])
    card = export_model(model, tmp_path / "m.onnx", lengths=False)
    assert card.signature.lengths is None
    assert card.proof["max_error"] <= 1e-5
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 4, I)
    feed = {"x": x.numpy()}
    feed |= {n: s.numpy() for n, s in zip(model.state_names, model.initial_state(3), strict=True)}
    y, *after = session.run(["y", *(f"{name}_next" for name in model.state_names)], feed)
    with torch.no_grad():
        wanted, *last = model(x)
    np.testing.assert_allclose(y, wanted.numpy(), atol=2e-6, rtol=1e-5)
    for a, b in zip(after, last, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-6, rtol=1e-5)


def test_tied_layers_are_stored_once(tmp_path: Path) -> None:
    sizes = {"input_size": H, "output_size": O, "hidden_size": H, "num_layers": 4}
    for name, tied in (("tied", True), ("free", False)):
        export_model(build({"kind": "gru", **sizes, "tie_layers": tied}), tmp_path / f"{name}.onnx")
    weights = {
        name: [i.name for i in onnx.load(tmp_path / f"{name}.onnx").graph.initializer if i.name.endswith("R")]
        for name in ("tied", "free")
    }
    assert weights == {"tied": ["layer0.R"], "free": [f"layer{index}.R" for index in range(4)]}


def test_a_convolution_carries_what_each_layer_has_seen(tmp_path: Path) -> None:
    model = make({"kind": "tcn", "channels": [H, 7], "kernel_size": 3})
    card = export_model(model, tmp_path / "m.onnx")
    assert [(state.input, state.shape, state.batch_axis) for state in card.signature.states] == [
        ("history0", (2, I), 0),
        ("history1", (2, H), 0),
        ("history2", (4, H), 0),
        ("history3", (4, 7), 0),
    ]
    # The proof's sequences are longer than what an output depends on.
    assert model.receptive_field == 13
    deep = make({"kind": "tcn", "channels": [H] * 4})
    assert export_model(deep, tmp_path / "deep.onnx").proof["timesteps"] == deep.receptive_field + 3


def test_a_scaling_far_from_zero_keeps_its_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make({"kind": "lstm", "input_affine": True})
    assert model.input_affine is not None
    # Years, say: mean 2000, deviation 2.
    model.input_affine.standardise(torch.full((I,), 2000.0), torch.full((I,), 2.0))
    card = export_model(model, tmp_path / "years.onnx")
    assert card.proof["max_error"] <= 1e-5
    monkeypatch.setattr("streamcell.export.dense.FOLD_LIMIT", float("inf"))
    with pytest.raises(ExportError, match="ONNX Runtime and PyTorch differ"):
        export_model(model, tmp_path / "folded.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["years.onnx"]


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    model = build({"kind": "mlp", "input_size": I, "hidden_sizes": [H], "output_size": O, "batch_norm": True})
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, tmp_path / "m.onnx")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_in_double_precision_is_exported_in_single(tmp_path: Path) -> None:
    model = make(CASES["lstm-tanh"]).double()
    card = export_model(model, tmp_path / "m.onnx")
    assert card.signature.inputs[0].dtype == "float32"
    assert card.proof["max_error"] <= 1e-5


def test_a_foreign_module_is_sent_to_export_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="export_module"):
        export_model(torch.nn.Linear(2, 2), tmp_path / "m.onnx")


def test_batch_normalisation_without_statistics_is_refused(tmp_path: Path) -> None:
    model = make({"kind": "mlp", "hidden_sizes": [H], "batch_norm": True})
    assert isinstance(model, MLP)
    model.blocks[0].norm = torch.nn.BatchNorm1d(H, track_running_stats=False)
    with pytest.raises(ExportError, match="running statistics"):
        export_model(model, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"path": "m.bin"}, "must end in .onnx"),
        ({"name": "two words"}, "name is letters"),
        ({"precision": "fp8"}, "precision must be one of fp32, fp16, int8"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"tolerance": float("nan")}, "tolerance must be above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = tmp_path / settings.pop("path", "m.onnx")
    with pytest.raises(ExportError, match=text):
        export_model(make(CASES["rnn-tanh"]), path, **settings)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make(CASES["lstm-tanh"])
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(ExportError, match=r"head\.weight holds values that are not finite"):
        export_model(model, tmp_path / "m.onnx")


def test_the_file_needs_nothing_but_onnx_runtime(tmp_path: Path) -> None:
    """A process that cannot import streamcell or torch runs the file by what its card says."""
    model = make(CASES["lstm-2-layers"])
    export_model(model, tmp_path / "m.onnx")
    x = torch.randn(2, 3, I)
    np.save(tmp_path / "x.npy", x.numpy())
    program = """
import json, sys
import numpy as np, onnxruntime as ort
sys.modules["torch"] = sys.modules["streamcell"] = None
session = ort.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
card = json.loads(session.get_modelmeta().custom_metadata_map["streamcell.card"])
x = np.load("x.npy")
signature = card["signature"]
feed = {signature["inputs"][0]["name"]: x}
for s in signature["states"]:
    shape = list(s["shape"])
    shape.insert(s["batch_axis"], len(x))
    feed[s["input"]] = np.full(shape, s["initial"], s["dtype"])
feed[signature["lengths"]] = np.full(len(x), x.shape[1], np.int32)
print(json.dumps(session.run([signature["outputs"][0]["name"]], feed)[0].tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    with torch.no_grad():
        y, *_ = model(x)
    np.testing.assert_allclose(json.loads(done.stdout), y.numpy(), atol=2e-6, rtol=1e-5)


def test_the_card_in_the_file_is_the_card_returned(tmp_path: Path) -> None:
    model = make({"kind": "gru", "num_layers": 2, "distribution": "categorical_logits"})
    training = {"data": "chorales", "seed": 3, "valid_loss": 8.25}
    card = export_model(model, tmp_path / "deep" / "tune.onnx", description="A tune.", training=training)
    assert read_card(onnx.load(tmp_path / "deep" / "tune.onnx")) == card
    assert (card.name, card.kind, card.description, card.precision) == ("tune", "gru", "A tune.", "fp32")
    assert card.training == training
    assert card.signature.lengths == "lengths"
    assert card.signature.layout == "batch_time"
    assert card.signature.outputs[0].distribution == "categorical_logits"
    (state,) = card.signature.states
    assert (state.input, state.output, state.shape, state.batch_axis) == ("h", "h_next", (2, H), 1)
    assert {"streamcell", "torch", "onnx", "onnxruntime", "python"} <= card.versions.keys()
    assert card.created.endswith("+00:00")
    assert {"sequence", "steps", "chunks", "ragged", "ragged states"} <= card.proof["errors"].keys()
    twin = build(card.config)
    twin.load_state_dict(model.state_dict())
    assert twin.config == model.config
