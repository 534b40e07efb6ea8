"""The way to the first process: what passes, and who is told when it ends."""

import socket
import threading

import pytest

from distill_jax.processes import relay


@pytest.fixture
def first():
    """The socket on which the first process listens."""
    with socket.create_server(("localhost", 0)) as server:
        server.settimeout(10)
        yield server


def opened(first, joined: bool) -> tuple[socket.socket, socket.socket, threading.Event]:
    """A client's end, the first process's end, and what is set when that one is lost."""
    lost = threading.Event()
    address = relay.open_relay(
        f"localhost:{first.getsockname()[1]}", is_running=lambda: joined, on_lost=lost.set
    )
    host, port = address.split(":")
    here = socket.create_connection((host, int(port)), 10)
    there, _ = first.accept()
    there.settimeout(10)
    return here, there, lost


def test_bytes_pass_both_ways_and_the_end_is_told(first):
    here, there, lost = opened(first, joined=True)
    sent = bytes(range(256)) * 4096  # more than a piece
    threading.Thread(target=here.sendall, args=(sent,)).start()
    arrived = b""
    while len(arrived) < len(sent):
        arrived += there.recv(2**20)
    assert arrived == sent
    there.sendall(b"back")
    assert here.recv(10) == b"back" and not lost.is_set()
    there.close()
    assert lost.wait(10)


def test_a_client_that_closes_has_lost_nobody(first):
    here, there, lost = opened(first, joined=True)
    here.close()
    assert there.recv(10) == b"" and not lost.wait(0.2)


def test_before_all_have_joined_the_client_sees_the_end_and_tries_again(first):
    here, there, lost = opened(first, joined=False)
    there.close()
    assert here.recv(10) == b"" and not lost.is_set()


def test_grpc_is_kept_from_asking_a_proxy(first, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "cluster.local")
    opened(first, joined=True)
    assert relay.os.environ["no_proxy"] == "cluster.local,127.0.0.1"
