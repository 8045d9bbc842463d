"""Decoding in PyTorch: the most likely symbol at each step, and beam search. The reference for the server's tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from streamcell.models.layers.scan import States

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


@dataclass(frozen=True)
class Found:
    """One answer of a beam search.

    Attributes:
        classes: without the boundary.
        log_probability: of all of it, the boundary included.
        score: that over the length (boundary included) to the power `length_power`.
        stopped: whether it ends with the boundary; otherwise it was cut at the limit.
    """

    classes: tuple[int, ...]
    log_probability: float
    score: float
    stopped: bool


@torch.no_grad()
def beam(
    model: Seq2Seq,
    source: Sequence[int],
    *,
    width: int,
    limit: int,
    results: int = 1,
    length_power: float = 1.0,
) -> list[Found]:
    """The best answers that a beam of `width` finds, the best first.

    At each step every live answer is extended by every class. The `width` likeliest extensions that do not end stay
    live; an extension that ends, and is among the `width` likeliest of all, is found. The search ends after `limit`
    classes, or once `results` answers are found that score higher than every live answer.

    Args:
        model: in eval mode.
        source: source tokens.
    """

    def score(log_probability: float, length: int) -> float:
        return log_probability / float(length**length_power)

    state = encode(model, [source])
    tokens = torch.tensor([model.source_size + BOUNDARY], device=model.head.weight.device)
    live: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    found: list[Found] = []
    for length in range(1, limit + 1):
        logits, *after = model(tokens[:, None], *state)
        totals = torch.log_softmax(logits[:, 0].double(), dim=1)
        totals += torch.tensor([each for _, each in live], dtype=torch.float64, device=totals.device)[:, None]
        order = torch.sort(totals.flatten(), descending=True, stable=True)
        grown: list[tuple[int, int, float]] = []
        for rank, (total, place) in enumerate(
            zip(order.values.tolist(), order.indices.tolist(), strict=True)
        ):
            parent, last = divmod(place, totals.shape[1])
            if last != BOUNDARY:
                grown.append((parent, last, total))
            elif rank < width:
                found.append(Found(live[parent][0], total, score(total, length), stopped=True))
            if len(grown) == width:
                break
        live = [((*live[parent][0], last), total) for parent, last, total in grown]
        if length == limit:
            found += [Found(classes, total, score(total, length), stopped=False) for classes, total in live]
        found = sorted(found, key=lambda each: each.score, reverse=True)[:results]
        if len(found) == results and found[-1].score >= score(live[0][1], length):
            break
        parents = torch.tensor([parent for parent, _, _ in grown], device=tokens.device)
        state = tuple(tensor[:, parents] for tensor in after)
        tokens = torch.tensor([model.source_size + last for _, last, _ in grown], device=tokens.device)
    return found


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
