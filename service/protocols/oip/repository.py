"""The Open Inference Protocol's repository calls: index, load and unload.

Loading can take long and unloading waits for sessions, so both are answered when they are done, and no
thread waits for them.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from concurrent.futures import Future
from typing import Any, Protocol

from streamcell.proto.inference import oip
from streamcell.service.access.identity import Identity
from streamcell.service.access.operators import check_operator
from streamcell.service.control_errors import LoadParameter
from streamcell.service.errors import shown
from streamcell.service.lifecycle.control import ModelLifecycle
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.protocols.common.scopes import Scopes
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import Handler, Lane

# What Triton's clients always send with an unload. No model here depends on another.
_UNLOAD_PARAMETERS = ("unload_dependents",)


class _Ask(Protocol):
    model_name: str
    repository_name: str
    parameters: Any


class OipRepository:
    """`RepositoryIndex`, `RepositoryModelLoad` and `RepositoryModelUnload`."""

    def __init__(self, control: ModelLifecycle, scopes: Scopes[LoadedModel], most_bytes: int) -> None:
        """`most_bytes`: the bound on a load's message, which may carry files; those are refused."""
        self._control = control
        self._scopes = scopes
        self._most_bytes = most_bytes

    def handlers(self, lane: Lane, answering: Answering) -> dict[str, Handler]:
        """The method handlers by name."""
        load, unload = oip.RepositoryModelLoadResponse(), oip.RepositoryModelUnloadResponse()
        later, most = answering.later, self._most_bytes
        return {
            "RepositoryIndex": lane.unary(answering.sliced(oip.RepositoryIndexRequest, self.index)),
            "RepositoryModelLoad": lane.unary(later(oip.RepositoryModelLoadRequest, self.load, load, most)),
            "RepositoryModelUnload": lane.unary(
                later(oip.RepositoryModelUnloadRequest, self.unload, unload, most)
            ),
        }

    def index(
        self, request: oip.RepositoryIndexRequest, caller: Identity
    ) -> Generator[None, None, oip.RepositoryIndexResponse]:
        """Every version of every model that the caller may use, or only the ready ones. Reading may take long."""
        grant = self._scopes.of(caller).grant
        yield
        return oip.RepositoryIndexResponse(
            models=[
                oip.RepositoryIndexResponse.ModelIndex(
                    name=entry.name, version=entry.version, state=entry.state, reason=entry.reason
                )
                for entry in self._control.index()
                if (entry.state == "READY" or not request.ready) and (grant is None or grant.sees(entry.name))
            ]
        )

    def load(self, request: oip.RepositoryModelLoadRequest, caller: Identity) -> Future[None]:
        """Load what the folder has of a model; raises NotPermitted, LoadParameter, and as `ModelLifecycle.load`."""
        check_operator(caller, "RepositoryModelLoad")
        _check(request, ())
        return self._control.load(request.model_name)

    def unload(self, request: oip.RepositoryModelUnloadRequest, caller: Identity) -> Future[None]:
        """Unload a model; raises NotPermitted, LoadParameter, and as `ModelLifecycle.unload`."""
        check_operator(caller, "RepositoryModelUnload")
        _check(request, _UNLOAD_PARAMETERS)
        return self._control.unload(request.model_name)


def _check(request: _Ask, known: Collection[str]) -> None:
    """Refuse configurations and files in the call: on this server a model's files describe it."""
    unknown = min(set(request.parameters) - set(known), default=None)
    if unknown is not None:
        raise LoadParameter(
            f"parameter {shown(unknown)}: a model is described by its files on the server; put the .onnx file, and a "
            "sidecar if it needs one, into the folder of models and load it without parameters",
            parameter=unknown,
        )
