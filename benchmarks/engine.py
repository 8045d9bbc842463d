"""The engine alone, against `session.run` with the states passed by hand: no network, no batcher.

At one timestep a run also with the recurrent operators written out (`decomposed`).

`python -m streamcell.benchmarks.engine` prints a table; `--json` what the report reads.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from streamcell.card import Signature
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Cell, Engine, EngineOptions
from streamcell.service.repository.model_file import ModelFile, open_model

from . import parity
from .specimens import export

_SESSIONS = 10_000


class Ways:
    """One model in every way, for any batch size and number of steps."""

    def __init__(
        self,
        file: ModelFile,
        device: Device,
        max_batch: int,
        max_chunk: int,
        threads: int = 1,
        cells: Sequence[Cell | None] = (None,),
    ) -> None:
        self.signature: Signature = file.signature
        self.device = device
        self.engines = {
            cell: Engine(
                parity.pooled(file, device),
                file.signature,
                EngineOptions(
                    device=device,
                    max_sessions=_SESSIONS,
                    max_batch=max_batch,
                    max_chunk=max_chunk,
                    intra_op_threads=threads,
                    cell=cell,
                ),
            )
            for cell in cells
        }
        for engine in self.engines.values():
            engine.warm_up()
        self.plain: ort.InferenceSession = self.device.session(
            file.path.read_bytes(), intra_op_threads=threads
        )
        self._random = np.random.default_rng(11)

    def by_engine(self, rows: int, steps: int, cell: Cell | None = None) -> Callable[[], None]:
        """One batch as the runner does it: inputs and slots of `rows` sessions copied in, a run."""
        engine = self.engines[cell]
        staged = engine.stage(rows, steps)
        data = [np.zeros(len(view), np.uint8).tobytes() for view in staged.inputs]
        slots = engine.pool.first_slot + self._random.permutation(_SESSIONS)[:rows]

        def run() -> None:
            now = engine.stage(rows, steps)
            for view, tensor in zip(now.inputs, data, strict=True):
                view[: len(tensor)] = tensor
            now.lengths[:rows] = steps
            now.read[:rows] = slots
            now.write[:rows, 0] = slots
            engine.pad(now, rows)
            engine.run(now)

        return run

    def by_hand(self, rows: int, steps: int) -> Callable[[], None]:
        """`session.run` on arrays; each run gets the states that the previous one returned."""
        signature = self.signature
        around = (rows, steps) if signature.has_time else (rows,)
        feed = {t.name: np.zeros((*around, *t.step_shape), t.dtype) for t in signature.inputs}
        if signature.lengths:
            feed[signature.lengths] = np.full(rows, steps, np.int32)
        for state in signature.states:
            shape = [*state.shape]
            shape.insert(state.batch_axis, rows)
            feed[state.input] = np.zeros(shape, state.dtype)
        names = [t.name for t in signature.outputs] + [state.output for state in signature.states]
        back = [state.input for state in signature.states]
        outputs = len(signature.outputs)

        def run() -> None:
            results = self.plain.run(names, feed)
            feed.update(zip(back, results[outputs:], strict=True))

        return run


def interleaved_us(ways: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median time of a call of each, in µs, the ways taking turns call by call for `seconds`."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        for name, run in ways.items():
            began_s = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began_s)
    return {name: float(np.median(taken)) * 1e6 for name, taken in times.items()}


def measure(
    kinds: list[str],
    hidden: list[int],
    shapes: list[tuple[int, int]],
    *,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 0.4,
) -> list[dict[str, Any]]:
    """Every kind and hidden size at every (rows, steps): µs a run and steps/s, every way."""
    results = []
    on = Device.parse(device)
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            for size in hidden:
                path = export(Path(folder), kind, size, f"{kind}{size}")
                cells: tuple[Cell, ...] = ("operator", "decomposed") if kind != "mlp" else ("operator",)
                model = Ways(
                    open_model(path, path.stem),
                    on,
                    max(rows for rows, _ in shapes),
                    max(steps for _, steps in shapes),
                    threads,
                    cells,
                )
                for rows, steps in shapes:
                    ways = {
                        "engine": model.by_engine(rows, steps, cells[0]),
                        "by_hand": model.by_hand(rows, steps),
                    }
                    if len(cells) > 1 and steps == 1:
                        ways["decomposed"] = model.by_engine(rows, steps, "decomposed")
                    taken = interleaved_us(ways, seconds)
                    results.append(
                        {
                            "kind": kind, "hidden": size, "rows": rows, "steps": steps,
                            "engine_us": taken["engine"],
                            "by_hand_us": taken["by_hand"],
                            "decomposed_us": taken.get("decomposed"),
                            "steps_per_s": rows * steps / taken["engine"] * 1e6,
                            "us_per_step": taken["engine"] / rows / steps,
                            "by_hand_over_engine": taken["by_hand"] / taken["engine"],
                        }
                    )  # fmt: skip
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=["lstm", "gru", "rnn", "mlp"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[128])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64, 256, 1024])
    parser.add_argument("--steps", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's threads within an operator")
    parser.add_argument("--seconds", type=float, default=0.4, help="for each line of the table")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    shapes = [(rows, steps) for rows in asked.rows for steps in asked.steps]
    results = measure(
        asked.kinds, asked.hidden, shapes, device=asked.device, threads=asked.threads, seconds=asked.seconds
    )
    if asked.json:
        json.dump(results, sys.stdout)
        return
    print(
        f"{'model':>10} {'rows':>5} {'steps':>5} {'engine µs':>10} {'decomposed':>10} {'by hand µs':>10} "
        f"{'steps/s':>12}"
    )
    for r in results:
        decomposed = f"{r['decomposed_us']:.1f}" if r["decomposed_us"] else "–"
        print(
            f"{r['kind'] + ' 2×' + str(r['hidden']):>10} {r['rows']:>5} {r['steps']:>5} {r['engine_us']:>10.1f} "
            f"{decomposed:>10} {r['by_hand_us']:>10.1f} {r['steps_per_s']:>12,.0f}"
        )


if __name__ == "__main__":
    main()
