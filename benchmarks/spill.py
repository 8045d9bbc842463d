"""What it costs if a session leaves the device (`--slots`) and comes back, compared with one that keeps its row.

`python -m streamcell.benchmarks.spill` runs steps of an LSTM on the engine alone, in this process. The ways take turns,
block by block, and CPU time is counted, so a busy machine changes little:

- own: each session has a row of its own;
- there: sessions share rows, and all of a run are in the pool;
- back: all sessions of a run come back, and on average as many others leave: the worst case.

`apart` takes a card's path through the host's memory, with as many copies as on a card, where they take a different
time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine
from streamcell.service.repository.model_file import ModelFile, open_model

from .parity import engine
from .specimens import HIDDEN, export

DEVICES = {"cpu": Device(), "apart": Device(apart=True)}
WAYS = ("own", "own again", "there", "back")
_FEWEST = 64  # rows; a pool has as many, or twice those of a run, and twice as many sessions
_BLOCK_ROWS = 512


class _Runs:
    """Runs of single steps on one engine, each with the next of `groups` groups of sessions."""

    def __init__(self, on: Engine, rows: int, groups: int) -> None:
        self._engine, self._rows, self._groups = on, rows, groups
        self._number = 0
        for _ in range(2 * groups):
            self._run()

    def _run(self) -> None:
        on, rows = self._engine, self._rows
        staged = on.stage(rows, 1)
        group, fresh = self._number % self._groups, self._number < self._groups
        slots = on.pool.first_slot + group * rows + np.arange(rows)
        staged.lengths[:rows] = 1
        staged.write[:rows, 0] = slots
        staged.read[:rows] = 0 if fresh else slots
        on.pad(staged, rows)
        if on.spills:
            on.place(staged, rows)
        on.run(staged)
        self._number += 1

    def block_us(self) -> float:
        """CPU time of a run, in µs, over some of them."""
        count = max(self._groups, _BLOCK_ROWS // self._rows)
        began_s = time.process_time()
        for _ in range(count):
            self._run()
        return (time.process_time() - began_s) / count * 1e6


def costs(file: ModelFile, device: Device, rows: int, blocks: int) -> dict[str, float]:
    """CPU time in µs: of a run of `rows` sessions by way, and of a session's return, by the medians of `blocks` blocks.

    "own again" shows how far two that are the same differ.
    """

    shared = max(_FEWEST, 2 * rows)

    def make(slots: int | None, groups: int) -> _Runs:
        made = engine(
            file, device, sessions=2 * shared, slots=slots, max_batch=rows, max_chunk=1, cell="operator"
        )
        return _Runs(made, rows, groups)

    ways = {
        "own": make(None, 1),
        "own again": make(None, 1),
        "there": make(shared, 1),
        "back": make(shared, 2 * shared // rows),
    }
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for block in range(blocks):
        at = block % len(WAYS)
        for way in WAYS[at:] + WAYS[:at]:
            taken[way].append(ways[way].block_us())
    found = {way: statistics.median(each) for way, each in taken.items()}
    over = np.subtract(taken["back"], taken["there"])
    return {**found, "a return": float(np.median(over)) / rows}


def measure(hidden: Sequence[int], sizes: Sequence[int], blocks: int) -> list[dict[str, Any]]:
    """`costs` of LSTMs of two layers with `hidden` units each, for each device and number of sessions a run."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for units in hidden:
            export(Path(folder), "lstm", units)
            file = open_model(Path(folder) / "lstm.onnx", "lstm")
            state_bytes = file.signature.session_bytes
            found += [
                {
                    "state_bytes": state_bytes,
                    "device": name,
                    "rows": rows,
                    **costs(file, device, rows, blocks),
                }
                for name, device in DEVICES.items()
                for rows in sizes
            ]
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print what was found as Markdown."""
    print("| state | device | sessions a run | " + " | ".join(WAYS) + " | a return |")
    print("|---:|---|---:|" + "---:|" * (len(WAYS) + 1))
    for each in found:
        cells = [f"{each[way]:.1f}" for way in WAYS]
        print(
            f"| {each['state_bytes'] / 1024:g} KB | {each['device']} | {each['rows']} | {' | '.join(cells)} "
            f"| {each['a return']:.2f} |"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--hidden", nargs="*", type=int, default=[HIDDEN, 8 * HIDDEN], help="units of a layer"
    )
    parser.add_argument("--sizes", nargs="*", type=int, default=[1, 8, 64, 256], help="sessions of a run")
    parser.add_argument("--blocks", type=int, default=40, help="of some hundred rows, each way")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = measure(asked.hidden, asked.sizes, asked.blocks)
    if asked.json:
        json.dump(found, sys.stdout)
    else:
        show(found)


if __name__ == "__main__":
    main()
