"""The demo `g2p`: letters are streamed in, the server generates the phonemes, by arg-max and by beam search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .base import Demo, Options, Report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamcell.models import Pronunciation
    from streamcell.models.training.g2p_evaluation import Errors


# About six minutes on one core.
_EPOCHS = 10
# For the reader; the first is in no dictionary.
SHOWN = ("streamcell", "recurrent", "chorale", "phoneme", "gradient", "zyzzyva")


def run(folder: Path, options: Options) -> Report:
    """Train an encoder–decoder on the CMU Pronouncing Dictionary, export and serve it, pronounce the test words."""
    from streamcell.cli.demos.shared.prepare import prepare
    from streamcell.models import Seq2Seq, Symbols, count_errors, load_dictionary, pronounce
    from streamcell.models.training import presets

    from .g2p_served import pronounce_served

    console = options.console
    config = presets.config("g2p", out=folder, data_folder=options.data_folder, **options.training(_EPOCHS))
    trained = prepare(config, "g2p", retrain=options.retrain, console=console)
    symbols = Symbols.of(trained.data.about)
    words = load_dictionary(stress=symbols.stress).part("test")
    asked = [*words, *SHOWN]
    console.print(f"pronouncing {len(words)} test words through {options.sessions} sessions …")
    served = pronounce_served(trained, symbols, asked, sessions=options.sessions)

    def errors(said: Sequence[Pronunciation]) -> Errors:
        return count_errors(zip(said[: len(words)], words.values(), strict=True))

    assert isinstance(trained.module, Seq2Seq)
    greedy_torch = pronounce(trained.module, symbols, asked)
    figures = {
        "words": len(words),
        "loss_torch": trained.loss,
        "arg_max_torch": _rates(errors(greedy_torch)),
        "arg_max_served": _rates(errors(served.arg_max)),
        "beam_served": {"width": served.width, **_rates(errors(served.beam))},
        "answers_unlike_torch": sum(a != b for a, b in zip(greedy_torch, served.arg_max, strict=True)),
        **served.figures,
    }
    files = {"loss curve": trained.loss_plot, "exported model": trained.path}
    rows = _rows(figures, dict(zip(asked, served.beam, strict=True)))
    return Report("Letters to phonemes, served", rows, figures, files).save(folder)


def _rates(errors: Errors) -> dict[str, float]:
    return {"phoneme_error_rate": errors.per, "word_error_rate": errors.wer}


def _rows(figures: Mapping[str, Any], said: Mapping[str, Pronunciation]) -> list[tuple[str, str]]:
    def told(rates: Mapping[str, float]) -> str:
        return f"PER {rates['phoneme_error_rate']:.2%}, WER {rates['word_error_rate']:.2%}"

    beam = figures["beam_served"]
    return [
        ("test words", f"{figures['words']}"),
        ("arg-max in PyTorch", told(figures["arg_max_torch"])),
        ("arg-max, served", told(figures["arg_max_served"])),
        (f"beam of {beam['width']}, served", told(beam)),
        ("answers that differ from PyTorch's", f"{figures['answers_unlike_torch']}"),
        ("words per second (arg-max and beam)", f"{figures['words_per_s']:.0f}"),
        ("mean batch (server's /metrics)", f"{figures['mean_batch']:.1f} rows per run"),
        *((word, " ".join(said[word])) for word in SHOWN),
    ]


DEMO = Demo(
    "g2p",
    "encoder–decoder",
    "letters to phonemes: an LSTM reads a word, the server generates its pronunciation; error rates",
    run,
)
