"""CPU time and memory of a process and its children, from the kernel (Linux)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_CPUCLOCK_SCHED = 2


def family(pid: int) -> list[int]:
    """`pid` and its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has just ended
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """CPU time of the processes, all their threads, ended ones included, user and system, in seconds.

    Read from each process's CPU clock (clock_getcpuclockid(3)): nanoseconds, where /proc/PID/stat counts ticks
    of 10 ms and /proc/PID/schedstat only one thread.
    """
    return sum(time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED) for pid in pids)


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of the processes, shared pages counted once for each."""
    total = 0
    for pid in pids:
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                total += int(line.split()[1]) * 1024
    return total


def scheduling_group(pid: int) -> str:
    """The group of processes that the kernel gives a share of the cores, such as "/autogroup-65" (sched(7)).

    "" if the kernel does not group processes by login session.
    """
    try:
        if (_PROC / "sys/kernel/sched_autogroup_enabled").read_text().strip() != "1":
            return ""
        return (_PROC / str(pid) / "autogroup").read_text().split()[0]
    except (OSError, IndexError):  # a kernel without autogroups, or a process that has just ended
        return ""


def libraries(pid: int) -> list[str]:
    """The names of the shared libraries that a process has mapped."""
    lines = (_PROC / str(pid) / "maps").read_text().splitlines()
    files = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return sorted({Path(file).name for file in files if ".so" in Path(file).name})
