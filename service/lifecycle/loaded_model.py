"""A model that is being served, and the table of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import structlog

from streamcell.service.batching.batcher import Batcher
from streamcell.service.batching.inline import Wakeup
from streamcell.service.batching.runner import Runner
from streamcell.service.durability.journal import Journal
from streamcell.service.engine.device import Device
from streamcell.service.engine.engine import Engine, EngineOptions
from streamcell.service.engine.time_limit import TimeLimit
from streamcell.service.errors import cut
from streamcell.service.frames.rounds import FrameRound, FrameRounds
from streamcell.service.frames.runner import FrameRunner
from streamcell.service.generation.loop import GenerationLoop
from streamcell.service.graph.pooled import pool_states
from streamcell.service.load_errors import DeviceError, ModelLoadError, RepositoryError, load_failure
from streamcell.service.machine import measured
from streamcell.service.metrics.model_metrics import ModelMetrics, Pool
from streamcell.service.repository.locate import sidecar_path
from streamcell.service.repository.memory import check_memory
from streamcell.service.repository.model_file import ModelFile
from streamcell.service.sessions.capacity import Capacity, SlotAllocator
from streamcell.service.sessions.session import Session
from streamcell.service.sessions.shared_capacity import SharedCapacity
from streamcell.service.settings import Settings

from .explained import description_remedy, first_runs, making_sessions
from .journals import journal_maker
from .load_thread import within
from .proved import proved_engine

_log = structlog.get_logger(__name__)

# Characters of a label that tells of a model: its file decides what it contains.
_MOST_ABOUT = 400


@dataclass(frozen=True)
class LoadedModel:
    """One version of one model with all that runs it."""

    file: ModelFile
    engine: Engine
    batcher: Batcher
    runner: Runner
    frames: FrameRounds
    metrics: ModelMetrics
    max_sessions: int
    pool: Pool
    restrictions: tuple[str, ...] = ()
    proof: str = "off"
    arithmetic: str = "float32"

    def release(self) -> None:
        """Stop its engine thread and free its memory. It has no sessions and gets none."""
        self.runner.stop()
        self.metrics.detach(self.pool)
        if self.journal is not None:
            self.journal.end()

    @property
    def journal(self) -> Journal | None:
        """Where its sessions are kept, if they outlive the process."""
        return self.engine.pool.journal

    @property
    def lasting_journal(self) -> Journal | None:
        """The same, if it outlives the process itself."""
        journal = self.journal
        return None if journal is None or journal.temporary else journal

    @property
    def kind(self) -> str:
        """The card's kind, or "onnx" for a file from elsewhere."""
        return self.file.card.kind if self.file.card else "onnx"

    @property
    def max_batch(self) -> int:
        """The most rows of a run."""
        return self.engine.max_batch

    @property
    def max_chunk(self) -> int:
        """The most timesteps of a session in one run."""
        return self.engine.max_chunk

    def read_states(self, session: Session) -> list[bytes]:
        """A session's states after its last run, in the signature's order. For the engine thread, in `deliver`."""
        return [state.tobytes() for state in self.engine.pool.read(session.reads)]


def load_all(
    files: Iterable[ModelFile],
    settings: Settings,
    device: Device,
    wakeup: Callable[[], Wakeup | None],
    errors: Iterable[ModelLoadError] = (),
    notes: Sequence[ModelLoadError] = (),
) -> list[LoadedModel]:
    """Load `files`.

    Args:
        files: the models.
        settings: the server's.
        device: the device that they run on.
        wakeup: makes the wakeup of each model's engine thread, if front ends share the models.
        errors: of files that could not be opened; they are in the report.
        notes: of what may be why there are errors.

    Raises:
        RepositoryError: one or more files cannot be opened or loaded; the report names all of them.
        DeviceError: the device is not available.
    """
    loaded: list[LoadedModel] = []
    errors = list(errors)
    for file in files:
        try:
            loaded.append(load(file, settings, device, wakeup=wakeup()))
        except ModelLoadError as error:
            errors.append(error)
    if errors:
        for model in loaded:
            model.release()
        raise RepositoryError(settings.models, errors, notes)
    for note in notes:
        _log.warning("folder of models", reason=str(note))
    return loaded


def load(
    file: ModelFile,
    settings: Settings,
    device: Device,
    metrics: ModelMetrics | None = None,
    wakeup: Wakeup | None = None,
) -> LoadedModel:
    """Load `file`, warm it up and start its engine's thread. Its pool is not yet attached to its metrics.

    Args:
        file: what to load.
        settings: the server's.
        device: the device that it runs on.
        metrics: those of the same version, if it is reloaded.
        wakeup: what its engine's thread sleeps on, if front ends share the model.

    Raises:
        ModelLoadError: the graph and its description do not agree, ONNX Runtime refuses it, or it takes more time
            or more memory than it may; it names the file.
        DeviceError: the device is not available.
    """
    limit = TimeLimit(settings.run_timeout_s)
    try:
        return within(
            settings.load_timeout_s,
            limit,
            lambda: _load(file, settings, device, limit, metrics, wakeup),
            LoadedModel.release,
            f"{file.name}-{file.version}",
        )
    except DeviceError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise load_failure(error, file.path) from error


def _load(
    file: ModelFile,
    settings: Settings,
    device: Device,
    limit: TimeLimit,
    metrics: ModelMetrics | None,
    wakeup: Wakeup | None,
) -> LoadedModel:
    began_s = time.perf_counter()
    signature = file.signature
    stateful = bool(signature.states)
    # Integer inputs are mostly indices, and an index outside its table fails the run for all rows.
    indexed = any(
        tensor.dtype.startswith(("int", "uint")) for tensor in (*signature.inputs, *signature.open_inputs)
    )
    # So may a count of timesteps be one.
    indexed = indexed or (file.description.feeds is not None and file.description.feeds.counts)
    options = EngineOptions.of(settings, device, stateful=stateful)
    _ = file.sha256  # of what is loaded now: it is kept
    if stateful:
        options = replace(options, make_journal=journal_maker(file, settings))
    if options.spilling_rows is not None and file.generation is not None:
        # A step of a search reads one row and writes another.
        options = replace(options, max_batch=min(options.max_batch, options.spilling_rows // 2))
    check_memory(
        signature,
        file.bytes,
        max_sessions=options.max_sessions,
        slots=options.spilling_rows if options.make_journal is None else None,
        max_batch=min(options.max_batch, signature.max_batch or options.max_batch),
        max_steps=options.max_chunk,
        state_on_host=device.kind == "cpu",
    )
    graph = file.load()
    pooled = pool_states(
        graph,
        signature,
        file.constants,
        scatter=device.scatter,
        few_kernels=device.few_kernels,
        commit_last=indexed,
        gives_rows=options.make_journal is not None and not device.on_host,
    )

    def make(options: EngineOptions) -> Engine:
        return Engine(pooled, signature, options, limit=limit)

    log = _log.bind(model=file.name, version=file.version)
    with making_sessions(file, graph):
        proved = proved_engine(make, options, graph, settings, log, description_remedy(file))
    engine, restrictions = proved.engine, proved.restrictions
    if unbatched := sorted(file.description.new_axes):
        restrictions["rows"] = f"one session a run: {cut(', '.join(unbatched))} without a batch axis"
    if metrics is None:
        metrics = ModelMetrics(file.name, file.version)
    first_slot, max_sessions = engine.pool.first_slot, settings.max_sessions
    capacity: Capacity
    if wakeup is None:
        capacity = Capacity(SlotAllocator(first_slot, max_sessions) if stateful else None, max_sessions)
    else:
        capacity = SharedCapacity(max_sessions, first_slot, stateful=stateful)
    spilling = engine.pool.spilling
    if spilling is not None:
        spilling.versions, spilling.told = capacity.versions, metrics.moved
    batcher = Batcher(
        capacity,
        max_batch=engine.max_batch,
        max_chunk=engine.max_chunk,
        ragged=signature.lengths is not None,
        coalesce=stateful,
        queue_messages=settings.queue_messages,
        on_cancelled=metrics.work_cancelled,
        wakeup=wakeup,
        machine=measured(),
        fair=settings.policy_file is not None,
    )
    pool = Pool(
        settings.max_sessions if stateful else 0,
        engine.pool.slot_bytes,
        lambda: capacity.slots_used,
        lambda: batcher.rows_waiting,
        lambda: 0 if spilling is None else spilling.spilled,
    )
    ragged, allow_non_finite = signature.lengths is not None, settings.non_finite == "allow"
    feedback = None
    if file.generation is not None:
        feedback = GenerationLoop(
            signature, file.generation, batcher, metrics, allow_non_finite=allow_non_finite
        )
    runner = Runner(
        f"{file.name}-{file.version}",
        engine,
        batcher,
        metrics,
        allow_non_finite=allow_non_finite,
        feedback=feedback,
    )
    frames = FrameRounds(engine.max_batch)
    runner.add(frames, FrameRound, FrameRunner(engine, batcher, metrics, ragged=ragged).run)
    with first_runs(file):
        runner.start()
    for kind, text in restrictions.items():
        log.warning("model restricted", kind=kind, restriction=text)
    if file.description.doubts:
        log.warning(
            "model without states",
            may_be=list(file.description.doubts),
            remedy=f"if one is a state, say so in {sidecar_path(file.path).name}",
        )
    metrics.restricted = frozenset(restrictions)
    metrics.about = {
        "kind": file.card.kind if file.card else "onnx",
        "arithmetic": str(proved.arithmetic)[:_MOST_ABOUT],
        "proof": proved.proof[:_MOST_ABOUT],
        "restrictions": "\n".join(restrictions.values())[:_MOST_ABOUT],
    }
    metrics.load_s = time.perf_counter() - began_s
    log.info(
        "model loaded",
        device=str(device),
        described_by=file.description.source,
        arithmetic=str(proved.arithmetic),
        states=file.description.states(),
        seconds=round(metrics.load_s, 3),
        state_bytes_a_session=engine.pool.slot_bytes,
        state_bytes_set_aside=engine.pool.slot_bytes * engine.pool.rows,
    )
    return LoadedModel(
        file,
        engine,
        batcher,
        runner,
        frames,
        metrics,
        settings.max_sessions,
        pool,
        tuple(restrictions.values()),
        proved.proof,
        str(proved.arithmetic),
    )
