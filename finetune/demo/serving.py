"""Serve the page of `finetune demo` until the command is stopped."""

from __future__ import annotations

import socket
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from finetune.demo.app import demo_app
from finetune.demo.listener import address, is_loopback
from finetune.demo.opened_model import OpenedModel

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def serve(opened: OpenedModel, listener: socket.socket, *, open_browser: bool = False) -> None:
    """Serve the page until SIGINT or SIGTERM, which ends the command as everywhere else.

    Args:
        listener: the socket, see `listen`.
    """
    print(f"Demo of {opened.name}: {address(listener)} (Ctrl+C ends it)", flush=True)
    if not is_loopback(listener):
        print("Anyone who can reach this address can use the model; there is no password.", flush=True)
    if open_browser:
        threading.Thread(target=webbrowser.open, args=(address(listener),), daemon=True).start()
    _server(opened, listener).run(sockets=[listener])


@contextmanager
def serving(opened: OpenedModel, listener: socket.socket) -> Iterator[str]:
    """Serve the page from another thread inside the block, and yield its address."""
    server = _server(opened, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield address(listener)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal, without waiting for the answers in progress."""
        self.force_exit = True
        super().handle_exit(sig, frame)


def _server(opened: OpenedModel, listener: socket.socket) -> uvicorn.Server:
    hosts = _LOOPBACK_NAMES if is_loopback(listener) else ("*",)
    config = uvicorn.Config(
        demo_app(opened, hosts),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    return _Server(config)
