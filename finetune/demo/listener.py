"""What `finetune demo` checks before PyTorch is imported: the model folder, the libraries, and the address."""

from __future__ import annotations

import importlib.util
import socket
from ipaddress import ip_address
from pathlib import Path

from finetune.errors import DataError, FinetuneError
from finetune.pipeline.predict import is_exported
from finetune.runs.run_files import check_has_model

LOOPBACK = "127.0.0.1"
_FIRST_PORT, _PORTS = 7860, 100  # without --port, the first free one of these


def check_start(model: Path) -> None:
    """Raise a FinetuneError if a library is missing, or a folder holds no model whose heads can be switched off."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise FinetuneError(
            f"the demo needs {' and '.join(missing)}, not installed here; run `pip install 'finetune[demo]'`"
        )
    if is_exported(model):
        raise DataError(
            f"{model} is an exported model, whose graph has no gates: its heads cannot be switched off; name the run "
            "folder that it was exported from"
        )
    check_has_model(model)


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that accepts connections.

    Args:
        host: name or address of the interface.
        port: None: the first free port from 7860.

    Raises:
        DataError: the host is unknown, or the port is taken, reserved or not a port number.
    """
    if port is not None and not 0 < port < 65536:
        raise DataError(f"--port is {port}; a port is a number from 1 to 65535")
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port or _FIRST_PORT, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise DataError(f"--host is '{host}', which is no address of this machine ({error}); use {LOOPBACK}") from error
    ports = range(_FIRST_PORT, _FIRST_PORT + _PORTS) if port is None else [port]
    for number in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((where[0], number))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            problem = error.strerror or str(error)
    if port is None:
        raise DataError(
            f"no port from {ports[0]} to {ports[-1]} can be used on {host} (the last one: {problem}); name one with "
            "--port, or another --host"
        )
    raise DataError(f"port {port} of {host} cannot be used ({problem}); name another, or leave out --port")


def address(listener: socket.socket) -> str:
    """Return the address of the page."""
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/"


def is_loopback(listener: socket.socket) -> bool:
    """Return whether only programs of this machine can connect."""
    return ip_address(listener.getsockname()[0]).is_loopback
