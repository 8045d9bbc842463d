"""A server in a child process, with its client: for notebooks, scripts and tests. `streamcell.local` makes it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from streamcell.client.aio.client import AsyncClient
from streamcell.client.blocking.client import Client

from .channel import Options
from .local_server import ServerProcess

# Loading may take long: as long as the server's own limit on a load.
_START_S = 300.0


class LocalServer(ServerProcess):
    """`streamcell serve` that ends with this process, however this process ends.

    It has a process group of its own, so a Ctrl-C or a notebook's interrupt does not reach it, and its settings do not
    depend on this process's `STREAMCELL_*` variables.
    """

    def __init__(self, models: Path, settings: Mapping[str, Any], temporary: Path | None) -> None:
        """Start the process.

        Args:
            models: the folder of models.
            settings: settings of `streamcell serve` by name, as `max_sessions`.
            temporary: a folder to remove at the end.
        """
        self._owner = os.getpid()
        self._temporary = temporary
        self._ended = False
        super().__init__(
            models,
            *_flags({"grace_s": 0, **settings}),
            environment={name: None for name in os.environ if name.startswith("STREAMCELL_")},
            module=("streamcell.cli.child", str(self._owner), str(temporary or "")),
            own_group=True,
        )

    def end(self) -> None:
        """Stop it and remove its temporary folder; in a fork of this process, do nothing."""
        if not self._ended and os.getpid() == self._owner:
            self._ended = True
            self.stop()
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)


class Recipe:
    """What to serve and how; started once for each client."""

    def __init__(
        self,
        models: Path | Callable[[Path], object],
        settings: Mapping[str, Any],
        options: Options,
    ) -> None:
        """`models`: the folder, or a function that writes models into the empty folder that it is given."""
        self._models = models
        self._settings = settings
        self.options = options

    def start(self, given_up: threading.Event | None = None) -> LocalServer:
        """Start the server and wait until it serves; end it if `given_up` is set by then.

        Raises:
            FileNotFoundError: there is no such folder.
            ServerProcessError: the server did not start; the text says why.
            Exception: what the function that writes the models raises.
        """
        temporary: Path | None = None
        if isinstance(self._models, Path):
            folder = _folder(self._models)
        else:
            folder = temporary = Path(tempfile.mkdtemp(prefix="streamcell-"))
        server: LocalServer | None = None
        try:
            if not isinstance(self._models, Path):
                self._models(folder)
            server = LocalServer(folder, self._settings, temporary)
            server.wait_until_up(_START_S)
            if given_up is not None and given_up.is_set():
                raise InterruptedError
        except BaseException:
            if server is not None:
                server.end()
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            raise
        return server


class LocalClient(Client):
    """A client with its own server, which `close` stops. Use it in a `with` statement, or close it.

    Attributes:
        server: the server's process: its log, its metrics.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Start the server. Raises as `Recipe.start`."""
        self.server = recipe.start()
        # Also if nobody closes it: when it is forgotten, and at the end of this process.
        self._end_server = weakref.finalize(self, LocalServer.end, self.server)
        super().__init__(self.server.target, recipe.options)

    def __enter__(self) -> LocalClient:
        return self

    def close(self) -> None:
        """Disconnect and stop the server."""
        super().close()
        self._end_server()


class AsyncLocalClient(AsyncClient):
    """The same on asyncio.

    Attributes:
        server: the server's process: its log, its metrics.
    """

    def __init__(self, server: LocalServer, options: Options) -> None:
        self.server = server
        self._end_server = weakref.finalize(self, LocalServer.end, server)
        super().__init__(server.target, options)

    async def close(self) -> None:
        """Disconnect and stop the server."""
        await super().close()
        await asyncio.to_thread(self._end_server)


class LocalStart:
    """A server that is not started yet: `async with` it, or `await` it and `close` the client.

    The event loop runs while the server starts.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._client: AsyncLocalClient | None = None

    def __await__(self) -> Generator[Any, None, AsyncLocalClient]:
        return self._start().__await__()

    async def _start(self) -> AsyncLocalClient:
        given_up = threading.Event()
        starting = asyncio.get_running_loop().run_in_executor(None, self._recipe.start, given_up)
        try:
            server = await asyncio.shield(starting)
        except asyncio.CancelledError:
            given_up.set()  # the thread goes on, and ends what it has started
            starting.add_done_callback(_end_unwanted)
            raise
        return AsyncLocalClient(server, self._recipe.options)

    async def __aenter__(self) -> AsyncLocalClient:
        self._client = await self._start()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()


def _end_unwanted(started: asyncio.Future[LocalServer]) -> None:
    if not started.cancelled() and started.exception() is None:
        threading.Thread(target=started.result().end).start()


def _folder(models: Path) -> Path:
    """The folder, if it is one."""
    if models.is_file():
        raise NotADirectoryError(
            f"{models} is a file: give the folder that it is in, {models.parent}; every model in it is served"
        )
    if not models.is_dir():
        raise FileNotFoundError(f"there is no folder {models}: give one with models, NAME.onnx")
    return models


def _flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of `streamcell serve`."""
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, (list, tuple)):
            flags += [text for each in value for text in (f"--{flag}", str(each))]
        else:
            flags += [f"--{flag}", str(value)]
    return flags
