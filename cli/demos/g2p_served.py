"""Words through a live server: a session each, letters in as one message, phonemes out by arg-max and by beam."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcell.cli.demos.shared.prepare import Trained
from streamcell.client.local_server import ServerProcess

if TYPE_CHECKING:
    from streamcell.client import AsyncClient
    from streamcell.models import Pronunciation, Symbols

WIDTH = 4
# The most phonemes of an answer.
LIMIT = 40


@dataclass(frozen=True)
class Pronounced:
    """What the server said of each word.

    Attributes:
        arg_max: the likeliest phoneme at each step.
        beam: the best answer of a beam search.
        width: of the beam.
        figures: the report's measured entries.
    """

    arg_max: list[Pronunciation]
    beam: list[Pronunciation]
    width: int
    figures: dict[str, Any]


def pronounce_served(
    trained: Trained, symbols: Symbols, words: Sequence[str], *, sessions: int
) -> Pronounced:
    """Serve the model and ask it for every word, `sessions` words at a time.

    Raises:
        DataError: a word has a character that the table has not.
        ServerProcessError: the server did not come up.
        StreamCellError: a session failed.
    """
    letters = [np.array(symbols.spell(word), np.int64) for word in words]
    with ServerProcess(trained.models) as server:
        began_s = time.perf_counter()
        answers = asyncio.run(_all(server, trained.name, letters, sessions))
        elapsed_s = time.perf_counter() - began_s
        rows, runs = (server.metric(f"streamcell_batch_rows_{what}") for what in ("sum", "count"))
    arg_max, beam = (
        [symbols.pronunciation(classes) for classes in column] for column in zip(*answers, strict=True)
    )
    figures = {"words_per_s": len(words) / elapsed_s, "sessions": sessions, "mean_batch": rows / runs}
    return Pronounced(arg_max, beam, WIDTH, figures)


_Answer = tuple[list[int], list[int]]


async def _all(
    server: ServerProcess, model: str, letters: Sequence[np.ndarray[Any, Any]], sessions: int
) -> list[_Answer]:
    from streamcell.client import connect_async

    answers: list[_Answer] = [([], [])] * len(letters)
    waiting = iter(range(len(letters)))
    async with connect_async(server.target) as client:
        await asyncio.gather(*(_ask(client, model, waiting, letters, answers) for _ in range(sessions)))
    return answers


async def _ask(
    client: AsyncClient,
    model: str,
    waiting: Iterator[int],
    letters: Sequence[np.ndarray[Any, Any]],
    answers: list[_Answer],
) -> None:
    """Take the next word until none is left. A beam search leaves the session as it was, so it comes first."""
    for index in waiting:
        async with client.session(model) as session:
            await session.run(letters[index], output="none")
            best, *_ = await session.beam_search(LIMIT, width=WIDTH, results=1)
            generated = await session.generate(LIMIT, output="none", steps_per_reply=LIMIT).all()
        answers[index] = ([int(symbol) for symbol in generated.chosen], list(best.classes))
