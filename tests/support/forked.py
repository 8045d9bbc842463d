"""Servers that begin as forks of a process that has imported the package: imports are most of a start's CPU time.

From the fork on, such a server is `streamcell serve` with its own command line, variables and files, and a child of
this process. A test of how a process starts takes `ServerProcess`, which executes a new interpreter.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping, Sequence

from streamcell.client.local_server import ServerProcess

from .forking import Forked, Template

# Others may change what has been imported.
_MODULES = ("streamcell.cli", "streamcell.cli.child")
# Variables that nothing reads before the fork.
_LATE = ("STREAMCELL_", "PYTEST_")


class ForkedServer(ServerProcess):
    """The same as `ServerProcess`, if nothing else is asked for than `streamcell serve` and its settings."""

    def _begin(
        self, command: Sequence[str], environment: Mapping[str, str], own_group: bool
    ) -> subprocess.Popen[str]:
        Forked.template = _template(frozenset(filter(_is_early, os.environ.items())))
        late = all(name.startswith(_LATE) for name in Forked.template.changed(environment))
        if own_group or not late or command[2] not in _MODULES:
            return super()._begin(command, environment, own_group)
        return Forked(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def _is_early(variable: tuple[str, str]) -> bool:
    return not variable[0].startswith(_LATE)


@functools.cache
def _template(variables: frozenset[tuple[str, str]]) -> Template:
    """One that was started with these variables: what tests import sets some, such as torch's compiler."""
    return Template.start()
