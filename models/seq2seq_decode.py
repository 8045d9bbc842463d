"""Decoding in PyTorch: the most likely symbol at each step, and beam search. What the server does is held to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from .scan import States
from .seq2seq import BOUNDARY, Seq2Seq

BATCH = 256


@torch.no_grad()
def greedy(model: Seq2Seq, sources: Sequence[Sequence[int]], *, limit: int) -> list[list[int]]:
    """The arg-max symbols of each source.

    Args:
        model: in eval mode.
        sources: source tokens.
        limit: the most symbols of an answer.

    Returns:
        Classes without the boundary; an answer that reaches `limit` has none.
    """
    answers: list[list[int]] = [[] for _ in sources]
    for rows in _by_length(sources):
        state = encode(model, [sources[row] for row in rows])
        live = list(rows)
        token = torch.full((len(live),), model.source_size + BOUNDARY, device=model.head.weight.device)
        for _ in range(limit):
            logits, *state_after = model(token[:, None], *state)
            best = logits[:, 0].argmax(1)
            going = best != BOUNDARY
            for row, symbol in zip(live, best.tolist(), strict=True):
                if symbol != BOUNDARY:
                    answers[row].append(symbol)
            live = [row for row, goes in zip(live, going.tolist(), strict=True) if goes]
            if not live:
                break
            token = best[going] + model.source_size
            state = tuple(tensor[:, going] for tensor in state_after)
    return answers


def encode(model: Seq2Seq, sources: Sequence[Sequence[int]]) -> States:
    """The states after sources of one length, float32[layers, batch, hidden] each."""
    tokens = torch.tensor(sources, dtype=torch.int64, device=model.head.weight.device)
    _, *state = model(tokens)
    return tuple(state)


def _by_length(sources: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of one length each: torch's kernels run those without packing."""
    order = sorted(range(len(sources)), key=lambda row: len(sources[row]))
    start = 0
    while start < len(order):
        length = len(sources[order[start]])
        end = start
        while end < len(order) and end - start < BATCH and len(sources[order[end]]) == length:
            end += 1
        yield order[start:end]
        start = end
