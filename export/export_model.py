"""One of the project's own models, or a run folder of its training, to an .onnx file that carries its card."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import nn

from streamcell.card import Generation, ModelCard, Signature
from streamcell.models import BOUNDARY, Seq2Seq, SequenceModel

from .emit import emit_model, not_ours
from .errors import ExportError
from .proof import Prover
from .publish import ExportOptions, Settings, publish
from .reference import ModelReference
from .runner import Runner
from .tensors import one_thread


@one_thread()
def export_model(
    module: nn.Module,
    path: str | Path,
    *,
    lengths: bool = True,
    generation: Generation | Literal["auto"] | None = "auto",
    training: Mapping[str, Any] | None = None,
    test: Callable[[Runner], dict[str, Any]] | None = None,
    **options: Unpack[ExportOptions],
) -> ModelCard:
    """Write a model of `streamcell.models` as ONNX operators, proved against PyTorch.

    The module is not changed; a copy of it is exported, in eval mode, in float32 and on the CPU.

    Args:
        path: the file to write; its parent folders are made. Conventionally `MODELS/NAME.onnx`.
        lengths: whether a graph with states takes `lengths` int32[batch], for rows of different lengths in a run.
        generation: how y becomes the next x, for the card, if the server is to generate. "auto": Bernoulli
            logits as wide as x are fed back (a model of the next chord), and a Seq2Seq's symbols, from the boundary
            to the boundary; other models do not generate.
        training: provenance for the card, JSON values.
        test: with precision int8, what a runner in int8 is worth on test data, for the card's `proof`.
        options: name, description, precision and tolerance; see `ExportOptions`.

    Returns:
        The card that was embedded, with the measured errors under `proof`.

    Raises:
        ProofError: ONNX Runtime's results are over the tolerance; nothing is saved.
        ExportError: the model cannot be exported or saved.
    """
    settings = Settings.of(path, training=training, **options)
    if not isinstance(module, SequenceModel):
        raise ExportError(not_ours(module))
    twin = copy.deepcopy(module).float().cpu().eval()
    version = settings.versions["streamcell"]
    graph, signature = emit_model(
        twin, name=settings.name, version=version, lengths=lengths, fold=settings.precision != "int8"
    )
    reference = ModelReference(twin)

    def prover(runner: Runner) -> Prover:
        return Prover(runner, reference, reference.draw, reference.initial, time=reference.time)

    if generation == "auto":
        generation = written(twin, signature) if isinstance(twin, Seq2Seq) else next_step(signature)
    return publish(
        graph,
        signature,
        settings,
        kind=twin.kind,
        config=twin.config,
        prover=prover,
        generation=generation,
        test=test,
    )


def next_step(signature: Signature) -> Generation | None:
    """The generation of a model whose Bernoulli logits y have the shape of x: it was trained on the next step."""
    (x,), (y,) = signature.inputs, signature.outputs
    if y.distribution == "bernoulli_logits" and x.step_shape == y.step_shape:
        return Generation(output=y.name, input=x.name, head="bernoulli")
    return None


def written(model: Seq2Seq, signature: Signature) -> Generation:
    """The generation of an encoder–decoder: the decoder's symbols come after the encoder's."""
    (x,), (y,) = signature.inputs, signature.outputs
    return Generation(
        output=y.name,
        input=x.name,
        head="categorical",
        encoding="index",
        offset=model.source_size,
        start=model.source_size + BOUNDARY,
        stop=BOUNDARY,
    )
