"""Recurrent layers: the project's scan, torch's kernels and torch's own modules say the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcell.models import ConfigError, GRULayer, LSTMLayer, RecurrentLayer, RNNLayer

B, T, N, H = 5, 7, 3, 4

FUSED: dict[str, Callable[[], RecurrentLayer]] = {
    "rnn tanh": lambda: RNNLayer(N, H),
    "rnn relu": lambda: RNNLayer(N, H, nonlinearity="relu"),
    "lstm": lambda: LSTMLayer(N, H),
    "gru reset after": lambda: GRULayer(N, H, reset_after=True),
}
SCANNED: dict[str, Callable[[], RecurrentLayer]] = {
    "rnn sigmoid": lambda: RNNLayer(N, H, nonlinearity="sigmoid"),
    "lstm relu": lambda: LSTMLayer(N, H, candidate="relu"),
    "gru": lambda: GRULayer(N, H),
}
LENGTHS = {"whole": None, "ragged": torch.tensor([7, 0, 3, 1, 7])}


def randomised(make: Callable[[], RecurrentLayer]) -> RecurrentLayer:
    torch.manual_seed(3)
    layer = make().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.6)
    return layer


def inputs(layer: RecurrentLayer) -> tuple[Tensor, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(B, T, N, dtype=torch.float64, generator=generator).requires_grad_()
    states = tuple(
        torch.randn(B, H, dtype=torch.float64, generator=generator).requires_grad_()
        for _ in layer.state_names
    )
    return x, states


def gradients(
    layer: RecurrentLayer, x: Tensor, states: tuple[Tensor, ...], y: Tensor, after: tuple[Tensor, ...]
) -> list[Tensor]:
    """Of a loss in which every output weighs differently."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    loss = (y * weights).sum() + sum((k + 2) * state.square().sum() for k, state in enumerate(after))
    return list(torch.autograd.grad(loss, [x, *states, *layer.parameters()]))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("make", FUSED.values(), ids=FUSED)
def test_scan_and_kernel_agree_in_value_and_gradient(
    make: Callable[[], RecurrentLayer], lengths: Tensor | None
) -> None:
    layer = randomised(make)
    assert layer.fused
    x, states = inputs(layer)
    y, after = layer(x, states, lengths)
    y_scan, after_scan = layer.scan(x, states, lengths)
    torch.testing.assert_close((y, *after), (y_scan, *after_scan))
    torch.testing.assert_close(
        gradients(layer, x, states, y, after), gradients(layer, x, states, y_scan, after_scan)
    )


@pytest.mark.parametrize("make", {**FUSED, **SCANNED}.values(), ids={**FUSED, **SCANNED})
def test_a_row_stands_still_beyond_its_length(make: Callable[[], RecurrentLayer]) -> None:
    layer = randomised(make)
    x, states = inputs(layer)
    lengths = LENGTHS["ragged"]
    assert lengths is not None
    y, after = layer(x, states, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = tuple(state[row : row + 1] for state in states)
        y_alone, after_alone = layer(x[row : row + 1, :length], alone)
        torch.testing.assert_close(y[row, :length], y_alone[0])
        assert not y[row, length:].any()
        for state, expected in zip(after, after_alone, strict=True):
            torch.testing.assert_close(state[row], expected[0])


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_kernel_variants_are_torch_modules_with_one_bias(kind: str) -> None:
    layer = randomised(
        FUSED["gru reset after" if kind == "gru" else "lstm" if kind == "lstm" else "rnn tanh"]
    )
    module = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind](N, H, batch_first=True).double()
    with torch.no_grad():
        module.weight_ih_l0.copy_(layer.weight_ih)
        module.weight_hh_l0.copy_(layer.weight_hh)
        module.bias_ih_l0.copy_(layer.bias)
        module.bias_hh_l0.zero_()
        if kind == "gru":
            module.bias_hh_l0[2 * H :] = layer.bias_hn
    x, states = inputs(layer)
    stacked = tuple(state[None] for state in states)
    y, after = module(x, stacked if kind == "lstm" else stacked[0])
    torch.testing.assert_close(
        layer(x, states), (y, tuple(s[0] for s in (after if kind == "lstm" else (after,))))
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("make", SCANNED.values(), ids=SCANNED)
def test_scanned_variants_follow_the_textbook(make: Callable[[], RecurrentLayer]) -> None:
    layer = randomised(make)
    assert not layer.fused
    x_all, states = inputs(layer)
    W, U, b = (p.detach().numpy() for p in (layer.weight_ih, layer.weight_hh, layer.bias))
    x = x_all.detach().numpy()
    h, c = (states[0].detach().numpy(), states[-1].detach().numpy())
    for t in range(T):
        gates = [x[:, t] @ W[k * H : (k + 1) * H].T + b[k * H : (k + 1) * H] for k in range(layer.gates)]
        parts = [U[k * H : (k + 1) * H].T for k in range(layer.gates)]
        if isinstance(layer, RNNLayer):
            h = sigmoid(gates[0] + h @ parts[0])
        elif isinstance(layer, LSTMLayer):
            i, f, g, o = (gate + h @ part for gate, part in zip(gates, parts, strict=True))
            c = sigmoid(i) * np.maximum(g, 0) + sigmoid(f) * c
            h = sigmoid(o) * np.tanh(c)
        else:
            r, u = sigmoid(gates[0] + h @ parts[0]), sigmoid(gates[1] + h @ parts[1])
            h = u * h + (1 - u) * np.tanh(gates[2] + (r * h) @ parts[2])
    y, after = layer(x_all, states)
    np.testing.assert_allclose(y[:, -1].detach().numpy(), h, rtol=1e-12)
    np.testing.assert_allclose(after[0].detach().numpy(), h, rtol=1e-12)
    if isinstance(layer, LSTMLayer):
        np.testing.assert_allclose(after[1].detach().numpy(), c, rtol=1e-12)


@pytest.mark.parametrize(("input_size", "hidden"), [(1, 1), (3, 4), (88, 256)])
def test_an_lstm_layer_has_one_bias_a_gate(input_size: int, hidden: int) -> None:
    count = sum(p.numel() for p in LSTMLayer(input_size, hidden).parameters() if p.requires_grad)
    assert count == (input_size + hidden + 1) * hidden * 4


@pytest.mark.parametrize("make", {**FUSED, **SCANNED}.values(), ids={**FUSED, **SCANNED})
def test_no_timesteps_leave_the_state_as_it_is(make: Callable[[], RecurrentLayer]) -> None:
    layer = randomised(make)
    x, states = inputs(layer)
    y, after = layer(x[:, :0], states)
    assert y.shape == (B, 0, H)
    torch.testing.assert_close(after, states)


def test_unknown_variants_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="nonlinearity must be one of tanh, relu, sigmoid; got 'swish'"):
        RNNLayer(N, H, nonlinearity="swish")
    with pytest.raises(ConfigError, match="candidate must be one of tanh, relu; got 'gelu'"):
        LSTMLayer(N, H, candidate="gelu")
