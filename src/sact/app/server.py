"""`serve`: networks, examples and the page, on an address."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, require
from .examples import find_examples
from .networks import load

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 7860, 100
MAX_FILE_SIZE = "20mb"


def serve(
    models: Sequence[str] = (),
    host: str = LOOPBACK,
    port: int | None = None,
    examples: str | Path | None = None,
) -> None:
    """Show the page until interrupted.

    Args:
        models: folders, hub ids or packaged names; all packaged networks where none is named.
        host: address to listen on; the default is reached from this machine alone.
        port: 1 to 65535; by default the first free one from 7860.
        examples: folder of photographs to choose from.

    Raises:
        InputError: the address cannot be used, or there is no network or example.
        MissingExtraError: Gradio is not installed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that visitors' files are removed then, too
    with contextlib.suppress(KeyboardInterrupt), running(models, host, port, examples) as (_, address):
        print(f"the page is {address} (stop it with Ctrl-C)", flush=True)
        if host not in (LOOPBACK, "localhost", "::1"):
            print(f"--host {host}: everybody who reaches this machine can use it", flush=True)
        threading.Event().wait()


@contextlib.contextmanager
def running(
    models: Sequence[str] = (),
    host: str = LOOPBACK,
    port: int | None = None,
    examples: str | Path | None = None,
) -> Iterator[tuple[Any, str]]:
    """The page and its address, with the arguments of `serve`; at the end what visitors gave is removed."""
    port = free_port(host, port)  # before anything takes time
    require("gradio", "app")
    served = load(models)
    with tempfile.TemporaryDirectory(prefix="sact-page-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "visitors")
        try:
            from .page import LOOK, make_page

            files = find_examples(served, examples, Path(folder))
            page = make_page(served, files, Path(folder))
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                ssr_mode=False,
                max_file_size=MAX_FILE_SIZE,
                allowed_paths=[str(file) for file in files],
                enable_monitoring=False,
                footer_links=[],
                **LOOK,
            )
            try:
                yield page, address
            finally:
                page.close(verbose=False)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def free_port(host: str, port: int | None) -> int:
    """The port itself if it can be listened on, or the first one from `FIRST_PORT` that can.

    Raises:
        InputError: it is taken or out of range, none is free, or the address is not one of this machine.
    """
    if port is not None and not 1 <= port <= 65535:
        raise InputError(f"--port is {port}, but it must be from 1 to 65535")
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return candidate
        except socket.gaierror as error:
            raise InputError(f"--host {host} is no address of this machine; try 127.0.0.1") from error
        except PermissionError as error:
            raise InputError(f"--port {candidate} needs more rights; choose one from 1024") from error
        except OSError as error:
            if port is not None or error.errno == errno.EADDRNOTAVAIL:  # another port would not help
                raise InputError(
                    f"{host}:{candidate} cannot be used ({error.strerror}); choose another --port, or none for the "
                    "first free one"
                ) from error
    raise InputError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free; name another with --port")
