"""A demo's first half: data, training and export, each only if its result is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from streamcell.models import SequenceData, SequenceModel, Series, TrainConfig


@dataclass(frozen=True)
class Trained:
    """A trained and exported model with its data.

    Attributes:
        name: what the server calls the model.
        models: the folder that the server serves.
        path: the exported file.
        loss_plot: the PNG that training drew.
        module: the same model in PyTorch, in eval mode.
        data: the data that it was trained on.
        loss: PyTorch's loss on the test part, per timestep.
    """

    name: str
    models: Path
    path: Path
    loss_plot: Path
    module: SequenceModel
    data: SequenceData
    loss: float

    @property
    def test(self) -> Sequence[Series]:
        """The sequences that the model has not seen."""
        return self.data.test

    def outputs(self) -> list[NDArray[np.float32]]:
        """PyTorch's outputs for these, float32[time, outputs] a sequence."""
        import torch

        with torch.no_grad():
            return [self.module(torch.from_numpy(series.x)[None])[0][0].numpy() for series in self.test]


def prepare(config: TrainConfig, name: str, *, retrain: bool, console: Console) -> Trained:
    """Train into `config.out` and export into its folder `models`, or use what is there.

    Raises:
        ModelError: the data cannot be read or training fails.
        ExportError: the exported graph's outputs differ from PyTorch's.
    """
    from streamcell.export import export_run
    from streamcell.models import RichProgress, evaluate, load_data, load_run, train

    out = config.out
    exported = out / "models" / f"{name}.onnx"
    with RichProgress(console) as progress:
        data = load_data(config, progress)
        if retrain or not finished(out):
            length = f"{config.epochs} epochs" if config.minutes is None else f"{config.minutes:g} minutes"
            console.print(f"training for {length}, into {out} …")
            train(config, progress=progress, overwrite=True)
            exported.unlink(missing_ok=True)
        else:
            console.print(f"using the model trained in {out} (--retrain to train again)")
    module, _ = load_run(out)
    if not exported.exists():
        exported.parent.mkdir(parents=True, exist_ok=True)
        card = export_run(out, exported, name=name)
        console.print(f"exported {exported}; largest error against PyTorch {card.proof['max_error']:.1e}")
    loss = evaluate(module, data, "test")
    return Trained(name, exported.parent, exported, out / "loss.png", module, data, loss)


def finished(out: Path) -> bool:
    """True if `out` contains a finished training run."""
    from streamcell.models import RunError, load_run

    try:
        _, document = load_run(out)
    except RunError:
        return False
    return "result" in document["training"]
