"""Forward and back-propagation of a 3-2-2 sigmoid network against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamcell.models import MLP

X = torch.tensor([[[1.0, 4.0, 5.0]]], dtype=torch.float64)
TARGETS = torch.tensor([[[0.1, 0.05]]], dtype=torch.float64)
GRADIENTS = (
    *(0.00198391, 0.00040429, 0.00793565, 0.00161716, 0.00991956, 0.00202145),
    *(0.07653513, 0.11827902, 0.07718831, 0.11928846),
)


def close(found: Tensor, expected: tuple[float, ...], tolerance: float) -> None:
    torch.testing.assert_close(
        found.detach().flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance
    )


@pytest.fixture
def network() -> MLP:
    """w1..w9 = 0.1..0.9, w10 = 0.1; h1 meets w1, w3, w5, h2 w2, w4, w6; o1 meets w7, w9, o2 w8, w10."""
    model = MLP(3, [2], 2, activation="sigmoid", output_activation="sigmoid").double()
    with torch.no_grad():
        model.blocks[0].linear.weight.copy_(torch.tensor([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]]))
        model.head.weight.copy_(torch.tensor([[0.7, 0.9], [0.8, 0.1]]))
        model.blocks[0].linear.bias.fill_(0.5)
        model.head.bias.fill_(0.5)
    return model


def test_forward_gives_the_worked_values(network: MLP) -> None:
    before = network.blocks[0].linear(X)
    close(before, (4.3, 5.3), 5e-7)
    hidden = network.blocks[0](X)
    close(hidden, (0.986613, 0.995033), 5e-7)
    close(network.head(hidden), (2.086159, 1.388794), 5e-7)
    (y,) = network(X)
    close(y, (0.889551, 0.800400), 5e-7)
    close(0.5 * (y - TARGETS).square().sum(), (0.593245,), 5e-7)


def test_backward_gives_the_worked_gradients(network: MLP) -> None:
    (y,) = network(X)
    (0.5 * (y - TARGETS).square().sum()).backward()
    hidden, output = network.blocks[0].linear, network.head
    # Columns of the hidden matrix are inputs: w1, w2 | w3, w4 | w5, w6. Of the output matrix: w7, w8 | w9, w10.
    close(torch.cat([hidden.weight.grad.T.flatten(), output.weight.grad.T.flatten()]), GRADIENTS, 5e-9)
    # A layer's units share one bias in the worked example: its gradient is the sum over them.
    close(torch.stack([hidden.bias.grad.sum(), output.bias.grad.sum()]), (0.00238820, 0.19745750), 5e-9)
