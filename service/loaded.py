"""A model that is being served, and the table of all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import structlog

from .batcher import Batcher
from .device import Device
from .engine import Engine
from .errors import ModelNotFound, VersionNotFound
from .metrics import ModelMetrics
from .pool import SlotAllocator
from .repository import ModelFile
from .rewrite import pool_states
from .runner import Runner
from .settings import Settings

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model with all that runs it."""

    file: ModelFile
    engine: Engine
    batcher: Batcher
    runner: Runner
    metrics: ModelMetrics
    max_sessions: int

    @property
    def kind(self) -> str:
        """The card's kind, or "onnx" for a file from elsewhere."""
        return self.file.card.kind if self.file.card else "onnx"


def load(file: ModelFile, settings: Settings, device: Device) -> LoadedModel:
    """Load `file`, warm it up and start its engine's thread.

    Raises:
        ModelLoadError: the graph and its description do not agree.
        DeviceError: the device cannot be had.
    """
    began_s = time.perf_counter()
    signature = file.signature
    stateful = bool(signature.states)
    # Whole numbers are mostly indices, and an index that a table does not have fails the run of all its rows.
    indexed = any(tensor.dtype.startswith(("int", "uint")) for tensor in signature.inputs)
    # A stateless model may look at a message as a whole, so its messages are neither cut nor joined.
    engine = Engine(
        pool_states(file.load(), signature, file.constants, scatter=device.scatter, commit_last=indexed),
        signature,
        device=device,
        max_sessions=settings.max_sessions,
        max_batch=settings.max_batch,
        max_chunk=settings.max_chunk if stateful else settings.max_steps_per_message,
        intra_op_threads=settings.intra_op_threads,
        fixed_shapes=settings.fixed_shapes,
        cell=settings.cell,
        cuda_graphs=settings.cuda_graphs,
    )
    metrics = ModelMetrics(file.name, file.version)
    slots = SlotAllocator(engine.pool.first_slot, settings.max_sessions) if stateful else None
    batcher = Batcher(
        slots,
        max_sessions=settings.max_sessions,
        max_batch=engine.max_batch,
        max_chunk=engine.max_chunk,
        ragged=signature.lengths is not None,
        coalesce=stateful,
        queue_messages=settings.queue_messages,
        on_cancelled=metrics.work_cancelled,
    )
    metrics.slots = settings.max_sessions if stateful else 0
    metrics.slot_bytes = engine.pool.slot_bytes
    metrics.slots_used = lambda: batcher.slots_used
    runner = Runner(
        f"{file.name}-{file.version}",
        engine,
        batcher,
        metrics,
        ragged=signature.lengths is not None,
        allow_non_finite=settings.non_finite == "allow",
        generation=file.generation,
    )
    runner.start()
    metrics.load_s = time.perf_counter() - began_s
    _log.info(
        "model loaded",
        model=file.name,
        version=file.version,
        device=str(device),
        seconds=round(metrics.load_s, 3),
        state_bytes_a_session=engine.pool.slot_bytes,
        state_bytes_set_aside=engine.pool.slot_bytes * engine.pool.rows,
    )
    return LoadedModel(file, engine, batcher, runner, metrics, settings.max_sessions)


class Models:
    """Every loaded model by name and version."""

    def __init__(self, models: list[LoadedModel]) -> None:
        self._models: dict[str, dict[str, LoadedModel]] = {}
        for model in sorted(models, key=lambda model: (model.file.name, int(model.file.version))):
            self._models.setdefault(model.file.name, {})[model.file.version] = model

    def __iter__(self) -> Iterator[LoadedModel]:
        for versions in self._models.values():
            yield from versions.values()

    def find(self, name: str, version: str = "") -> LoadedModel:
        """The model of that name, the newest version where none is named.

        Raises:
            ModelNotFound: no model has that name.
            VersionNotFound: the model has no such version.
        """
        versions = self._models.get(name)
        if versions is None:
            raise ModelNotFound(
                f"no model named {name!r}; this server has: {', '.join(self._models) or 'none'}", model=name
            )
        if not version:
            return next(reversed(versions.values()))
        if version not in versions:
            raise VersionNotFound(
                f"model {name!r} has no version {version!r}; it has: {', '.join(versions)}",
                model=name,
                version=version,
            )
        return versions[version]
