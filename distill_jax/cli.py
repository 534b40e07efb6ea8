"""The command line: parses, runs one verb of `commands`, and turns errors into exit codes.

Exit codes: 0 done, or stopped by SIGTERM or Ctrl-C with the state saved; 1 the run failed, or does
not fit the hardware it is planned for; 2 a mistake in the command, the config or a path, reported
in one line; 130 ended by Ctrl-C before it was done. All processes of a run exit with the same code.
"""

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from distill_jax import __version__, commands
from distill_jax.errors import UsageError
from distill_jax.processes import coordination, huge_pages
from distill_jax.storage import gcs

_DESCRIPTION = "Trains small models to match large ones, in JAX."
_EPILOG = "`distill-jax VERB --help` lists the flags of a verb, with an example."


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def _make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; arguments get `verb`, the row of the table, and `command`."""
    parser = _Parser(prog="distill-jax", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="version", version=f"distill_jax {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)
    for verb in commands.VERBS:
        subparser = subparsers.add_parser(verb.name, help=verb.summary, aliases=verb.aliases)
        command = verb.load()
        command.add_arguments(subparser)
        subparser.set_defaults(verb=verb, command=command)
    return parser


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separates `--config.key=value` from the other arguments."""
    rest, overrides = [], {}
    for argument in argv:
        if argument.startswith("--config."):
            path, equals, value = argument.removeprefix("--config.").partition("=")
            if not equals or not path:
                raise UsageError(f"{argument}: expected --config.key=value")
            overrides[path] = value
        else:
            rest.append(argument)
    return rest, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    verb: commands.Verb | None = None
    try:
        rest, overrides = _split_overrides(sys.argv[1:] if argv is None else argv)
        arguments = _make_parser().parse_args(rest)
        verb = arguments.verb
        assert verb is not None
        if overrides and not verb.takes_config_keys:
            key = next(iter(overrides))
            raise UsageError(f"--config.{key}: {verb.name} takes no config keys")
        if argv is None and verb.computes:
            huge_pages.start_again("distill_jax.cli", script="distill-jax")
        command: commands.Command = arguments.command
        with _trusting(getattr(arguments, "trust_imports", False)):
            code = command.run(arguments, overrides)
        coordination.leave()
        return code
    except UsageError as error:
        return _fail(2, f"distill-jax: error: {error}")
    except Exception as error:
        return _handle_failure(error)
    except KeyboardInterrupt:
        coordination.abort(1, "distill-jax: failed: interrupted")
        resumes = "; the same command resumes" if verb and verb.resumes else ""
        return _fail(130, f"distill-jax: stopped by Ctrl-C{resumes}")


def _trusting(trusted: bool) -> contextlib.AbstractContextManager:
    """A context in which the modules that a workdir names are run, where the user says so."""
    if not trusted:
        return contextlib.nullcontext()
    from distill_jax import config

    return config.trusting_workdirs()


def _handle_failure(error: Exception) -> int:
    """One line and the exit code for an expected failure; re-raises a defect of the program."""
    from distill_jax.training import checkpoints, loop

    if isinstance(error, loop.Preempted):
        if coordination.is_first():
            by = error.args[0] if error.args else "SIGTERM"
            print(f"distill-jax: stopped by {by}; the same command resumes", file=sys.stderr)
        coordination.leave()
        return 0
    if coordination.is_distributed() and _is_device_error(error):
        # A collective fails in the processes that live when another one is lost.
        lost = coordination.find_lost_process()
        if lost is not None:
            reason = f"lost process {lost} of {coordination.process_count()}"
            coordination.abort(1, coordination.failure_line(reason))
    expected = (
        loop.Diverged,
        checkpoints.CheckpointError,
        coordination.CoordinationError,
        gcs.BucketError,
    )
    if isinstance(error, expected):
        return _fail(1, f"distill-jax: failed: {error}")
    if fault := _machine_fault(error):
        return _fail(1, f"distill-jax: failed: {fault}")
    if coordination.is_distributed():
        traceback.print_exc()
        message = " ".join(str(error).split())[:300]
        name = f"process {coordination.process_index()} of {coordination.process_count()}"
        coordination.abort(1, f"distill-jax: failed: {name}: {type(error).__name__}: {message}")
    raise error


def _machine_fault(error: BaseException) -> str:
    """The line for an error of the disk or of memory, which is no defect of the program; or ""."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "bad_alloc" in text or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory ({text[:200] or type(error).__name__})"
    if "No space left on device" in text:
        return f"No space left on device ({text[:200]})"
    return ""


def _is_device_error(error: BaseException | None) -> bool:
    """Whether a computation on the devices failed, as the error itself or as its cause."""
    import jax

    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(code: int, line: str) -> int:
    """Prints why a run ends; a distributed run ends here, in all processes."""
    coordination.abort(code, line)
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
