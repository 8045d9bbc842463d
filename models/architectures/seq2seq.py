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

    With a stack, each source token pushes the encoder's output, and each target token pops one, which the decoder reads
    beside the token. If a source is read last symbol first and every target symbol is what one source symbol says,
    the decoder meets each source symbol with all before it (its own state) and all after it (what it pops), as in the
    bidirectional model with alignments of Yao & Zweig (2015); the state stays of one size.

    Args:
        input_size: tokens in all, S + output_size.
        hidden_size: units of every layer of both stacks.
        output_size: target symbols.
        cell: "lstm" or "gru" (the reset gate after the product, as torch's kernels have it).
        num_layers: of each stack.
        embedding_size: of a token; None: as many as units.
        stack: how many of the encoder's outputs are kept, the oldest falling out; an empty one gives zeros. 0: none.

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
        stack: int = 0,
        **common: Any,
    ) -> None:
        positive("hidden_size", hidden_size)
        positive("num_layers", num_layers)
        if stack < 0:
            raise ConfigError(f"stack must not be negative; got {stack}")
        super().__init__(input_size, hidden_size, output_size, **common)
        if self.input_affine is not None:
            raise ConfigError("seq2seq takes tokens, which cannot be scaled: input_affine must be false")
        if self.voices is not None:
            raise ConfigError("seq2seq says one symbol a step, which no voices choose: voices must be 0")
        self.source_size = positive("source symbols (input_size − output_size)", input_size - output_size)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell = choose("cell", cell, CELLS)
        self.embedding_size = positive(
            "embedding_size", hidden_size if embedding_size is None else embedding_size
        )
        self.stack = stack
        # The states that both stacks of layers share.
        self.cell_names = ("h", "c") if cell == "lstm" else ("h",)
        self.state_names = (*self.cell_names, "stack") if stack else self.cell_names
        self.embedding = nn.Embedding(input_size, self.embedding_size)
        nn.init.xavier_uniform_(self.embedding.weight)
        self.encoder = self._layers(self.embedding_size)
        self.decoder = self._layers(self.embedding_size + (hidden_size if stack else 0))

    def _layers(self, input_size: int) -> nn.ModuleList:
        sizes = [input_size] + [self.hidden_size] * (self.num_layers - 1)
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
            "stack": self.stack,
        }

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        sizes = (self.num_layers,) * len(self.cell_names) + (self.stack,) * bool(self.stack)
        return tuple((size, self.hidden_size) for size in sizes)

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
        cells, kept = self._parted(state)
        longest = int(sources.max())
        targets = lengths - sources
        read, cells = self._run(self.encoder, x[:, :longest], cells, sources)
        steps = torch.arange(x.shape[1], device=x.device)
        from_go = (sources[:, None] + steps[: int(targets.max())]).clamp(max=x.shape[1] - 1)
        popped = None
        if kept is not None:
            popped, kept = _pop(read, kept, sources, targets)
        written, cells = self._run(self.decoder, x.gather(1, from_go), cells, targets, popped)
        # Row by row, the encoder's outputs and then the decoder's.
        place = torch.where(steps < sources[:, None], steps, longest + steps - sources[:, None])
        y = torch.cat([read, written], dim=1)
        place = place.clamp(max=y.shape[1] - 1)
        y = y.gather(1, place[:, :, None].expand(-1, -1, self.hidden_size))
        return y, cells if kept is None else (*cells, kept)

    def _parted(self, state: States) -> tuple[States, Tensor | None]:
        """The cells' states, and the stack if there is one."""
        return (state[:-1], state[-1]) if self.stack else (state, None)

    def _step_by_step(self, x: Tensor, state: States, counts: Tensor) -> tuple[Tensor, States]:
        """The definition: both stacks take every step, and the token decides whose result is kept."""
        outputs = []
        for token, running in zip(x.unbind(1), counts.unbind(1), strict=True):
            source = (token < self.source_size)[:, None]
            cells, kept = self._parted(state)
            top = None if kept is None else kept[0][:, None]
            y_encoder, encoded = self._run(self.encoder, token[:, None], cells)
            y_decoder, decoded = self._run(self.decoder, token[:, None], cells, popped=top)
            if kept is not None:
                encoded = (*encoded, torch.cat([y_encoder.transpose(0, 1), kept[:-1]]))
                decoded = (*decoded, torch.cat([kept[1:], torch.zeros_like(kept[:1])]))
            state = tuple(
                torch.where(running[:, None], torch.where(source, a, b), old)
                for a, b, old in zip(encoded, decoded, state, strict=True)
            )
            outputs.append(torch.where(source, y_encoder[:, 0], y_decoder[:, 0]))
        return torch.stack(outputs, dim=1), state

    def _run(
        self,
        layers: nn.ModuleList,
        tokens: Tensor,
        state: States,
        lengths: Tensor | None = None,
        popped: Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """One stack of layers over tokens int64[batch, time], beside them `popped` float32[batch, time, hidden].

        Beyond its length a row's states do not change.
        """
        if lengths is not None and bool((lengths == tokens.shape[1]).all()):
            lengths = None  # packing costs as much as a layer
        y = self.embedding(tokens)
        if popped is not None:
            y = torch.cat([y, self._drop(popped)], dim=2)
        after: list[States] = []
        for index, module in enumerate(layers):
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


def _pop(read: Tensor, kept: Tensor, sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What each target token pops after all source tokens have pushed.

    Args:
        read: float32[batch, time, hidden], what the first `sources` int64[batch] tokens push.
        kept: float32[stack, batch, hidden], the stack before them, its top first.
        targets: int64[batch], how many tokens pop.

    Returns:
        float32[batch, most targets, hidden] and the stack after each row's last target token.
    """
    size = kept.shape[0]
    pushed = torch.cat([kept.transpose(0, 1).flip(1), read], dim=1)

    def at(place: Tensor) -> Tensor:
        """The entries at places int64[batch, count] of the full stack, 0 its top; zeros below its end."""
        index = (size + sources[:, None] - 1 - place).clamp(min=0)
        found = pushed.gather(1, index[:, :, None].expand(-1, -1, pushed.shape[2]))
        return found.masked_fill((place >= size)[:, :, None], 0.0)

    steps = torch.arange(max(size, int(targets.max())), device=read.device)
    popped = at(steps[: int(targets.max())].expand(len(sources), -1))
    return popped, at(targets[:, None] + steps[:size]).transpose(0, 1)
