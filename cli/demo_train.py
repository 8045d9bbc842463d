"""The demo's first half: corpus, training, export; each only where it is not there yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from streamcell.models import Series

MODEL = "chorales"


@dataclass(frozen=True)
class Trained:
    """A trained and exported model with the pieces it has not seen.

    Attributes:
        models: the folder that the server serves.
        model: the exported file.
        loss_plot: the PNG that training drew.
        loss: PyTorch's negative log-likelihood on the test part, nats a timestep.
        test: the pieces, x and y float32[time, 88] each.
    """

    models: Path
    model: Path
    loss_plot: Path
    loss: float
    test: Sequence[Series]


def prepare(out: Path, data_folder: Path, *, minutes: float, retrain: bool, console: Console) -> Trained:
    """Train into `out` and export into `out/models`, or use what is there.

    Raises:
        ModelError: the corpus cannot be read or training fails.
        ExportError: the exported graph does not give PyTorch's outputs.
    """
    from streamcell.export import export_run
    from streamcell.models import RichProgress, evaluate, load_data, load_run, presets, train

    config = presets.config("chorales", out=out, data_folder=data_folder, minutes=minutes)
    exported = out / "models" / f"{MODEL}.onnx"
    with RichProgress(console) as progress:
        data = load_data(config, progress)
        if retrain or not _finished(out):
            train(config, progress=progress, overwrite=True)
            exported.unlink(missing_ok=True)
        else:
            console.print(f"using the model trained in {out} (--retrain to train again)")
    model, _ = load_run(out)
    if not exported.exists():
        exported.parent.mkdir(parents=True, exist_ok=True)
        card = export_run(out, exported, name=MODEL)
        console.print(f"exported {exported}; largest error against PyTorch {card.proof['max_error']:.1e}")
    return Trained(exported.parent, exported, out / "loss.png", evaluate(model, data, "test"), data.test)


def _finished(out: Path) -> bool:
    """Whether `out` holds a run that trained to its end."""
    from streamcell.models import RunError, load_run

    try:
        _, document = load_run(out)
    except RunError:
        return False
    return "result" in document["training"]
