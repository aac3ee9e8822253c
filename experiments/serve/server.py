"""The server around the application: its socket, slow clients, signals, and an orderly end."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from experiments.config.serve import NetworkConfig

SIGNALS = (signal.SIGINT, signal.SIGTERM)
IDLE = 75
"""Seconds that a connection is kept between two requests."""


def listening(network: NetworkConfig) -> socket.socket:
    """An open socket at the address.

    Raises:
      OSError: the address cannot be used; one line says what to do.
    """
    try:
        found = socket.getaddrinfo(network.host, network.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise OSError(f"host: {network.host!r} is not an address of this machine") from None
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)
    except OSError as error:
        opened.close()
        where = f"{network.host}:{network.port}"
        raise OSError(f"{where} cannot be used ({error.strerror}); choose another with --host and --port") from None
    return opened


def address(opened: socket.socket) -> str:
    """The address of an open socket as browsers write it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Ends by itself after SIGTERM or Ctrl-C: what runs may finish; a second Ctrl-C cancels it."""

    @property
    def closing(self) -> bool:
        """Whether the end has begun."""
        return self.should_exit

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes the signals within `with`; unlike the library's, it does not raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 that closes connections whose request line and headers take longer than `seconds`."""

    class Impatient(H11Protocol):
        """One connection."""

        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(seconds, self._give_up)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.cycle is None or self.cycle.response_complete
            if not waits:
                self._stop()
            elif self._timer is None:
                self._timer = self.loop.call_later(seconds, self._give_up)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _give_up(self) -> None:
            self._timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Impatient


def configured(app: Any, network: NetworkConfig, read_timeout: float) -> uvicorn.Config:
    """The settings of the server."""
    return uvicorn.Config(
        app,
        http=protocol(read_timeout),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE,
        timeout_graceful_shutdown=max(1, round(network.grace)),
        limit_concurrency=network.connections,
    )
