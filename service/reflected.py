"""Reflection over every service of the server, those whose messages live in a descriptor pool of their own too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2


def serve_reflection(server: Any, files: Iterable[FileDescriptor]) -> None:
    """Let clients ask `server` for the services that `files` define, and for reflection itself."""
    described = (*files, reflection_pb2.DESCRIPTOR)
    pool = DescriptorPool()
    added: set[str] = set()
    for file in described:
        _add(pool, file, added)
    names = tuple(service.full_name for file in described for service in file.services_by_name.values())
    reflection.enable_server_reflection(names, server, pool=pool)


def _add(pool: DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    """`file` after what it imports."""
    for needed in file.dependencies:
        _add(pool, needed, added)
    if file.name not in added:
        pool.AddSerializedFile(file.serialized_pb)
        added.add(file.name)
