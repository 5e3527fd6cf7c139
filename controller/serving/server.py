"""The agent's HTTP side: one small server for both ``run`` and ``operator``.

aiohttp serves, for it is there with kopf, bounds what a slow or hostile client may hold, and
streams bodies of any length in both directions without keeping them. The agent itself is threads,
so the server has one of its own with an event loop in it, and nothing else runs there.

What is served is a list of aiohttp's routes, each made by whoever knows the matter: a module that
has some gives them by a function, such as ``health_routes`` here, and ``Server`` gets the sum. A
handler is a coroutine of the server's loop. What may block goes to a thread by ``in_thread``:
a look into a database, a read or write of a volume. ``/healthz`` needs no thread, so that it
answers when all threads are at work on data.

Nothing here asks who calls. A route that gives or takes data has to check a token before it does
anything else, and to read the body by pieces (``request.content``): ``MAX_BODY`` bounds only what
aiohttp would read at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from aiohttp import web

from backends import errors
from controller.serving.health import Health

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_BODY = 64 * 1024
"""Bytes of a body that a handler may read as a whole."""

THREADS = 8
"""Blocking calls of handlers that run side by side."""

STOP_WITHIN = 5.0
"""Seconds that requests under way have at the end."""

_IN_THREAD = web.AppKey("in_thread", ThreadPoolExecutor)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    :param port: 0 for any that is free.
    """

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class Server:
    """Serves routes until it is stopped.

    :param address: where; a path is that of a socket for the processes of this user alone.

    :param tls: for https; None for http.
    """

    def __init__(
        self,
        address: Address | Path,
        routes: Iterable[web.AbstractRouteDef],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.address = address
        self._routes = tuple(routes)
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._begun = threading.Event()
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to listen; ``address`` has the port then.

        :raises errors.StorageError: where the address can't be listened at.
        """
        self._thread.start()
        self._begun.wait()
        if isinstance(self._problem, OSError):
            raise errors.from_os_error(
                self._problem, doing=f"listen at {self.address}"
            ) from self._problem
        if self._problem is not None:
            raise self._problem
        scheme = "unix" if isinstance(self.address, Path) else "https" if self._tls else "http"
        log.info("listening at %s://%s", scheme, self.address)

    def stop(self) -> None:
        """End; requests under way are cut off after ``STOP_WITHIN``."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # it ended meanwhile
                self._loop.call_soon_threadsafe(self._ending.set)
            self._thread.join(2 * STOP_WITHIN)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # told to who started it, else logged
            if self._begun.is_set():
                log.exception("the HTTP server ended")
            self._problem = error
        finally:
            self._begun.set()
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes(self._routes)
        executor = ThreadPoolExecutor(THREADS, thread_name_prefix="http")
        app[_IN_THREAD] = executor
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=STOP_WITHIN
        )
        await runner.setup()
        try:
            if isinstance(self.address, Path):
                await web.SockSite(runner, _own_socket(self.address)).start()
            else:
                host, port = self.address.host, self.address.port
                await web.TCPSite(runner, host, port, ssl_context=self._tls).start()
                self.address = Address(host, runner.addresses[0][1])
            self._begun.set()
            await self._ending.wait()
        finally:
            await runner.cleanup()
            executor.shutdown(wait=False, cancel_futures=True)


def _own_socket(path: Path) -> socket.socket:
    """A socket in the place of one that another process left there.

    The directory is gone through its descriptor: the name of a socket may have 108 bytes (unix(7)).
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path.name, dir_fd=directory)
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        os.chmod(path.name, 0o600, dir_fd=directory)
    except BaseException:
        made.close()
        raise
    finally:
        os.close(directory)
    return made


async def in_thread(
    request: web.Request, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """What the call returns; it may block, and the server goes on meanwhile."""
    loop = asyncio.get_running_loop()
    executor = request.config_dict[_IN_THREAD]
    return await loop.run_in_executor(executor, functools.partial(call, *args, **kwargs))


def health_routes(health: Health) -> list[web.RouteDef]:
    """``/healthz``, whether the agent is alive, and ``/readyz``, whether it is ready.

    Status 200 or 503; the body has a line for each check, with what it found.
    """

    async def healthz(request: web.Request) -> web.Response:
        return _answer(health.alive())

    async def readyz(request: web.Request) -> web.Response:
        return _answer(health.ready())

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


def _answer(found: Mapping[str, str]) -> web.Response:
    lines = [f"{name}: {wrong or 'ok'}\n" for name, wrong in sorted(found.items())]
    return web.Response(text="".join(lines), status=503 if any(found.values()) else 200)


def metrics_routes(exposition: Callable[[str], tuple[bytes, str]]) -> list[web.RouteDef]:
    """``/metrics``.

    :param exposition: the text and its content type, for what the client accepts.
    """

    async def metrics(request: web.Request) -> web.Response:
        text, kind = await in_thread(request, exposition, request.headers.get("Accept", ""))
        return web.Response(body=text, headers={"Content-Type": kind})

    return [web.get("/metrics", metrics)]
