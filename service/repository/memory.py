"""Checks that a model fits into the memory that this process may have."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from streamcell.card import Signature
from streamcell.service.load_errors import ModelLoadError

_V2, _V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")
# Copies of a file in memory while it is loaded: as read, as rewritten, as given to ONNX Runtime.
_COPIES_OF_A_FILE = 3
# Bytes of a free slot in lists and tables, in addition to its state.
_SLOT_BYTES = 64


def check_memory(
    signature: Signature,
    file_bytes: int,
    *,
    max_sessions: int,
    slots: int | None = None,
    max_batch: int,
    max_steps: int,
    state_on_host: bool,
) -> None:
    """Raise ModelLoadError if a model with all its sessions would take more memory than there is.

    Args:
        signature: the model's.
        file_bytes: its file's size, that of external data included.
        max_sessions: sessions it is to have room for.
        slots: rows that they share on the device, if these are fewer; the host's memory then has room for all, besides.
        max_batch, max_steps: the largest run.
        state_on_host: whether states are kept in the host's memory.
    """
    rows = max_sessions + max_batch + 1 if signature.states else 0
    on_device = (slots or 0) * signature.session_bytes if state_on_host and rows else 0
    given = sum(value.step_bytes for value in signature.open_inputs)  # kept as it came, too
    in_memory = state_on_host or slots is not None
    a_session = (signature.session_bytes if in_memory else 0) + given + _SLOT_BYTES
    states = rows * a_session + on_device
    tensors = (*signature.inputs, *signature.outputs)
    staging = max_batch * (max_steps if signature.has_time else 1) * sum(t.step_bytes for t in tensors)
    file = _COPIES_OF_A_FILE * file_bytes
    have = available_bytes()
    if states + staging + file <= have:
        return
    advice = "give the server more memory"
    if staging + file < have and states:
        fit = max(0, (have - staging - file - on_device) // a_session - max_batch - 1)
        if fit:
            advice = f"set --max-sessions to {fit} or less, or {advice}"
    elif file < have:
        advice = f"set --max-batch ({max_batch}) or --max-chunk lower, or {advice}"
    raise ModelLoadError(
        f"too little memory: {_size(have)} are available, and the model would take {_size(states + staging + file)}: "
        f"{_size(states)} for the states of {max_sessions} sessions, {_size(staging)} for runs of {max_batch} rows, "
        f"{_size(file)} to load its file; {advice}"
    )


def available_bytes() -> int:
    """Bytes that this process can take before the kernel, its cgroup or its own limit refuses them or kills it."""
    return max(0, min(_left_on_the_machine(), *_left_in_cgroups(), _left_to_the_process()))


def _left_on_the_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 62


def _left_in_cgroups() -> Iterator[int]:
    """For each cgroup of the process, the minimum of its limit and those of the groups around it."""
    yield 1 << 62
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, most, used = _V2, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most, used = _V1, "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container its own group is often mounted as the root.
        for group in (folder, *folder.parents):
            if root != group and root not in group.parents:
                break
            yield _left_in(group, most, used)


def _left_in(group: Path, most: str, used: str) -> int:
    try:
        limit, now = (group / most).read_text().strip(), int((group / used).read_text())
        if limit == "max":
            return 1 << 62
        cached = 0
        for line in (group / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name.removeprefix("total_") in ("active_file", "inactive_file"):
                cached = max(cached, int(value))  # both can be reclaimed, the larger one surely
        return int(limit) - now + cached
    except (OSError, ValueError):
        return 1 << 62


def _left_to_the_process() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return 1 << 62
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return limit
    return limit - pages * resource.getpagesize()


def _size(count: int) -> str:
    """Bytes as a text with three digits and a unit."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.3g} {unit}" if size < 1000 else f"{size:.0f} {unit}"
