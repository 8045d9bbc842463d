"""What the kinds are made of: convolutions against torch's own, residual and tied stacks, initialisations."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from streamcell.models import (
    CNN,
    GRU,
    LSTM,
    RNN,
    TCN,
    CausalConv,
    ConfigError,
    GRULayer,
    LSTMLayer,
    RecurrentLayer,
    RNNLayer,
    build,
)

B, T, I, H = 3, 11, 3, 5  # noqa: E741


@pytest.mark.parametrize(("kernel", "dilation"), [(2, 1), (3, 1), (3, 4), (5, 2)])
def test_a_causal_convolution_is_torchs_with_zeros_before_it(kernel: int, dilation: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv(I, H, kernel_size=kernel, dilation=dilation, activation="identity")
    x = torch.randn(B, T, I)
    y, history = layer(x, torch.zeros(B, *layer.state_shape))
    before = (kernel - 1) * dilation
    padded = F.pad(x.transpose(1, 2), (before, 0))
    wanted = F.conv1d(padded, layer.conv.weight, layer.conv.bias, dilation=dilation)
    torch.testing.assert_close(y, wanted.transpose(1, 2))
    torch.testing.assert_close(history, padded.transpose(1, 2)[:, -before:])
    # Nothing later than t acts on y_t.
    other = x.clone()
    other[:, 6:] += 1
    torch.testing.assert_close(layer(other, torch.zeros(B, *layer.state_shape))[0][:, :6], y[:, :6])


@pytest.mark.parametrize("kernel", [2, 3])
def test_an_output_depends_on_the_receptive_field_and_no_further(kernel: int) -> None:
    torch.manual_seed(1)
    model = TCN(1, [4, 4, 4], 1, kernel_size=kernel, activation="sigmoid").double().eval()
    sees = model.receptive_field
    assert sees == 1 + 2 * (kernel - 1) * (1 + 2 + 4)
    x = torch.randn(1, sees + 3, 1, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0][0, -1, 0], x)
    assert gradient[0, :, 0].abs().gt(0).tolist() == [False] * 3 + [True] * sees


def test_a_block_adds_its_input_through_a_skip_where_channels_differ() -> None:
    torch.manual_seed(2)
    model = TCN(I, [H, H], 2).eval()
    assert isinstance(model.skips[0], nn.Linear)
    assert isinstance(model.skips[1], nn.Identity)
    x = torch.randn(B, T, I)
    with torch.no_grad():
        for parameter in model.layers.parameters():
            parameter.zero_()
        # Convolutions that give zero leave the skips, through the blocks' activations.
        torch.testing.assert_close(model(x)[0], model.head(torch.relu(model.skips[0](x))))


def test_convolutions_learn_their_statistics_from_real_timesteps_only() -> None:
    torch.manual_seed(3)
    ragged, exact = (CNN(I, [H], 2, kernel_size=2, batch_norm=True) for _ in range(2))
    exact.load_state_dict(ragged.state_dict())
    x = torch.randn(2, 6, I)
    x[1, 4:] = 1e6  # padding
    ragged(x, lengths=torch.tensor([6, 4]))
    outputs = [exact.layer(0).conv(F.pad(row.T, (1, 0)))[:, :n].T for row, n in zip(x, (6, 4), strict=True)]
    rows = torch.cat(outputs)
    norm = ragged.layer(0).norm
    assert norm is not None
    torch.testing.assert_close(norm.running_mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * rows.var(0))


@pytest.mark.parametrize("kind", ["mlp", "cnn", "tcn"])
@pytest.mark.parametrize("real", [0, 1])
def test_one_timestep_is_normalised_by_what_was_learned_before(kind: str, real: int) -> None:
    torch.manual_seed(7)
    sizes = {"hidden_sizes": [H]} if kind == "mlp" else {"channels": [H]}
    model = build({"kind": kind, "input_size": I, "output_size": 2, "batch_norm": True, **sizes})
    model(torch.randn(4, 9, I))
    learned = {name: value.clone() for name, value in model.named_buffers()}
    x = torch.randn(1, 2, I)
    y, *_ = model(x, lengths=torch.tensor([real]))
    assert all(torch.equal(value, learned[name]) for name, value in model.named_buffers())
    torch.testing.assert_close(y, model.eval()(x, lengths=torch.tensor([real]))[0])


def test_a_residual_stack_adds_what_went_in() -> None:
    torch.manual_seed(4)
    model = GRU(I, H, 2, num_layers=3, residual=True, layer_norm=True)
    assert [model.adds_input(index) for index in range(3)] == [False, True, True]
    x = torch.randn(B, T, I)
    u = x
    for index in range(3):
        assert model.norms is not None
        v = u if index == 0 else model.norms[index - 1](u)
        y, _ = model.layer(index)(v, (torch.zeros(B, H),))
        u = y if index == 0 else u + y
    torch.testing.assert_close(model(x)[0], model.head(model.norms[-1](u)))


@pytest.mark.parametrize(("input_size", "own"), [(I, 2), (H, 1)])
def test_tied_layers_are_one_set_of_weights_and_learn_from_every_place(input_size: int, own: int) -> None:
    torch.manual_seed(5)
    model = LSTM(input_size, H, 2, num_layers=4, tie_layers=True)
    assert len(model.layers) == own
    assert model.layer(1) is model.layer(3)
    assert [tuple(s.shape) for s in model.initial_state(2)] == [(4, 2, H)] * 2
    free = LSTM(input_size, H, 2, num_layers=4)
    with torch.no_grad():
        free.head.load_state_dict(model.head.state_dict())
        for index in range(4):
            free.layer(index).load_state_dict(model.layer(index).state_dict())
    x = torch.randn(B, T, input_size)
    torch.testing.assert_close(model(x), free(x))
    for each in (model, free):
        each(x)[0].square().sum().backward()
    last = [p.grad for p in model.layer(3).parameters()]
    places = [index for index in range(4) if model.layer(index) is model.layer(3)]
    for position, gradient in enumerate(last):
        parts = [list(free.layer(index).parameters())[position].grad for index in places]
        torch.testing.assert_close(gradient, sum(parts))


def test_weights_begin_as_asked() -> None:
    torch.manual_seed(6)
    eye = torch.eye(H)
    for gate in LSTMLayer(I, H).weight_hh.chunk(4):
        torch.testing.assert_close(gate @ gate.T, eye)
    assert torch.equal(RNNLayer(I, H, recurrent_init="identity").weight_hh, eye)
    uniform = RNNLayer(I, 400, recurrent_init="uniform").weight_hh
    assert 0.045 < uniform.abs().max() <= 400**-0.5
    glorot = RNNLayer(I, 400, recurrent_init="glorot").weight_hh
    assert 0.08 < glorot.abs().max() <= (6 / 800) ** 0.5
    biases = [LSTMLayer(I, H, **settings).bias for settings in ({}, {"forget_bias": -2.0})]
    for bias, forget in zip(biases, (1.0, -2.0), strict=True):
        assert bias.tolist() == [0.0] * H + [forget] * H + [0.0] * 2 * H
    model = build(
        {"kind": "rnn", "input_size": I, "hidden_size": H, "output_size": 1, "recurrent_init": "identity"}
    )
    assert isinstance(model, RNN)
    assert torch.equal(model.layer(0).weight_hh, eye)


@pytest.mark.parametrize("layer_type", [RNNLayer, LSTMLayer, GRULayer])
@pytest.mark.parametrize("way", ["forward", "scan"])
def test_dropped_recurrent_weights_are_zero_for_a_whole_call_and_only_in_training(
    layer_type: type[RecurrentLayer], way: str
) -> None:
    torch.manual_seed(7)
    layer, twin = layer_type(I, H), layer_type(I, H)
    layer.weight_drop = 0.4
    x, states = torch.randn(B, T, I), tuple(torch.randn(B, H) for _ in layer.state_names)
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(getattr(layer.eval(), way)(x, states), getattr(twin, way)(x, states))
    layer.train()
    torch.manual_seed(8)
    left = layer.recurrent.detach()
    gone = left == 0
    assert 0.2 < gone.float().mean() < 0.6
    torch.testing.assert_close(left[~gone], layer.weight_hh[~gone] / 0.6)
    torch.manual_seed(8)
    y, _ = getattr(layer, way)(x, states)
    y.sum().backward()
    assert layer.weight_hh.grad is not None
    assert not layer.weight_hh.grad[gone].any()
    assert layer.weight_hh.grad[~gone].all()
    with torch.no_grad():
        twin.weight_hh.copy_(left)
        torch.testing.assert_close(y, getattr(twin, way)(x, states)[0])
        assert not torch.equal(y, getattr(layer, way)(x, states)[0])  # the next call leaves out others


def test_a_model_hands_its_share_of_dropped_weights_to_every_layer() -> None:
    config = {"kind": "gru", "input_size": I, "hidden_size": H, "output_size": 1, "num_layers": 2}
    model = build({**config, "weight_drop": 0.25})
    assert isinstance(model, GRU)
    assert [model.layer(index).weight_drop for index in range(2)] == [0.25, 0.25]
    assert model.config["weight_drop"] == 0.25
    assert build(config).config["weight_drop"] == 0.0
    with pytest.raises(ConfigError, match=r"weight_drop must be in \[0, 1\); got 1"):
        build({**config, "weight_drop": 1})
