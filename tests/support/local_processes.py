"""Runs of several processes on this machine, on CPU devices that speak by gloo."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import compiling

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT = 240.0  # seconds; a run that hangs fails here


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        return sock.getsockname()[1]


def written(config: dict, folder: pathlib.Path, name: str = "mine.py") -> pathlib.Path:
    """A config file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"def get_config():\n    return {config!r}\n")
    return file


def environment(devices: int, **more: str) -> dict[str, str]:
    """Of a process with so many CPU devices."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiling.flags(devices),
        **more,
    }


class Run:
    """The processes of one run of `distill-jax`, each with a log.

    Args:
      folder: of the logs.
      arguments: of the command.
      processes: how many.
      devices: of each process.
      flags: more arguments of single processes, by their number.
      killed: whether the test kills some; they only read the cache of compiled programs.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        arguments: list[str],
        *,
        processes: int,
        devices: int = 1,
        flags: dict[int, list[str]] | None = None,
        timeout: float = 30,
        killed: bool = False,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        address = f"localhost:{free_port()}"
        own = environment(devices, **compiling.cache_environment(write=not killed))
        self.logs = [folder / f"log{number}" for number in range(processes)]
        self.processes = []
        for number, log in enumerate(self.logs):
            joined = []
            if processes > 1:
                joined = [f"--coordinator={address}", f"--num_processes={processes}"]
                joined += [f"--process_id={number}", f"--host_timeout={timeout}"]
            command = [sys.executable, "-m", "distill_jax.cli", *arguments, *joined]
            command += (flags or {}).get(number, [])
            with open(log, "w") as stream:
                self.processes.append(
                    subprocess.Popen(command, env=own, stdout=stream, stderr=stream, cwd=folder)
                )

    def until(self, condition) -> None:
        """Waits for something that happens while all processes run."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < deadline, self.output()
            assert all(p.poll() is None for p in self.processes), self.output()
            time.sleep(0.02)

    def codes(self, limit: float = LIMIT) -> list[int]:
        """The exit codes of all processes, which end within the limit in seconds."""
        deadline = time.monotonic() + limit
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        finally:
            self.stop()

    def stop(self) -> None:
        """Kills what still runs."""
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        """What all processes have written, but for gloo's own lines."""
        lines = []
        for log in self.logs:
            kept = [line for line in log.read_text().splitlines() if not line.startswith("[Gloo]")]
            lines += [f"--- {log.name}", *kept]
        return "\n".join(lines)

    def lines(self, begin: str) -> list[str]:
        """The lines of all processes that begin so."""
        return [line for line in self.output().splitlines() if line.startswith(begin)]


def finished(
    folder: pathlib.Path, arguments: list[str], *, processes: int, devices: int = 1
) -> Run:
    """A run whose processes all end well."""
    run = Run(folder, arguments, processes=processes, devices=devices)
    codes = run.codes()
    assert codes == [0] * processes, run.output()
    return run


def result(workdir: pathlib.Path) -> dict:
    """The content of result.json."""
    return json.loads((workdir / "result.json").read_text())


def records(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
