"""How long something took over all of its starts, killed ones too.

A run counts its training time itself, but not what a kill threw away, nor compiling and evaluating.
"""

import contextlib
import json
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from distill_jax import storage

INTERVAL = 20.0  # seconds between two writes: what a kill loses


def read(path: pathlib.Path) -> dict[str, Any]:
    """{"starts", "wall_s", "cpu_s"} of a clock's file; zeros where there is none."""
    if not path.exists():
        return {"starts": 0, "wall_s": 0.0, "cpu_s": 0.0}
    return json.loads(path.read_text())


@contextlib.contextmanager
def running(path: pathlib.Path) -> Iterator[None]:
    """Adds the wall time and this process's processor time inside to a file.

    Args:
      path: the clock's file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = read(path)
    wall, cpu = time.perf_counter(), time.process_time()

    def write() -> None:
        now = {
            "starts": before["starts"] + 1,
            "wall_s": before["wall_s"] + time.perf_counter() - wall,
            "cpu_s": before["cpu_s"] + time.process_time() - cpu,
        }
        storage.write_atomically(path, json.dumps(now) + "\n")

    def tick() -> None:
        while not stopped.wait(INTERVAL):
            write()

    write()
    stopped = threading.Event()
    thread = threading.Thread(target=tick, name="clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        write()
