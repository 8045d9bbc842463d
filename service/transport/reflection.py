"""Reflection over every service of the server, those whose messages live in a descriptor pool of their own too.

grpcio-reflection makes the answers; the calls run on the lane, so none of them holds a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

from streamcell.service.errors import ReflectionLimit, ServiceError, as_status

from .answering import OnError, parse
from .calls import Call, Handler, Lane
from .first_messages import FirstMessages

SERVICE = reflection.SERVICE_NAME

MOST_CALLS = 16


class Reflection:
    """Answers clients that ask which services and messages there are."""

    def __init__(self, files: Iterable[FileDescriptor], owing: FirstMessages, on_error: OnError) -> None:
        """Describe the services that `files` define, and reflection itself.

        Args:
            files: the files to describe.
            owing: ends calls that send no message, neither a first nor a next one.
            on_error: called for each error sent to a client.
        """
        described = (*files, reflection_pb2.DESCRIPTOR)
        pool = DescriptorPool()
        added: set[str] = set()
        for file in described:
            _add(pool, file, added)
        names = tuple(service.full_name for file in described for service in file.services_by_name.values())
        self._servicer = reflection.ReflectionServicer(names, pool=pool)
        self.first_messages = owing
        self.on_error = on_error
        self._running = 0
        self._lock = threading.Lock()

    def handlers(self, lane: Lane) -> dict[str, Handler]:
        """The method handlers by name."""
        return {"ServerReflectionInfo": lane.stream(lambda call: _ReflectionCall(call, self))}

    def enter(self) -> bool:
        """Admit one more call; False if the bound on running calls is reached."""
        with self._lock:
            fits = self._running < MOST_CALLS
            self._running += fits
        return fits

    def leave(self) -> None:
        """A call is over."""
        with self._lock:
            self._running -= 1

    def answer(self, data: bytes) -> bytes:
        """The reply to one request; raises MalformedMessage and MessageTooLarge."""
        request = parse(reflection_pb2.ServerReflectionRequest, data)
        reply: Any = next(self._servicer.ServerReflectionInfo(iter((request,)), None))
        answer: bytes = reply.SerializeToString()
        return answer


class _ReflectionCall:
    """One reflection call (a `calls.StreamHandler`)."""

    def __init__(self, call: Call, reflection: Reflection) -> None:
        self._call = call
        self._reflection = reflection
        self._entered = reflection.enter()
        if not self._entered:
            self._fail(
                ReflectionLimit(
                    f"{MOST_CALLS} reflection calls are running: end those that are done, or ask again later",
                    limit=MOST_CALLS,
                )
            )

    def on_message(self, data: bytes) -> bool:
        self._reflection.first_messages.unwatch(self)
        try:
            reply = self._reflection.answer(data)
        except ServiceError as error:
            self._fail(error)
            return False
        self._call.reply(reply)
        self._reflection.first_messages.watch(self, self._call.end)
        return True

    def on_half_close(self) -> None:
        self._call.end(grpc.StatusCode.OK)

    def on_end(self, cancelled: bool) -> None:
        self._reflection.first_messages.unwatch(self)
        if self._entered:
            self._reflection.leave()

    def _fail(self, error: ServiceError) -> None:
        self._reflection.on_error(error)
        self._call.end(*as_status(error))


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """`file` after what it imports."""
    for needed in file.dependencies:
        _add(pool, needed, added)
    if file.name not in added:
        pool.AddSerializedFile(file.serialized_pb)
        added.add(file.name)
