"""One function of many files, in one process a core."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

# Up to this many files are parsed sooner than processes start.
FEW = 8
# Called with the number of files parsed and the number of files.
OnParsed = Callable[[int, int], None]
Result = TypeVar("Result")


def in_parallel(
    parse: Callable[[str], Result], files: Sequence[Path], on_parsed: OnParsed | None = None
) -> list[Result]:
    """The results of `parse` in the files' order. Few files are parsed in this process, more in one process a core."""
    results: list[Result] = []
    with ExitStack() as stack:
        items: Iterable[Result] = map(parse, map(str, files))
        if len(files) > FEW:
            # Spawned, not forked: the caller may already run torch's threads.
            context = multiprocessing.get_context("spawn")
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            pool = stack.enter_context(ProcessPoolExecutor(cores, mp_context=context))
            items = pool.map(parse, map(str, files), chunksize=4)
        for item in items:
            results.append(item)
            if on_parsed is not None:
                on_parsed(len(results), len(files))
    return results
