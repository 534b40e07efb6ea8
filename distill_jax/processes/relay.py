"""A relay between the client of JAX's coordination service and process 0, which hosts the service.

A client that finds its connection to the service closed aborts its process at once, with a C++
trace and a core dump. No option of JAX 0.10 changes that (a Python callback cannot be given the
error: std::bad_cast). So the client of every process but the first connects to a relay, which
carries the bytes to process 0. When process 0 dies, the kernel closes only the relay's connection
to it; the relay reports that, and the process exits with a line for the user before JAX knows.

The relay is a process of its own, this file run as a script: JAX waits for some replies while it
holds Python's lock, and no thread of the same process could carry them meanwhile. It ends with the
process that opened it. Bytes pass unread. Left out on purpose: reconnecting, because JAX's client
does not survive that either.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

_CHUNK = 2**16  # bytes
_CONNECT_TIMEOUT = 10.0  # seconds; JAX retries until its own limit
#: Seconds that a process has to exit by itself before the relay closes its connection too, upon
#: which JAX aborts it.
_EXIT_TIMEOUT = 15.0
_LOCALHOST = "127.0.0.1"


def open_relay(address: str, is_running: Callable[[], bool], on_lost: Callable[[], None]) -> str:
    """Starts a relay on this machine.

    Args:
      address: host:port of process 0.
      is_running: whether a closed connection means that process 0 is lost. While it is False, as
        before all have joined, the relay closes the client's side too, so that the client retries.
      on_lost: called in a thread when the connection was closed and `is_running` returns True; the
        client's side stays open for `_EXIT_TIMEOUT` seconds.

    Returns:
      host:port for the client to connect to.
    """
    _bypass_proxies()
    # -I: modules next to this file must not shadow those of the standard library.
    relay = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    commands, events = relay.stdin, relay.stdout
    assert commands is not None and events is not None
    port = events.readline().strip()
    if not port:
        raise OSError(f"no relay to {address}: exit code {relay.wait()}")

    def listen() -> None:
        for connection in events:
            if is_running():
                on_lost()
            else:
                commands.write(connection)
                commands.flush()

    threading.Thread(target=listen, name="relay", daemon=True).start()
    return f"{_LOCALHOST}:{port}"


def _bypass_proxies() -> None:
    """Keeps gRPC from connecting to this machine through a web proxy."""
    if any(name.lower() in ("http_proxy", "https_proxy", "grpc_proxy") for name in os.environ):
        for name in ("no_grpc_proxy", "no_proxy"):
            if name == "no_proxy" or name in os.environ:
                own = os.environ.get(name, "")
                os.environ[name] = f"{own},{_LOCALHOST}" if own else _LOCALHOST


class _Relay:
    """The relay's own process.

    It prints its port, then the number of each connection that process 0 has closed. A number on
    its standard input closes the client's side of that connection; the end of the input ends the
    relay.
    """

    def __init__(self, address: str):
        host, _, port = address.rpartition(":")
        self._target = (host.strip("[]"), int(port))
        self._server = socket.create_server((_LOCALHOST, 0))
        self._clients: list[socket.socket] = []

    def run(self) -> None:
        print(self._server.getsockname()[1], flush=True)
        threading.Thread(target=self._accept, daemon=True).start()
        for number in sys.stdin:
            _close(self._clients[int(number)])

    def _accept(self) -> None:
        while True:
            self._clients.append(self._server.accept()[0])
            number = len(self._clients) - 1
            threading.Thread(target=self._carry, args=(number,), daemon=True).start()

    def _carry(self, number: int) -> None:
        """Carries one connection both ways until one side closes it."""
        client = self._clients[number]
        try:
            service = socket.create_connection(self._target, _CONNECT_TIMEOUT)
        except OSError:  # process 0 does not listen yet
            _close(client)
            return
        service.settimeout(None)
        for end in (client, service):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        closed_by_client = threading.Event()

        def carry_to_service() -> None:
            _copy(client, service)
            closed_by_client.set()
            _close(service)

        threading.Thread(target=carry_to_service, daemon=True).start()
        _copy(service, client)
        _close(service)
        if closed_by_client.is_set():
            _close(client)
        else:
            threading.Timer(_EXIT_TIMEOUT, _close, (client,)).start()
            print(number, flush=True)


def _copy(source: socket.socket, target: socket.socket) -> None:
    """Copies until the source ends or the target is closed."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_CHUNK):
            target.sendall(piece)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    end.close()


if __name__ == "__main__":
    # Signals are for the process that opened the relay: it exits, or continues.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)
    _Relay(sys.argv[1]).run()
    os._exit(0)
