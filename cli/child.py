"""`python -m streamcell.cli.child PID FOLDER ARGUMENTS…`: the command line, for as long as process PID lives.

`streamcell.local` runs its server with it: if that process ends, even by SIGKILL, the server ends, too. It then
removes FOLDER, if that is not empty.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import threading
import time

_LOOK_S = 0.5


def wait_for_end(pid: int) -> None:
    """Return when process `pid` has ended."""
    try:
        if hasattr(os, "pidfd_open"):
            ended = select.poll()
            ended.register(os.pidfd_open(pid), select.POLLIN)
            ended.poll()
            return
    except ProcessLookupError:
        return
    except OSError:  # a kernel or a sandbox without it
        pass
    while _lives(pid):
        time.sleep(_LOOK_S)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _follow(pid: int, folder: str) -> None:
    wait_for_end(pid)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the command line."""
    pid, folder, *arguments = sys.argv[1:]
    threading.Thread(target=_follow, args=(int(pid), folder), name="parent", daemon=True).start()
    sys.argv = ["streamcell", *arguments]
    from .main import main as run

    run()


if __name__ == "__main__":
    main()
