"""Renders chat templates in a process of its own, whose memory and time are limited.

A template comes with a model's files and is a program. minijinja counts its instructions, but not
the memory of what they make: thirty lines that double a text take all there is. So this file, run
as a script, renders; it may take `MOST_MEMORY` and `MOST_SECONDS` a conversation. A template that
exceeds them costs one line, and the next conversation a new process.

A request and its reply are JSON, each on a line.
"""

import atexit
import datetime
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

#: Instructions that one rendering may execute; 18 public templates needed 70 to 130 a message.
FUEL = 1_000_000
#: Bytes of address space that the rendering process may take, Python's own included.
MOST_MEMORY = 2**30
#: Seconds that one rendering may take.
MOST_SECONDS = 20.0
#: Characters that a rendered conversation may have.
MOST_CHARACTERS = 2**25


class TemplateFault(ValueError):
    """The template cannot be rendered: its text says why.

    Attributes:
      line: of the template; None where that is not known.
    """

    def __init__(self, message: str, line: int | None = None):
        super().__init__(message)
        self.line = line


def render(source: str, values: Mapping[str, Any], date: datetime.date | None) -> str:
    """The text that a template makes of values.

    Args:
      source: the Jinja text.
      values: what the template knows by name; JSON can hold them.
      date: of `strftime_now`; None leaves that function undefined.

    Raises:
      TemplateFault: it is not valid, rejects the values, or exceeds a limit.
    """
    request = {"source": source, "values": dict(values), "date": date and date.isoformat()}
    with _lock:
        reply = _get_renderer().ask(json.dumps(request))
    if "text" in reply:
        return reply["text"]
    raise TemplateFault(reply["fault"], reply.get("line"))


class _Renderer:
    """The rendering process."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.running = True

    def ask(self, request: str) -> dict[str, Any]:
        """The reply to a request; a process that does not give one is ended."""
        commands, replies = self._process.stdin, self._process.stdout
        assert commands is not None and replies is not None
        try:
            commands.write(request.encode() + b"\n")
            commands.flush()
            line = self._read_line(replies.fileno())
        except (BrokenPipeError, ConnectionError):
            line = b""
        except BaseException:
            self.end()
            raise
        if line is None:
            self.end()
            return {"fault": f"takes longer than {MOST_SECONDS:g} s"}
        if not line.endswith(b"\n"):
            self.end()
            return {"fault": f"takes more than {MOST_MEMORY >> 20} MiB of memory"}
        return json.loads(line)

    def _read_line(self, handle: int) -> bytes | None:
        """A line, or what came before the process ended; None when it takes too long."""
        deadline = time.monotonic() + MOST_SECONDS
        pieces: list[bytes] = []
        with selectors.DefaultSelector() as ready:
            ready.register(handle, selectors.EVENT_READ)
            while not (pieces and pieces[-1].endswith(b"\n")):
                if not ready.select(max(0.0, deadline - time.monotonic())):
                    return None
                piece = os.read(handle, 2**16)
                if not piece:
                    break
                pieces.append(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Ends the process."""
        self.running = False
        self._process.kill()
        self._process.communicate()


_lock = threading.Lock()
_renderer: _Renderer | None = None


def _get_renderer() -> _Renderer:
    global _renderer
    if _renderer is None or not _renderer.running or _renderer.owner != os.getpid():
        _renderer = _Renderer()
    return _renderer


@atexit.register
def _end() -> None:
    if _renderer is not None and _renderer.running and _renderer.owner == os.getpid():
        _renderer.end()


# What follows runs in the rendering process.


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # a system without limits
        pass


def _tojson(value: object, indent: int | None = None, **options: Any) -> str:
    """JSON as transformers writes it: without escapes for HTML or for non-ASCII characters."""
    return json.dumps(value, ensure_ascii=options.get("ensure_ascii", False), indent=indent)


def _raise(message: str) -> None:
    raise ValueError(message)


def _reply(request: Mapping[str, Any]) -> dict[str, Any]:
    import minijinja

    environment = minijinja.Environment(
        fuel=FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_escape_callback=lambda name: False,
    )
    environment.add_filter("tojson", _tojson)
    environment.add_function(  # type: ignore[attr-defined]  # missing in minijinja's stubs
        "raise_exception", _raise
    )
    if request["date"] is not None:
        environment.add_function(  # type: ignore[attr-defined]  # missing in the stubs
            "strftime_now", datetime.date.fromisoformat(request["date"]).strftime
        )
    try:
        text = environment.render_str(request["source"], **request["values"])
        if len(text) > MOST_CHARACTERS:
            return {"fault": f"writes more than {MOST_CHARACTERS} characters"}
        return {"text": text}
    except MemoryError:
        return {"fault": f"takes more than {MOST_MEMORY >> 20} MiB of memory"}
    except minijinja.TemplateError as error:
        fault = f"{error.kind}: {error.detail}" if error.detail else str(error.kind)
        return {"fault": fault[:1000], "line": error.line}
    except BaseException as error:
        # PyO3 derives the exception of a panic in Rust from `BaseException`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return {"fault": str(error)[:1000]}


def _serve() -> None:
    import signal

    # The process that asks receives Ctrl-C too, and ends this one by closing its input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Rust says before it aborts
    import minijinja  # noqa: F401  # before the limit

    _limit_memory()
    for line in sys.stdin.buffer:
        reply = json.dumps(_reply(json.loads(line)))
        sys.stdout.buffer.write(reply.encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
