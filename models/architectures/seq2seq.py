"""Encoder–decoder: two stacks of recurrent layers that hand one state to each other, in one stateful module."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from streamcell.models.checks import choose, positive
from streamcell.models.errors import ConfigError, ShapeError
from streamcell.models.layers.recurrent import GRULayer, LSTMLayer, RecurrentLayer
from streamcell.models.layers.scan import States

from .base import SequenceModel

CELLS = ("lstm", "gru")
# The class that ends the decoder's output, and whose token starts the decoder.
BOUNDARY = 0


class Seq2Seq(SequenceModel):
    """Sutskever et al. (2014): the encoder's last state is the decoder's first.

    x holds tokens of one table: source tokens 0 … S − 1, then target tokens S … S + output_size − 1. At a source
    token the encoder's layers take the step, at a target token the decoder's, from the same state; so a session
    streams a source sequence, then target tokens, and needs nothing else. y is the head over the running
    stack's top layer; it parametrises the next target symbol, as classes 0 … output_size − 1, where class k is
    token S + k. Class 0 is the boundary: its token starts the decoder, the class ends what the decoder says.
    What y says at source tokens means nothing.

    Args:
        input_size: tokens in all, S + output_size.
        hidden_size: units of every layer of both stacks.
        output_size: target symbols.
        cell: "lstm" or "gru" (the reset gate after the product, as torch's kernels have it).
        num_layers: of each stack.
        embedding_size: of a token; None: as many as units.

    Further keyword arguments are those of `SequenceModel`.
    """

    kind = "seq2seq"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        cell: str = "lstm",
        num_layers: int = 1,
        embedding_size: int | None = None,
        **common: Any,
    ) -> None:
        positive("hidden_size", hidden_size)
        positive("num_layers", num_layers)
        super().__init__(input_size, hidden_size, output_size, **common)
        if self.input_affine is not None:
            raise ConfigError("seq2seq takes tokens, which cannot be scaled: input_affine must be false")
        self.source_size = positive("source symbols (input_size − output_size)", input_size - output_size)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = choose("cell", cell, CELLS)
        self.embedding_size = positive(
            "embedding_size", hidden_size if embedding_size is None else embedding_size
        )
        self.state_names = ("h", "c") if cell == "lstm" else ("h",)
        self.embedding = nn.Embedding(input_size, self.embedding_size)
        nn.init.xavier_uniform_(self.embedding.weight)
        self.encoder, self.decoder = self._stack(), self._stack()

    def _stack(self) -> nn.ModuleList:
        sizes = [self.embedding_size] + [self.hidden_size] * (self.num_layers - 1)
        if self.cell == "lstm":
            return nn.ModuleList(LSTMLayer(size, self.hidden_size) for size in sizes)
        return nn.ModuleList(GRULayer(size, self.hidden_size, reset_after=True) for size in sizes)

    @property
    def config(self) -> dict[str, Any]:
        return {
            **super().config,
            "hidden_size": self.hidden_size,
            "cell": self.cell,
            "num_layers": self.num_layers,
            "embedding_size": self.embedding_size,
        }

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.num_layers, self.hidden_size),) * len(self.state_names)

    def forward(self, x: Tensor, *state: Tensor, lengths: Tensor | None = None) -> States:
        """As every model, but x is int64[batch, time]: tokens of any mix.

        If every row is source tokens and then target tokens, as in training with teacher forcing, each stack
        runs once over its part on torch's kernels. Any other mix runs step by step.
        """
        return super().forward(x, *state, lengths=lengths)

    def _body(self, x: Tensor, state: States, lengths: Tensor | None) -> tuple[Tensor, States]:
        source = x < self.source_size
        steps = torch.arange(x.shape[1], device=x.device)
        counts = torch.ones_like(source) if lengths is None else steps < lengths[:, None]
        turns_back = source[:, 1:] & ~source[:, :-1] & counts[:, 1:]
        if bool(turns_back.any()):
            return self._step_by_step(x, state, counts)
        return self._in_two(x, state, (source & counts).sum(1), counts.sum(1))

    def _in_two(self, x: Tensor, state: States, sources: Tensor, lengths: Tensor) -> tuple[Tensor, States]:
        """Rows of `sources` int64[batch] source tokens and target tokens up to `lengths` int64[batch]."""
        if x.numel() == 0 or not bool(lengths.any()):
            return x.new_zeros(*x.shape, self.hidden_size, dtype=self.head.weight.dtype), state
        longest = int(sources.max())
        targets = lengths - sources
        read, state = self._run(self.encoder, x[:, :longest], state, sources)
        steps = torch.arange(x.shape[1], device=x.device)
        from_go = (sources[:, None] + steps[: int(targets.max())]).clamp(max=x.shape[1] - 1)
        written, state = self._run(self.decoder, x.gather(1, from_go), state, targets)
        # Row by row, the encoder's outputs and then the decoder's.
        place = torch.where(steps < sources[:, None], steps, longest + steps - sources[:, None])
        y = torch.cat([read, written], dim=1)
        place = place.clamp(max=y.shape[1] - 1)
        return y.gather(1, place[:, :, None].expand(-1, -1, self.hidden_size)), state

    def _step_by_step(self, x: Tensor, state: States, counts: Tensor) -> tuple[Tensor, States]:
        """The definition: both stacks take every step, and the token decides whose result is kept."""
        outputs = []
        for token, running in zip(x.unbind(1), counts.unbind(1), strict=True):
            source = (token < self.source_size)[:, None]
            y_encoder, encoded = self._run(self.encoder, token[:, None], state)
            y_decoder, decoded = self._run(self.decoder, token[:, None], state)
            state = tuple(
                torch.where(running[:, None], torch.where(source, a, b), old)
                for a, b, old in zip(encoded, decoded, state, strict=True)
            )
            outputs.append(torch.where(source, y_encoder[:, 0], y_decoder[:, 0]))
        return torch.stack(outputs, dim=1), state

    def _run(
        self, stack: nn.ModuleList, tokens: Tensor, state: States, lengths: Tensor | None = None
    ) -> tuple[Tensor, States]:
        """One stack over tokens int64[batch, time]; beyond its length a row's states do not change."""
        if lengths is not None and bool((lengths == tokens.shape[1]).all()):
            lengths = None  # packing costs as much as a layer
        y = self.embedding(tokens)
        after: list[States] = []
        for index, module in enumerate(stack):
            layer = cast(RecurrentLayer, module)
            y, states = layer(
                y if index == 0 else self._drop(y), tuple(tensor[index] for tensor in state), lengths
            )
            after.append(states)
        return y, tuple(torch.stack(tensors) for tensors in zip(*after, strict=True))

    def _check_x(self, x: Tensor) -> None:
        if x.dim() != 2 or x.is_floating_point():
            raise ShapeError(f"x must be integers [batch, time]; got {x.dtype} {list(x.shape)}")
        if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < self.input_size:
            raise ShapeError(
                f"tokens must be 0 to {self.input_size - 1}; got {int(x.min())} to {int(x.max())}"
            )
