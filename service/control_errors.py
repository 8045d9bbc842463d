"""The errors of calls that load and unload models, or shut the server down."""

from __future__ import annotations

import grpc

from .errors import InvalidArgument, ServiceError


class ModelInUse(ServiceError):
    """The model has live sessions, and this server does not unload models in use."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_IN_USE"


class ModelLoadFailed(ServiceError):
    """The model's file cannot be served; the versions served before stay."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_LOAD_FAILED"


class LoadParameter(InvalidArgument):
    """A load with parameters. On this server the model's files describe it."""

    reason = "LOAD_PARAMETER"


class ModelControlOff(ServiceError):
    """This server does not load or unload models at a client's request."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "MODEL_CONTROL_OFF"


class NoStore(ServiceError):
    """This server shares its sessions with no other one, so there is nowhere to move them."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_STORE"


class StillMoving(ServiceError):
    """A part of this server's sessions is on its way to other ones: a second part would go with it."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "STILL_MOVING"


class DrainOff(ServiceError):
    """This server does not shut down at a client's request."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAIN_OFF"
