"""Runs the service: its database, its socket, its end."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

import msgspec
import uvicorn
from fastapi import FastAPI

from session_manager.core.errors import Failed, Refused, UsageError
from session_manager.service import logs
from session_manager.service.api.chat_ws import FRAME_LIMIT
from session_manager.service.api.health import Watch
from session_manager.service.app import create_app
from session_manager.service.config import Config, database_url, read_config
from session_manager.service.db import tokens
from session_manager.service.db.migrate import migrate, transaction
from session_manager.service.embedded import EmbeddedPostgres, attach, default_base
from session_manager.service.embedded.keeper import Told

_GRACE_S = 10


def serve(environ: Mapping[str, str], host: str, port: int, announce: Callable[[str], None]) -> None:
    """Runs until SIGINT or SIGTERM. ``announce`` gets the base URL once requests are answered.

    Raises UsageError, Refused (``token_needed`` for an address that is not loopback, and the database's refusals) or
    Failed (``address_unusable``) before anything is served; and later Failed or Refused when the embedded PostgreSQL
    has ended and cannot be restarted.
    """
    config = read_config(environ, host)
    logs.configure()
    watch = Watch()
    with _listening(host, port) as listener, running_database(environ, config, watch.hear) as url:
        migrate(url)
        # The bound address counts, not the name that resolved to it.
        config = msgspec.structs.replace(config, host=listener.getsockname()[0])
        _need_a_token(config, url)
        app = create_app(config, url, watch)
        settings = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=_GRACE_S,
            server_header=False,
            ws_max_size=FRAME_LIMIT,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        server = _Server(settings, app, lambda: announce(address))
        _stop_by_signals(server)
        watch.when_lost(server.leave)
        server.run(sockets=[listener])
    watch.raise_lost()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._on_started = on_started

    def leave(self) -> None:
        """Ends the server as a signal would."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Two signals at once do not abort the shutdown, which has its own time limit.
        self.leave()

    async def main_loop(self) -> None:
        # Not in startup(): a signal before its end would cut the shutdown short.
        self._on_started()
        await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Before uvicorn closes connections: replies in progress are finished or cancelled while clients still listen.
        await self._app.state.talks.finish()
        await super().shutdown(sockets)


def _stop_by_signals(server: uvicorn.Server) -> None:
    """Treats SIGTERM and SIGINT as the ordinary end, also before uvicorn listens and while the database stops."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host!r} is not an address of this machine: {error}", code="address_unusable"
        ) from error
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except (OSError, OverflowError) as error:
            raise Failed(
                f"cannot listen on {host} port {port}: {error}; choose another --port (0 takes a free one)",
                code="address_unusable",
            ) from error
        yield listener


@contextlib.contextmanager
def running_database(environ: Mapping[str, str], config: Config, told: Told = lambda standing: None) -> Iterator[str]:
    """Yields the URL of the database: the configured one, or that of the embedded PostgreSQL, which it runs.

    ``told`` is called whenever the state of the embedded one changes.
    """
    if config.database_url is not None:
        yield config.database_url
        return
    with EmbeddedPostgres.start(default_base(environ), config.agents_dir, told=told) as embedded:
        yield embedded.url


@contextlib.contextmanager
def reachable_database(environ: Mapping[str, str]) -> Iterator[str]:
    """Yields the URL of the database for a tool, which may run beside a service on the embedded PostgreSQL."""
    running = None if database_url(environ) else attach(default_base(environ))
    if running is not None:
        yield running
        return
    with running_database(environ, read_config(environ)) as url:
        yield url


def _need_a_token(config: Config, url: str) -> None:
    if config.on_loopback or config.api_token:
        return
    with transaction(url) as connection:
        if tokens.any_valid(connection):
            return
    raise Refused(
        f"{config.host} is not loopback, and there is no token; set ARIA_API_TOKEN or run session-manager token create",
        code="token_needed",
    )
