"""The operating system's bounds on this process: file descriptors and memory."""

from __future__ import annotations

import resource
from pathlib import Path

from streamcell.service.settings import Settings

_SPARE = 256  # descriptors that are no connections: files, models, threads' event descriptors
_LEAST_BYTES = 256 * 1024 * 1024  # for what clients have in memory
_FEWEST = 16  # connections with which serving makes sense


def _raise_descriptors() -> int:
    """Raise the soft bound on file descriptors to the hard one; the bound then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**31


def check_descriptors(settings: Settings) -> None:
    """Raise the bound on file descriptors, and check that it suffices.

    Raises:
        OSError: the hard bound is too low; the text says what is needed and how to get it.
    """
    has = _raise_descriptors()
    needs = descriptors_needed(settings)
    if has < needs:
        raise OSError(
            f"{has} file descriptors are too few: with --frontends {settings.frontends} and --max-connections "
            f"{settings.max_connections or _FEWEST} each process needs {needs}; "
            f"raise the hard limit (ulimit -Hn {needs}, LimitNOFILE={needs}, or docker run --ulimit nofile={needs})"
        )


def descriptors_needed(settings: Settings) -> int:
    """Descriptors a process at least, for a few models."""
    return _SPARE + 64 * settings.frontends + (settings.max_connections or _FEWEST)


def connections_allowed(settings: Settings) -> int:
    """Connections that a process that answers calls takes."""
    if settings.max_connections is not None:
        return settings.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = (2**31 if soft == resource.RLIM_INFINITY else soft) - descriptors_needed(settings) + _FEWEST
    return max(_FEWEST, min(2 * settings.max_sessions, room))


def memory_bounds(settings: Settings) -> tuple[int, int]:
    """Bytes that clients may have in the memory of a process that answers calls: all, and those of one connection."""
    whole = settings.max_in_flight_bytes or max(_LEAST_BYTES, memory_bytes() // 4)
    share = whole // max(1, settings.frontends)
    return share, min(share, settings.max_connection_bytes or whole // 2)


def memory_bytes(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int:
    """The memory that this process may have: its control group's bound, or the machine's."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemTotal:"):
            found = int(line.split()[1]) * 1024
            break
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        if text != "max":
            found = min(found, int(text))
    return found
