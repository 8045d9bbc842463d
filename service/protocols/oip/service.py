"""`inference.GRPCInferenceService`: the Open Inference Protocol over the same models and sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version

from streamcell.proto.inference import oip
from streamcell.service.access.identity import Identity
from streamcell.service.access.operators import check_operator
from streamcell.service.engine.device import Device
from streamcell.service.errors import ModelUnloading, NotFound, NotSupported, ServiceError
from streamcell.service.lifecycle.loaded_model import LoadedModel
from streamcell.service.metrics.server_metrics import ServerMetrics
from streamcell.service.protocols.common.metered import metered, metered_once
from streamcell.service.sessions.attention import Attention
from streamcell.service.transport.answering import Answering
from streamcell.service.transport.calls import (
    Call,
    Handler,
    Lane,
    OnRequest,
    OpenStream,
    StreamHandler,
    UnaryCall,
)

from .describe import config, metadata, statistics
from .scoped_infer import ScopedInfer
from .stream import InferStream
from .unary import infer_once

SERVICE = oip.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

# Extension names that Triton's clients ask for.
EXTENSIONS = ("sequence", "model_configuration", "model_repository", "statistics", "parameters")


# Triton's calls that this server refuses in words, which its clients show, instead of as unknown methods. A client that
# shares memory would name a file and offsets on the server's machine, and could change the bytes after their check.
_NO_SHARED_MEMORY = (
    "this server maps no client's memory: send the tensors in the request, and read them from the reply"
)
_NO_SETTINGS = "this server's log and traces are set by its flags alone, see docs/deploy.md"
_REFUSED = {
    **{
        f"{kind}SharedMemory{action}": _NO_SHARED_MEMORY
        for kind in ("System", "Cuda")
        for action in ("Status", "Register", "Unregister")
    },
    "TraceSetting": _NO_SETTINGS,
    "LogSettings": _NO_SETTINGS,
}


class OipService:
    """The calls that run no model, and the handlers of those that do."""

    def __init__(self, infer: ScopedInfer, device: Device, metrics: ServerMetrics, name: str) -> None:
        """`name`: the server's, for its metadata."""
        self._infer = infer
        self._streams: set[InferStream] = set()
        self._scopes = infer.scopes
        self._device = device
        self._metrics = metrics
        self._name = name

    def handlers(
        self,
        lane: Lane,
        answering: Answering,
        traced: Callable[[str, OpenStream], OpenStream] = lambda method, open_: open_,
        traced_unary: Callable[[str, OnRequest], OnRequest] = lambda method, on_request: on_request,
    ) -> dict[str, Handler]:
        """The method handlers by name; the calls that run a model are `traced`, given the method's name."""
        now = answering.now

        infer = self._infer

        def open_(call: Call) -> StreamHandler:
            try:
                scope = infer.of(call.caller, call.peer)
            except ServiceError as error:
                return infer.scopes.refused(call, error)
            return metered(call, scope.context.grant, lambda call: InferStream(call, scope, self._streams))

        def once(call: UnaryCall, data: bytes) -> None:
            try:
                scope = infer.of(call.caller, call.peer)
                metered_once(call, data, scope.context.grant, lambda call: infer_once(call, data, scope))
            except ServiceError as error:
                infer.scopes.refuse(call, error)

        return {
            "ModelInfer": lane.unary(traced_unary("ModelInfer", once)),
            "ModelStreamInfer": lane.stream(traced("ModelStreamInfer", open_)),
            "ServerLive": lane.unary(now(oip.ServerLiveRequest, self.server_live)),
            "ServerReady": lane.unary(now(oip.ServerReadyRequest, self.server_ready)),
            "ModelReady": lane.unary(now(oip.ModelReadyRequest, self.model_ready)),
            "ServerMetadata": lane.unary(now(oip.ServerMetadataRequest, self.server_metadata)),
            "ModelMetadata": lane.unary(now(oip.ModelMetadataRequest, self.model_metadata)),
            "ModelConfig": lane.unary(now(oip.ModelConfigRequest, self.model_config)),
            "ModelStatistics": lane.unary(now(oip.ModelStatisticsRequest, self.model_statistics)),
            **{
                name: lane.unary(answering.never(partial(NotSupported, f"{name}: {text}")))
                for name, text in _REFUSED.items()
            },
        }

    def server_live(self, request: oip.ServerLiveRequest, caller: Identity) -> oip.ServerLiveResponse:
        """True: a server that answers is alive."""
        return oip.ServerLiveResponse(live=True)

    def server_ready(self, request: oip.ServerReadyRequest, caller: Identity) -> oip.ServerReadyResponse:
        """Whether new sequences are taken."""
        return oip.ServerReadyResponse(ready=self._metrics.ready)

    def model_ready(self, request: oip.ModelReadyRequest, caller: Identity) -> oip.ModelReadyResponse:
        """True if new sequences of the model are taken; false for an unknown model."""
        try:
            self._scopes.of(caller).models.find(request.name, request.version)
        except (ModelUnloading, NotFound):
            return oip.ModelReadyResponse(ready=False)
        return oip.ModelReadyResponse(ready=self._metrics.ready)

    def server_metadata(
        self, request: oip.ServerMetadataRequest, caller: Identity
    ) -> oip.ServerMetadataResponse:
        """Name, version, extensions."""
        return oip.ServerMetadataResponse(
            name=self._name, version=version("streamcell"), extensions=EXTENSIONS
        )

    def model_metadata(
        self, request: oip.ModelMetadataRequest, caller: Identity
    ) -> oip.ModelMetadataResponse:
        """One model's inputs and outputs; raises ModelNotFound or VersionNotFound."""
        models = self._scopes.of(caller).models
        model = models.find(request.name, request.version)
        return metadata(model, list(models.versions(model.file.name)))

    def model_config(self, request: oip.ModelConfigRequest, caller: Identity) -> oip.ModelConfigResponse:
        """One model's configuration; raises ModelNotFound or VersionNotFound."""
        model = self._scopes.of(caller).models.find(request.name, request.version)
        idle_timeout_s = self._scopes.whole.sessions.idle_timeout_s
        return oip.ModelConfigResponse(config=config(model, self._device, idle_timeout_s))

    def model_statistics(
        self, request: oip.ModelStatisticsRequest, caller: Identity
    ) -> oip.ModelStatisticsResponse:
        """One version's figures, or every version's of one model or of all, for operators: they are of all tenants.

        Raises:
            NotPermitted: the caller is no operator.
            ModelNotFound, VersionNotFound: as `model_metadata`.
        """
        check_operator(caller, "ModelStatistics")
        served = self._scopes.of(caller).models
        models: Iterable[LoadedModel] = served
        if request.name:
            found = served.find(request.name, request.version)
            models = [found] if request.version else served.versions(request.name).values()
        return oip.ModelStatisticsResponse(model_stats=map(statistics, models))

    def end_abandoned(self, attention: Attention, all_read: Callable[[], bool]) -> None:
        """During shutdown: end the idle sequences without a stream."""
        for infer in self._infer.all():
            infer.sequences.end_abandoned(attention, all_read)

    def end_streams(self, error: ServiceError) -> None:
        """The server has shut down: end the streams that are left, with `error`."""
        for stream in list(self._streams):
            stream.end(error)
