"""A way to the first process that stays open when that one dies.

The first process carries JAX's coordination service. A client of it that finds its connection
closed aborts its process at once, with a trace of C++ and a core dump; no option of JAX 0.10
changes that (a callback of one's own cannot be given the error: std::bad_cast). So the client of
every other process speaks to a socket of its own process, and what lies here carries the bytes
between it and the first process. When the first process is gone, the kernel closes that connection
alone: its process is told, and ends as it sees fit before JAX knows of anything.

Bytes pass as they are, nothing of them is read. Left out on purpose: reconnecting, since JAX's own
client does not live through it either.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable

_CHUNK = 2**16
_CONNECT = 10.0  # seconds; JAX asks again and again until its own limit
_HERE = "127.0.0.1"


def open_relay(address: str, joined: Callable[[], bool], lost: Callable[[], None]) -> str:
    """Listens on this machine and carries every connection on to an address.

    Args:
      address: host:port of the first process.
      joined: whether the end of a connection is the end of the first process. Until then the other
        side is closed too, so that the client tries again.
      lost: called in a thread when a connection has ended and `joined` says yes; the other side
        stays open.

    Returns:
      host:port to connect to.
    """
    _avoid_proxies()
    server = socket.create_server((_HERE, 0))

    def accept() -> None:
        while True:
            here, _ = server.accept()
            threading.Thread(target=carry, args=(here,), name="relay", daemon=True).start()

    def carry(here: socket.socket) -> None:
        host, _, port = address.rpartition(":")
        try:
            there = socket.create_connection((host.strip("[]"), int(port)), _CONNECT)
        except OSError:  # not there yet
            here.close()
            return
        there.settimeout(None)
        for end in (here, there):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        closed = threading.Event()  # by JAX itself

        def back() -> None:
            _copy(here, there)
            closed.set()
            _close(there)

        threading.Thread(target=back, name="relay", daemon=True).start()
        _copy(there, here)
        if joined() and not closed.is_set():
            lost()
        _close(here)
        _close(there)

    threading.Thread(target=accept, name="relay", daemon=True).start()
    return f"{_HERE}:{server.getsockname()[1]}"


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends, or the target takes no more."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_CHUNK):
            target.sendall(piece)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    end.close()


def _avoid_proxies() -> None:
    """gRPC would look for a web proxy on the way to this very machine."""
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy") for name in os.environ):
        for name in ("no_grpc_proxy", "no_proxy"):
            if name == "no_proxy" or name in os.environ:
                own = os.environ.get(name, "")
                os.environ[name] = f"{own},{_HERE}" if own else _HERE
