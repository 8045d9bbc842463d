"""One model's engine thread: it takes jobs and runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from streamcell.service.engine.engine import Engine
from streamcell.service.metrics.model_metrics import ModelMetrics

from .batch import Batch
from .batch_runner import BatchRunner, Feedback
from .batcher import Batcher
from .turn_taking import Source


class Runner:
    """Runs one model's jobs on its own thread, from `start` until `stop`."""

    def __init__(
        self,
        name: str,
        engine: Engine,
        batcher: Batcher,
        metrics: ModelMetrics,
        *,
        allow_non_finite: bool = False,
        feedback: Feedback | None = None,
    ) -> None:
        """Make the runner of an engine that has not been warmed up.

        Args:
            name: the model's, for the thread.
            engine: what runs.
            batcher: gives the jobs.
            metrics: of the model.
            allow_non_finite: whether inputs may hold NaN and infinity.
            feedback: if the model generates.
        """
        self._engine = engine
        self._batcher = batcher
        batch_runner = BatchRunner(engine, batcher, metrics, feedback, allow_non_finite=allow_non_finite)
        # A CUDA graph is bound to the thread that captured it.
        self._runs_inline = batch_runner.run if engine.device.on_host else None
        # How each kind of job is run.
        self._runs: dict[type, Callable[[Any], None]] = {Batch: batch_runner.run}
        self._warm: Future[None] = Future()
        self._engine_thread = threading.Thread(target=self._loop, name=f"engine-{name}", daemon=True)

    def _loop(self) -> None:
        try:
            self._engine.warm_up()
        except BaseException as error:
            self._engine.close()
            self._warm.set_exception(error)
            return
        self._warm.set_result(None)
        while (job := self._batcher.take()) is not None:
            self._runs[type(job)](job)

    def add(self, source: Source, kind: type, run: Callable[[Any], None]) -> None:
        """Take jobs of another kind, too: `source` forms them and `run` runs one."""
        self._runs[kind] = run
        self._batcher.add_source(source)

    def start(self) -> None:
        """Warm the engine up on its own thread, and start taking jobs. Returns once the engine is warm.

        Raises:
            DeviceError and ONNX Runtime's errors: the warm-up failed; the thread has ended.
            RuntimeError: the machine gives no more threads.
        """
        try:
            self._engine_thread.start()
        except RuntimeError:  # the machine gives no more threads
            self._engine.close()
            raise
        try:
            self._warm.result()
        finally:
            self._warm = Future()  # an error in it would keep the engine alive
        self._batcher.inline.serve(self._runs_inline)

    def stop(self) -> None:
        """Finish the running job and end the thread. Call after the sessions have been ended."""
        self._batcher.stop()
        self._engine_thread.join()
        self._batcher.inline.serve(None)
        self._engine.close()
