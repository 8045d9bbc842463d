"""Measures a card: parity with the CPU for every kind of model, then the time of a tick, beside `torch.nn.LSTM`.

`python -m streamcell.benchmarks.gpu --out DIR` writes DIR/gpu.json; without `--out`, to the folder that $OUT names, or
here. A tick is one timestep of B sessions: inputs in the host's memory, states on the card, outputs back in the host's
memory. `--device apart` walks the card's code path on the CPU. The exit code is 1 where parity is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Cell, Engine
from streamcell.service.load_errors import DeviceError
from streamcell.service.repository.model_file import ModelFile, open_model

from . import machine, parity
from .engine import interleaved_us
from .specimens import INPUT, LAYERS, OUTPUT, export

TARGET = {"rows": 1024, "hidden": 256, "us": 100.0}
# Largest |a − b| / max(1, |b|) against the CPU, without and with TF32.
TOLERANCE, TF32_TOLERANCE = 1e-5, 1e-2
_SMALL: dict[str, Any] = {"input_size": 3, "hidden_size": 24, "output_size": 2, "num_layers": 2}
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"kind": "lstm", **_SMALL},
    "lstm, one layer": {"kind": "lstm", **_SMALL, "num_layers": 1},
    "gru": {"kind": "gru", **_SMALL, "reset_after": True},
    "gru, reset before": {"kind": "gru", **_SMALL, "reset_after": False},
    "rnn": {"kind": "rnn", **_SMALL},
    "rnn, relu": {"kind": "rnn", **_SMALL, "nonlinearity": "relu"},
    "mlp": {"kind": "mlp", "input_size": 3, "hidden_sizes": [16], "output_size": 2},
}
WAYS: dict[str, tuple[Cell, bool]] = {
    "operator": ("operator", False),
    "decomposed": ("decomposed", False),
    "decomposed, CUDA graph": ("decomposed", True),
}


def device_of(text: str, *, tf32: bool = False) -> Device:
    """A device by name; "apart" is the CPU by the card's code path."""
    return Device(apart=True) if text == "apart" else Device.parse(text, tf32=tf32)


def run_parity(folder: Path, device: Device, *, runs: int = 60) -> Iterator[dict[str, Any]]:
    """Every kind, every way, against the CPU: random batches with varying lengths."""
    import torch

    from streamcell.export import export_model
    from streamcell.models import build

    torch.manual_seed(4)
    bound = TF32_TOLERANCE if device.tf32 else TOLERANCE
    for number, (kind, about) in enumerate(KINDS.items()):
        path = folder / f"parity{number}.onnx"
        export_model(build(about).eval(), path, name=path.stem)
        file = open_model(path, path.stem)
        for way, (cell, graphs) in WAYS.items():
            line: dict[str, Any] = {"kind": kind, "way": way}
            try:
                other = parity.engine(file, device, cell=cell, cuda_graphs=graphs and not device.on_host)
                found = parity.compare(parity.engine(file, Device(), cell="operator"), other, runs=runs)
            except Exception as error:  # any error: the other lines are still useful
                yield {**line, "failed": f"{type(error).__name__}: {error}", "met": False}
                continue
            other.close()
            worst = max(found.output_error, found.state_error)
            yield {**line, "runs": found.runs, "steps": found.steps, "error": worst, "met": worst <= bound}


def _tick(engine: Engine, rows: int) -> Callable[[], None]:
    """One step of `rows` sessions as the server runs it: inputs and slots copied into the staging memory, a run."""
    staged = engine.stage(rows, 1)
    data = [np.zeros(len(view), np.uint8).tobytes() for view in staged.inputs]
    slots = engine.pool.first_slot + np.random.default_rng(11).permutation(2 * rows)[:rows]

    def run() -> None:
        for view, tensor in zip(staged.inputs, data, strict=True):
            view[:] = tensor
        staged.lengths[:rows] = 1
        staged.read[:rows] = slots
        staged.write[:rows, 0] = slots
        engine.run(staged)

    return run


def _torch_tick(device: Device, kind: str, hidden: int, rows: int) -> Callable[[], None]:
    """The same with PyTorch's own layers: inputs from pinned memory, states kept on the device, outputs back."""
    import torch

    on = torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")
    layer = getattr(torch.nn, kind.upper())(INPUT, hidden, LAYERS, batch_first=True).to(on).eval()
    head = torch.nn.Linear(hidden, OUTPUT).to(on).eval()
    x = torch.zeros(rows, 1, INPUT)
    if device.kind == "cuda":
        x = x.pin_memory()
    with torch.inference_mode():
        state = layer(x.to(on))[1]

    def run() -> None:
        nonlocal state
        with torch.inference_mode():
            y, state = layer(x.to(on, non_blocking=True), state)
            head(y).cpu()

    return run


def run_ticks(
    folder: Path, device: Device, kinds: list[str], hidden: list[int], rows: list[int], seconds: float
) -> Iterator[dict[str, Any]]:
    """The time of a tick for every kind, hidden size and batch size, every way in turn, in µs (medians)."""
    for kind, size in product(kinds, hidden):
        path = export(folder, kind, size, f"{kind}{size}")
        for count in rows:
            ticks = {f"torch.nn.{kind.upper()}": _torch_tick(device, kind, size, count)}
            engines, failed = _engines(open_model(path, path.stem), device, count)
            ticks |= {way: _tick(engine, count) for way, engine in engines.items()}
            taken, broken = _taken(ticks, seconds)
            failed |= broken
            ticks.clear()  # they hold sessions, which must end before their engines' streams do
            for engine in engines.values():
                engine.close()
            best = min((way for way in taken if way in engines), key=taken.__getitem__, default=None)
            yield {
                "kind": kind, "layers": LAYERS, "hidden": size, "rows": count, "us": taken, "failed": failed,
                "best": best, "steps_per_s": count / taken[best] * 1e6 if best else None,
            }  # fmt: skip


def _taken(ticks: dict[str, Callable[[], None]], seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """The time of each in turn, without those that fail, and why they did."""
    working: dict[str, Callable[[], None]] = {}
    failed: dict[str, str] = {}
    for way, tick in ticks.items():
        try:
            tick()
            working[way] = tick
        except Exception as error:  # any error: the other ways are still worth measuring
            failed[way] = f"{type(error).__name__}: {error}"
    try:
        return (interleaved_us(working, seconds) if working else {}), failed
    except Exception as error:  # as above
        return {}, {**failed, "timing": f"{type(error).__name__}: {error}"}


def _engines(file: ModelFile, device: Device, rows: int) -> tuple[dict[str, Engine], dict[str, str]]:
    """One for each way, and why there is none."""
    engines: dict[str, Engine] = {}
    failed: dict[str, str] = {}
    for way, (cell, graphs) in WAYS.items():
        if graphs and device.on_host:
            continue
        try:
            engines[way] = parity.engine(
                file, device, sessions=2 * rows, max_batch=rows, max_chunk=1, cell=cell, cuda_graphs=graphs
            )
        except Exception as error:  # as above
            failed[way] = f"{type(error).__name__}: {error}"
    return engines, failed


def about(device: Device) -> dict[str, Any]:
    """Card and versions."""
    import torch

    found = {
        "device": "apart" if device.apart else str(device),
        "tf32": device.tf32,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
        "cuda_of_onnxruntime": getattr(ort, "cuda_version", "") or None,
        "hardware": machine.hardware(),
    }
    if device.kind == "cuda":
        found["card"] = torch.cuda.get_device_name(device.index)
    return found


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m streamcell.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, cpu or apart")
    parser.add_argument("--tf32", action="store_true", help="on both sides")
    parser.add_argument("--kinds", nargs="+", default=["lstm"], choices=["lstm", "gru", "rnn"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[128, 256, 1024])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 64, 1024])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each line of the table")
    parser.add_argument(
        "--only",
        choices=["parity", "ticks"],
        help="measure this alone: an error of the card ends all that its process does there",
    )
    parser.add_argument("--runs", type=int, default=60, help="batches of each comparison")
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT") or "."), help="folder of gpu.json"
    )
    return parser.parse_args(arguments)


def _settle_torch(device: Device) -> None:
    """TF32 as asked for; without a card one thread, as the engine has."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = device.tf32
    if device.kind == "cpu":
        torch.set_num_threads(1)


def _against_target(tick: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The goal, if `tick` is the one that it is about."""
    if tick["kind"] == "lstm" and (tick["rows"], tick["hidden"]) == (TARGET["rows"], TARGET["hidden"]):
        measured = tick["us"].get(tick["best"])
        yield {**TARGET, "measured_us": measured, "met": measured is not None and measured <= TARGET["us"]}


def _measure(asked: argparse.Namespace, device: Device, report: dict[str, Any]) -> Iterator[str]:
    """Fill in the report; after each measurement a line about it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only != "ticks":
            for line in run_parity(folder, device, runs=asked.runs):
                report["parity"].append(line)
                found = line.get("failed") or f"{line['error']:.1e} {'ok' if line['met'] else 'MISSED'}"
                yield f"parity  {line['kind']:<18} {line['way']:<23} {found}"
        if asked.only != "parity":
            for tick in run_ticks(folder, device, asked.kinds, asked.hidden, asked.rows, asked.seconds):
                report["ticks"].append(tick)
                report["target"] += _against_target(tick)
                each = "  ".join(f"{way} {us:.1f}" for way, us in tick["us"].items())
                yield f"tick    {tick['kind']} {LAYERS}×{tick['hidden']:<5} B {tick['rows']:<5} µs: {each}"


def main(arguments: list[str] | None = None) -> int:
    """Compare, measure, write."""
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    device = device_of(asked.device, tf32=asked.tf32)
    try:
        device.check()
    except DeviceError as error:
        print(error, file=sys.stderr)
        return 2
    _settle_torch(device)
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / "gpu.json"
    report: dict[str, Any] = {**about(device), "parity": [], "ticks": [], "target": []}
    for line in _measure(asked, device, report):
        # After each line: the next one may end the process.
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(line, flush=True)
    print(f"written: {path}")
    return 0 if all(line["met"] for line in report["parity"]) else 1


if __name__ == "__main__":
    sys.exit(main())
