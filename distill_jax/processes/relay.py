"""A way to the first process that stays open when that one dies.

The first process carries JAX's coordination service. A client of it that finds its connection
closed aborts its process at once, with a trace of C++ and a core dump; no option of JAX 0.10
changes that (a callback of one's own cannot be given the error: std::bad_cast). So the client of
every other process speaks to a relay, which carries the bytes between it and the first process.
When the first process is gone, the kernel closes the relay's connection to it alone: the process is
told, and ends as it sees fit before JAX knows of anything.

The relay is a small process of its own, this file run as a script: JAX waits for some answers with
Python's lock held, and then no thread of that process could carry them. It ends with its process.
Bytes pass as they are, nothing of them is read. Left out on purpose: reconnecting, since JAX's own
client does not live through it either.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

_CHUNK = 2**16
_CONNECT = 10.0  # seconds; JAX asks again and again until its own limit
#: Seconds for a process to end by itself; then its connection is closed, and JAX ends it.
_PATIENCE = 15.0
_HERE = "127.0.0.1"


def open_relay(address: str, joined: Callable[[], bool], lost: Callable[[], None]) -> str:
    """Has a process of its own listen on this machine and carry connections on to an address.

    Args:
      address: host:port of the first process.
      joined: whether the end of a connection is the end of the first process. Until then the other
        side is closed too, so that the client tries again.
      lost: called in a thread when a connection has ended and `joined` says yes; the other side
        stays open for `_PATIENCE` seconds.

    Returns:
      host:port to connect to.
    """
    _avoid_proxies()
    # -I: what lies beside this file must not be found in place of Python's own modules.
    relay = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    port = relay.stdout.readline().strip()
    if not port:
        raise OSError(f"no relay to {address}: exit code {relay.wait()}")

    def listen() -> None:
        for number in relay.stdout:
            if joined():
                lost()
            else:
                relay.stdin.write(number)
                relay.stdin.flush()

    threading.Thread(target=listen, name="relay", daemon=True).start()
    return f"{_HERE}:{port}"


def _avoid_proxies() -> None:
    """gRPC would look for a web proxy on the way to this very machine."""
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy") for name in os.environ):
        for name in ("no_grpc_proxy", "no_proxy"):
            if name == "no_proxy" or name in os.environ:
                own = os.environ.get(name, "")
                os.environ[name] = f"{own},{_HERE}" if own else _HERE


def _relay(address: str) -> None:
    """The relay's own process: says its port, then the number of each connection that was lost.

    A number that comes back is to be closed. Ends when nobody is there to say so.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the process itself ends, or goes on
        signal.signal(number, signal.SIG_IGN)
    server = socket.create_server((_HERE, 0))
    print(server.getsockname()[1], flush=True)
    ends: list[socket.socket] = []

    def accept() -> None:
        while True:
            ends.append(server.accept()[0])
            number = len(ends) - 1
            threading.Thread(target=carry, args=(number,), daemon=True).start()

    def carry(number: int) -> None:
        here = ends[number]
        host, _, port = address.rpartition(":")
        try:
            there = socket.create_connection((host.strip("[]"), int(port)), _CONNECT)
        except OSError:  # not there yet
            _close(here)
            return
        there.settimeout(None)
        for end in (here, there):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        closed = threading.Event()  # by JAX itself

        def back() -> None:
            _copy(here, there)
            closed.set()
            _close(there)

        threading.Thread(target=back, daemon=True).start()
        _copy(there, here)
        _close(there)
        if closed.is_set():
            _close(here)
        else:
            threading.Timer(_PATIENCE, _close, (here,)).start()
            print(number, flush=True)

    threading.Thread(target=accept, daemon=True).start()
    for number in sys.stdin:
        _close(ends[int(number)])
    os._exit(0)


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Until the source ends, or the target takes no more."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_CHUNK):
            target.sendall(piece)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    end.close()


if __name__ == "__main__":
    _relay(sys.argv[1])
