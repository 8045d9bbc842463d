"""A process that has imported the server and forks processes of it, and Popen of such a fork: see `forked.py`.

It has no thread of Python's, and has called neither grpc nor ONNX Runtime: both start theirs when they are used.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

# What a server's processes import.
_IMPORTED = (
    "streamcell.cli.commands.serve",
    "streamcell.cli.commands.server_settings",
    "streamcell.service.server",
    "streamcell.service.signals",
    "streamcell.service.transport.fast_lane",
    "streamcell.service.processes.supervisor",
    "streamcell.service.processes.engine.main",
    "streamcell.service.processes.frontend.main",
)
_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_TITLE = "-" * 4000  # room in the process's memory for the command lines of its forks


@dataclass(frozen=True)
class Begun:
    """What a fork is to be.

    Attributes:
        command: `python -m MODULE ARGUMENTS…`.
        numbers: its descriptors.
        environment: the variables that are not the template's; None: it is not there.
        folder: its current folder.
        group: its process group, 0 for one of its own, -1 for the template's.
    """

    command: Sequence[str]
    numbers: Sequence[int]
    environment: Mapping[str, str | None]
    folder: str
    group: int

    def become(self, fds: Sequence[int]) -> None:
        """Be it, in a fork that was given `fds`."""
        above = max(self.numbers) + 1  # out of the way
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
        for fd in fds:
            os.close(fd)
        for copy, number in zip(copies, self.numbers, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        for name, text in self.environment.items():
            if text is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = text
        os.chdir(self.folder)
        if self.group >= 0:
            os.setpgid(0, self.group)
        sys.argv[1:] = self.command[3:]
        _show(self.command)

    @property
    def has_processes(self) -> bool:
        """Whether it will start processes that are forks, too."""
        return "--frontends" in self.command or os.environ.get("STREAMCELL_FRONTENDS", "0") != "0"


def _show(command: Sequence[str]) -> None:
    """Let /proc show this command line, which `ps` and tests read."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[45:47])
    text = b"\0".join(map(os.fsencode, command))[: end - start - 1]
    with open("/proc/self/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(text.ljust(end - start, b"\0"))


class Template:
    """The process that forks, as the one that asks it sees it: its parent. It ends with that one.

    Attributes:
        environment: that of a fork to which nothing else is given.
    """

    def __init__(self, asks: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        """`asks`: the other end of the socket that it reads; `process`: it, to be kept, if it was started by Popen."""
        self._asks, self._process, self.environment = asks, process, dict(os.environ)
        self._lock = threading.Lock()

    @classmethod
    def start(cls) -> Template:
        """Start it."""
        asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                # -P: without this folder, whose modules have usual names.
                [sys.executable, "-P", __file__, str(theirs.fileno()), _TITLE],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        return cls(asks, process)

    def changed(self, environment: Mapping[str, str]) -> dict[str, str | None]:
        """What in `environment` is not as it is in a fork; None: it is not there."""
        ours = self.environment
        return {
            name: environment.get(name)
            for name in {*environment, *ours}
            if environment.get(name) != ours.get(name)
        }

    def fork(self, begun: Begun, fds: Sequence[int]) -> int:
        """Fork a process, which becomes this one's child; its process id. `fds`: for its `begun.numbers`."""
        with self._lock:
            _adopt(True)  # orphans among the descendants
            try:
                socket.send_fds(self._asks, [json.dumps(asdict(begun)).encode()], fds)
                pid = self._asks.recv(32)
            finally:
                _adopt(False)
        if not pid:
            raise OSError("the process that forks servers has ended")
        return int(pid)


def _adopt(yes: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


class Forked(subprocess.Popen[Any]):
    """Popen of `python -m MODULE ARGUMENTS…`, as a fork of a process that has imported the module."""

    template: ClassVar[Template]

    def _execute_child(self, args: Sequence[str], *given: Any) -> None:
        pass_fds, environment, pipes, group = given[3], given[5], given[9:15], given[-1]
        standard = [at if fd == -1 else fd for at, fd in enumerate((pipes[0], pipes[3], pipes[5]))]
        changed = self.template.changed(os.environ if environment is None else environment)
        begun = Begun([*args], [0, 1, 2, *pass_fds], changed, os.getcwd(), group)
        try:
            self.pid = self.template.fork(begun, [*standard, *pass_fds])
            self._child_created = True
        finally:
            self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _forks(asked: socket.socket) -> Begun:
    """Fork a process for each message. Returns only in the forks, with what each has become."""
    while True:
        text, fds, _, _ = socket.recv_fds(asked, 1 << 20, 16)
        if not text:
            os._exit(0)
        told, tells = os.pipe()
        if not (between := os.fork()):
            if pid := os.fork():
                os.write(tells, str(pid).encode())
                os._exit(0)
            break
        os.close(tells)
        os.waitpid(between, 0)  # now the process is a child of the one that asked
        asked.send(os.read(told, 32))
        for fd in (told, *fds):
            os.close(fd)
    asked.close()
    os.close(told)
    os.close(tells)
    begun = Begun(**json.loads(text))
    begun.become(fds)
    return begun


def _main() -> str:
    """Be the template whose socket is the first argument.

    Returns:
        In each fork, the module that it is to run.
    """
    from streamcell.service.transport.grpc_polling import read_on_serving_thread

    read_on_serving_thread()  # as the processes do, before grpcio is imported
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a fork that looks for garbage looks at none of what is imported, and copies none of its pages
    begun = _forks(socket.socket(fileno=int(sys.argv[1])))
    if begun.has_processes:
        # Only an ancestor can adopt a fork, so this server has a template of its own.
        asks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            theirs.close()
            Forked.template = Template(asks)
            children = importlib.import_module("streamcell.service.processes.children")
            children.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": Forked})  # type: ignore[attr-defined]
        else:
            asks.close()
            begun = _forks(theirs)
    return begun.command[2]


if __name__ == "__main__":
    _module = _main()
    runpy.run_module(_module, run_name="__main__", alter_sys=True)
