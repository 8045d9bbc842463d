"""From a graph to a file: store the weights as asked, prove, write the card, save."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import onnx

from streamcell.card import Generation, ModelCard, Signature, check_generation

from .errors import ExportError
from .in_int8 import InInt8
from .precision import store
from .proof import TOLERANCES, Prover
from .provenance import now, versions
from .runner import Runner
from .save import save

Precision = Literal["fp32", "fp16", "int8"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ExportOptions(TypedDict, total=False):
    """The keyword arguments that every export takes.

    Attributes:
        name: the model's name in its card; the file's stem if not given.
        description: a line about the model, for its card.
        precision: "fp32", "fp16" or "int8": how the weights are stored. Computation, states, inputs and outputs are
            float32 with each.
        tolerance: largest error allowed (see `proof`); if not given, by precision 1e-5, 1e-2, 2e-1.
    """

    name: str | None
    description: str
    precision: str
    tolerance: float | None


@dataclass(frozen=True)
class Settings:
    """A user's options of an export, checked and with defaults."""

    path: Path
    name: str
    description: str
    training: dict[str, Any]
    precision: Precision
    tolerance: float
    versions: dict[str, str]

    @classmethod
    def of(
        cls,
        path: str | Path,
        *,
        training: Mapping[str, Any] | None = None,
        name: str | None = None,
        description: str = "",
        precision: str = "fp32",
        tolerance: float | None = None,
    ) -> Settings:
        """Check the options and fill in the defaults.

        Raises:
            ExportError: a setting is out of range.
        """
        path = Path(path)
        if path.suffix != ".onnx":
            raise ExportError(f"the file must end in .onnx; got {path}")
        name = path.stem if name is None else name
        if not NAME.fullmatch(name):
            raise ExportError(f"a model's name is letters, digits, '.', '_' and '-'; got {name!r}")
        if precision not in TOLERANCES:
            raise ExportError(f"precision must be one of {', '.join(TOLERANCES)}; got {precision!r}")
        tolerance = TOLERANCES[precision] if tolerance is None else tolerance
        if not tolerance > 0:
            raise ExportError(f"tolerance must be above 0; got {tolerance}")
        return cls(
            path,
            name,
            description,
            dict(training or {}),
            cast(Precision, precision),
            tolerance,
            versions(),
        )


def publish(
    graph: onnx.ModelProto,
    signature: Signature,
    settings: Settings,
    *,
    kind: str,
    config: Mapping[str, Any],
    prover: Callable[[Runner], Prover],
    generation: Generation | None = None,
    test: Callable[[Runner], dict[str, Any]] | None = None,
) -> ModelCard:
    """Store the weights of `graph` in the precision asked for, prove the result and save it with its card.

    Args:
        kind, config, generation: as in the card.
        prover: makes the proof for a runner of the finished graph.
        test: what a runner in int8 is worth on test data, for the card.

    Raises:
        ProofError, ExportError: as `export_model`; nothing is saved.
    """
    if generation is not None:
        try:
            check_generation(signature, generation)
        except ValueError as error:
            raise ExportError(str(error)) from error
    graph = store(graph, settings.precision)
    proof = prover(Runner(graph.SerializeToString(), signature))
    proved = proof.prove(settings.tolerance)
    in_int8 = InInt8.of(graph, signature) if settings.precision == "int8" else None
    if in_int8 is not None:
        proved["int8"] = in_int8.proved(prover, settings.tolerance)
        if test is not None:
            proved["test"] = test(in_int8.runner)
    card = ModelCard(
        name=settings.name,
        kind=kind,
        description=settings.description,
        signature=signature,
        generation=generation,
        precision=settings.precision,
        config=dict(config),
        training=settings.training,
        proof=proved,
        versions=settings.versions,
        created=now(),
    )
    save(graph, card, settings.path, inputs=proof.example(), states=proof.initial(proof.batches[-1]))
    return card
