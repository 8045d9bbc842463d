"""Whole models: explicit state, ragged batches, configuration there and back, typed errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from streamcell.models import MLP, Affine, ConfigError, MLPBlock, SequenceModel, ShapeError, build

SIZES = {"input_size": 3, "hidden_size": 5, "output_size": 2, "num_layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "rnn": {"kind": "rnn", **SIZES},
    "rnn relu": {"kind": "rnn", **SIZES, "nonlinearity": "relu"},
    "rnn sigmoid": {"kind": "rnn", **SIZES, "nonlinearity": "sigmoid", "output_activation": "softmax"},
    "lstm": {"kind": "lstm", **SIZES, "dropout": 0.4, "distribution": "bernoulli_logits"},
    "lstm voices": {"kind": "lstm", **SIZES, "voices": 3, "distribution": "bernoulli_logits"},
    "lstm relu": {"kind": "lstm", **SIZES, "candidate": "relu", "output_activation": "tanh"},
    "gru": {"kind": "gru", **SIZES, "input_affine": True, "output_affine": True, "distribution": "real"},
    "gru reset after": {"kind": "gru", **SIZES, "reset_after": True},
    "lstm residual": {"kind": "lstm", **SIZES, "num_layers": 3, "residual": True, "layer_norm": True},
    "gru tied": {"kind": "gru", **SIZES, "num_layers": 3, "tie_layers": True, "recurrent_init": "identity"},
    "cnn": {"kind": "cnn", "input_size": 3, "output_size": 2, "channels": [5, 4], "batch_norm": True},
    "tcn": {
        "kind": "tcn",
        "input_size": 3,
        "output_size": 2,
        "channels": [5, 5, 4],
        "kernel_size": 2,
        "activation": "tanh",
        "input_affine": True,
        "distribution": "categorical_logits",
    },
    "mlp": {
        "kind": "mlp",
        "input_size": 3,
        "output_size": 2,
        "hidden_sizes": [5, 5],
        "activation": "gelu",
        "residual": True,
        "batch_norm": True,
    },
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(1)
    return build(request.param).eval()


def test_configuration_builds_a_twin(model: SequenceModel) -> None:
    config = json.loads(json.dumps(model.config))
    twin = build(config).eval()
    assert twin.config == model.config
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 4, 3)
    torch.testing.assert_close(twin(x), model(x))


def test_chunks_with_the_state_handed_on_equal_the_whole(model: SequenceModel) -> None:
    x = torch.randn(4, 9, 3)
    y, *after = model(x)
    state = model.initial_state(4)
    pieces = []
    for chunk in x.split([1, 3, 5], dim=1):
        piece, *state = model(chunk, *state)
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), y)
    torch.testing.assert_close(list(state), after)
    assert len(after) == len(model.state_names)


def test_ragged_rows_equal_each_row_alone(model: SequenceModel) -> None:
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 2, 0, 5], dtype=torch.int32)
    start = tuple(torch.randn_like(tensor) for tensor in model.initial_state(4))
    y, *after = model(x, *start, lengths=lengths)
    axis = model.state_axis
    for row, length in enumerate(lengths.tolist()):
        alone, *state = model(
            x[row : row + 1, :length], *(s.narrow(axis, row, 1).contiguous() for s in start)
        )
        torch.testing.assert_close(y[row, :length], alone[0])
        assert not y[row, length:].any()
        for got, expected in zip(after, state, strict=True):
            torch.testing.assert_close(got.narrow(axis, row, 1), expected)


def test_the_initial_state_is_zeros_and_the_default() -> None:
    model = build(CONFIGS["lstm"]).eval()
    state = model.initial_state(3)
    assert [tuple(s.shape) for s in state] == [(2, 3, 5)] * 2
    assert not any(s.any() for s in state)
    x = torch.randn(3, 4, 3)
    torch.testing.assert_close(model(x), model(x, *state))


def test_dropout_acts_in_training_only() -> None:
    model = build(CONFIGS["lstm"])
    x = torch.randn(2, 4, 3)
    assert not torch.equal(model(x)[0], model(x)[0])
    model.eval()
    assert torch.equal(model(x)[0], model(x)[0])


def test_standardisation_is_part_of_the_model() -> None:
    model = build(CONFIGS["gru"]).eval()
    plain = build({**CONFIGS["gru"], "input_affine": False, "output_affine": False}).eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "affine" not in k})
    mean, std = torch.tensor([10.0, -3.0, 0.5]), torch.tensor([2.0, 5.0, 0.1])
    assert isinstance(model.input_affine, Affine)
    assert isinstance(model.output_affine, Affine)
    model.input_affine.standardise(mean, std)
    model.output_affine.restore(mean[:2], std[:2])
    raw = torch.randn(2, 6, 3) * std + mean
    torch.testing.assert_close(
        model(raw)[0], plain((raw - mean) / std)[0] * std[:2] + mean[:2], rtol=1e-4, atol=1e-5
    )
    assert not any("affine" in name for name, _ in model.named_parameters())


def test_batch_norm_learns_from_real_timesteps_only() -> None:
    torch.manual_seed(0)
    config = {**CONFIGS["mlp"], "residual": False}
    ragged, exact = build(config), build(config)
    exact.load_state_dict(ragged.state_dict())
    x = torch.randn(2, 5, 3)
    y, *_ = ragged(x, lengths=torch.tensor([5, 2]))
    rows, *_ = exact(torch.cat([x[0], x[1, :2]])[None])
    torch.testing.assert_close(torch.cat([y[0], y[1, :2]])[None], rows)
    assert isinstance(ragged, MLP)
    torch.testing.assert_close(ragged.blocks[0].norm.running_mean, exact.blocks[0].norm.running_mean)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "gelu"])
def test_a_residual_block_adds_its_input(activation: str) -> None:
    block = MLPBlock(4, 4, activation=activation, residual=True)
    x = torch.randn(6, 4)
    function = {"gelu": torch.nn.functional.gelu}.get(activation) or getattr(torch, activation)
    torch.testing.assert_close(block(x), x + function(block.linear(x)))
    assert not MLPBlock(4, 5, residual=True).residual


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "esn"}, "kind must be one of mlp, rnn, lstm, gru, cnn, tcn, seq2seq; got 'esn'"),
        ({"kind": None}, "kind must be one of"),
        ({"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        (
            {"voices": 2, "distribution": "real"},
            "voices choose keys: they need bernoulli_logits and no output_activation; got real and identity",
        ),
        (
            {"voices": 2, "distribution": "bernoulli_logits", "output_activation": "sigmoid"},
            "got bernoulli_logits and sigmoid",
        ),
        ({"voices": -1, "distribution": "bernoulli_logits"}, "voices must be at least 1; got -1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\); got 1.0"),
        ({"candidate": "gelu"}, "candidate must be one of tanh, relu"),
        ({"nonlinearity": "relu"}, "lstm has no setting nonlinearity"),
        ({"output_activation": "gelu"}, "output_activation must be one of"),
        ({"distribution": "poisson"}, "distribution must be one of"),
        ({"recurrent_init": "zeros"}, "recurrent_init must be one of orthogonal, identity, glorot, uniform"),
    ],
)
def test_a_configuration_that_fits_no_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({**CONFIGS["lstm"], **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": 1}, "kernel_size must be at least 2"),
        ({"channels": []}, "layers must be at least 1"),
        ({"channels": [4, 0]}, "channels must be at least 1"),
        ({"dilation_base": 0}, "dilation_base must be at least 1"),
        ({"activation": "swish"}, "activation must be one of"),
        ({"hidden_size": 4}, "tcn has no setting hidden_size"),
    ],
)
def test_a_convolution_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({**CONFIGS["tcn"], **change})


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="lstm needs hidden_size"):
        build({"kind": "lstm", "input_size": 3, "output_size": 2})


def test_tensors_that_do_not_fit_are_refused() -> None:
    model = build(CONFIGS["lstm"])
    x = torch.zeros(2, 4, 3)
    h = torch.zeros(2, 2, 5)
    with pytest.raises(ShapeError, match=r"x must be \[batch, time, 3\]; got \[2, 4, 7\]"):
        model(torch.zeros(2, 4, 7))
    with pytest.raises(ShapeError, match="lstm takes h, c; got 1 state tensors"):
        model(x, h)
    with pytest.raises(ShapeError, match=r"state c must be \[2, 2, 5\]; got \[2, 9, 5\]"):
        model(x, h, torch.zeros(2, 9, 5))
    with pytest.raises(ShapeError, match=r"lengths must be integers \[2\]"):
        model(x, lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(ShapeError, match="lengths must be between 0 and 4"):
        model(x, lengths=torch.tensor([1, 5]))
