"""Flags that several verbs share: the config, folders, and a run in many processes."""

import argparse
import contextlib
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from distill_jax import storage
from distill_jax.errors import UsageError
from distill_jax.processes import coordination, discovery

Number = TypeVar("Number", int, float)

#: What the help of a verb that takes config keys says about them.
CONFIG_KEYS = (
    "--config.KEY=VALUE overrides a key of the config, such as --config.training.epochs=20 "
    "(`distill-jax train --help-config` lists all keys)."
)


class _ResolvePath(argparse.Action):
    """Checks the path that a flag gives and resolves it."""

    def __init__(self, *args: Any, resolve: Callable[[str, str], Any], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._resolve = resolve

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        flag = self.option_strings[0] if self.option_strings else str(self.metavar)
        if isinstance(values, list):
            setattr(namespace, self.dest, [self._resolve(str(value), flag) for value in values])
        else:
            setattr(namespace, self.dest, self._resolve(str(values), flag))


def add_path(
    parser: argparse.ArgumentParser, flag: str, *, remote: bool, **kwargs: Any
) -> argparse.Action:
    """Adds a flag whose value is a path.

    Args:
      parser: of the verb.
      flag: such as "--workdir".
      remote: whether the path may be in a bucket, gs://bucket/name.
      **kwargs: those of `add_argument`.
    """
    resolve = storage.resolve_path if remote else storage.local_path
    return parser.add_argument(flag, action=_ResolvePath, resolve=resolve, **kwargs)


def add_output(parser: argparse.ArgumentParser, flag: str, meaning: str) -> None:
    """Adds a flag that names a file to write; `check_outputs` and `write_output` go with it."""
    add_path(parser, flag, remote=False, metavar="FILE", help=meaning)


def check_outputs(arguments: argparse.Namespace, *names: str) -> None:
    """Refuses files that cannot be written, before anything is.

    Args:
      arguments: the parsed flags.
      names: of the flags, without dashes; a flag that is not given is skipped.

    Raises:
      UsageError: a file in a folder that does not exist, or a folder in place of a file; or two
        flags name the same file.
    """
    seen: dict[pathlib.Path, str] = {}
    for name in names:
        path = getattr(arguments, name)
        if path is None:
            continue
        folder = path.absolute().parent
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(
                f"--{name}={path}: cannot be written; expected a file in a folder that exists and "
                "can be written"
            )
        other = seen.setdefault(path.absolute(), name)
        if other != name:
            raise UsageError(f"--{name}={path}: the file of --{other}; expected another one")


def check_folder(path: pathlib.Path, flag: str) -> None:
    """UsageError where a folder can neither be made nor written."""
    nearest = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UsageError(f"{flag}={path}: expected a folder that can be written")


def write_output(path: pathlib.Path, flag: str, content: str | bytes) -> None:
    """Writes a file of `add_output`, whole or not at all."""
    try:
        storage.write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{flag}={path}: cannot be written: {error.strerror}") from error


def add_workdir(
    parser: argparse.ArgumentParser, meaning: str, *, remote: bool = True, required: bool = True
) -> None:
    """Adds --workdir."""
    example = "such as runs/a or gs://bucket/a" if remote else "such as runs/a"
    add_path(
        parser,
        "--workdir",
        remote=remote,
        required=required,
        metavar="DIR",
        help=f"{meaning}, {example}",
    )


def add_config(
    parser: argparse.ArgumentParser, meaning: str = "", *, required: bool = True
) -> None:
    """Adds --config."""
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        required=required,
        help=f"Python file with get_config(){meaning}, such as configs/digits.py; with :ARG, "
        "get_config(ARG) is called",
    )


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds --trust-imports."""
    parser.add_argument(
        "--trust-imports",
        action="store_true",
        help="run the Python files that config.json of the workdir names under imports; without it "
        "installed packages alone are imported. Only for a workdir whose author you trust",
    )


def add_which(parser: argparse.ArgumentParser) -> None:
    """Adds --which."""
    parser.add_argument(
        "--which",
        choices=("final", "selected"),
        default="final",
        help="the model of the last epoch, or the one selected on the validation split "
        "(default: %(default)s)",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run in many processes; `join_processes` checks their values."""
    group = parser.add_argument_group(
        "many processes",
        "The same command starts every process (docs/hosts.md). Under SLURM, Open MPI 4 and on TPU "
        "slices the first three flags are detected.",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, such as 10.0.0.1:1234"
    )
    group.add_argument(
        "--num_processes",
        metavar="N",
        help="number of processes, such as 4; 1 detects nothing",
    )
    group.add_argument("--process_id", metavar="I", help="index of this process, from 0")
    group.add_argument(
        "--host_timeout",
        metavar="SECONDS",
        default=str(coordination.HEARTBEAT_TIMEOUT),
        help="all stop when a process sends no heartbeat for this long (default: %(default)s)",
    )
    group.add_argument(
        "--step_timeout",
        metavar="SECONDS",
        default=str(coordination.STEP_TIMEOUT),
        help="all stop when no process makes progress for this long; 0: never "
        "(default: %(default)s)",
    )


def join_processes(arguments: argparse.Namespace, *, stop_together: bool) -> None:
    """Joins this process to its run, before JAX is used.

    Args:
      arguments: with the flags of `add_processes`.
      stop_together: see `coordination.join`.

    Raises:
      UsageError: a flag of the wrong type or out of range, or one that is missing.
    """
    (timeout,) = parse_numbers("host_timeout", arguments.host_timeout, float)
    if not 1 <= timeout <= 86400:
        raise UsageError(f"--host_timeout={timeout:g}: expected seconds from 1 to 86400")
    (step_timeout,) = parse_numbers("step_timeout", arguments.step_timeout, float)
    if step_timeout and not 1 <= step_timeout <= 604800:
        raise UsageError(
            f"--step_timeout={step_timeout:g}: expected 0, or seconds from 1 to 604800"
        )
    rendezvous = discovery.discover(
        arguments.coordinator, arguments.num_processes, arguments.process_id
    )
    coordination.join(
        rendezvous, stop_together=stop_together, timeout=timeout, step_timeout=step_timeout
    )


@contextlib.contextmanager
def naming_flags(flags_by_key: Mapping[str, str]) -> Iterator[None]:
    """A context in which an error of use names the flag that the user typed, not an inner key.

    Args:
      flags_by_key: regular expression of how a message begins -> what it begins with instead.
    """
    try:
        yield
    except UsageError as error:
        for key, flag in flags_by_key.items():
            renamed, count = re.subn(f"^{key}", flag, str(error))
            if count:
                raise UsageError(renamed) from error
        raise


def print_once(text: str) -> None:
    """Prints in process 0 alone."""
    if coordination.is_first():
        print(text)


def parse_numbers(flag: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """The numbers of a flag such as --mean=0.5,0.5,0.5."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--{flag}={text}: expected numbers with commas between") from None
