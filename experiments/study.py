"""What the programs of all studies share: arguments, trials, the folder of results, exit codes.

A study that is run exactly as planned writes into its own folder: results/, and the tables of
README.md. Anything less, such as fewer seeds or shorter runs, is a trial: it is labelled as one and
written into WORKDIR/report, so that it cannot replace a result.
"""

import argparse
import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from distill_jax.errors import UsageError
from distill_jax.processes import huge_pages


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


@dataclasses.dataclass(frozen=True)
class Program:
    """A command of a study: `python -m experiments.STUDY.MODULE`.

    Attributes:
      study: the study's folder, such as "hinton2015".
      module: the module that is run.
      huge_pages: whether it computes in huge pages where they help; False for a program whose
        child processes are compared, since they inherit the setting.
    """

    study: str
    module: str = "run"
    huge_pages: bool = True

    @property
    def name(self) -> str:
        """What a user types to start it."""
        return f"python -m {self._full_module}"

    @property
    def _full_module(self) -> str:
        return f"experiments.{self.study}.{self.module}"

    def parser(self, description: str | None) -> argparse.ArgumentParser:
        """A parser of its arguments, whose errors are `UsageError`s."""
        return _Parser(
            prog=self.name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def command(self, arguments: Iterable[str]) -> str:
        """The command line for the record, without the folders of this machine."""
        return " ".join([self.name, *(re.sub(r"(^|=)/.*/", r"\1", one) for one in arguments)])

    def run(self, work: Callable[[], int]) -> int:
        """Does the work and returns the exit code of the process.

        The code is that of `work`. A known failure becomes one line on stderr and a code: 2 for a
        mistake of use, 1 for a run that diverged or whose checkpoints cannot be used, 0 for a run
        that SIGTERM stopped and the same command resumes, 130 for an interrupt.
        """
        try:
            if self.huge_pages:
                huge_pages.start_again(self._full_module)
            return work()
        except UsageError as error:
            self.print_error(str(error))
            return 2
        except KeyboardInterrupt:
            print(f"{self.study}: interrupted; the same command resumes", file=sys.stderr)
            return 130
        except Exception as error:
            # Imported on failure only: this imports JAX, whose environment a program may set first.
            from distill_jax.training import checkpoints, loop

            if isinstance(error, loop.Preempted):
                how = "stopped by SIGTERM; the same command resumes"
                print(f"{self.study}: {how}", file=sys.stderr)
                return 0
            if isinstance(error, loop.Diverged | checkpoints.CheckpointError):
                print(f"{self.study}: failed: {error}", file=sys.stderr)
                return 1
            raise

    def print_error(self, message: str) -> None:
        """Prints an error as the line of this program."""
        print(f"{self.study}: error: {message}", file=sys.stderr)


def add_workdir(parser: argparse.ArgumentParser, *, report_only: bool = True) -> None:
    """Adds --workdir, and --report-only for programs that write results/ and README.md."""
    parser.add_argument("--workdir", type=pathlib.Path, help="folder of all runs")
    if report_only:
        parser.add_argument("--report-only", action="store_true", help="README from results/ again")


def require_workdir(arguments: argparse.Namespace, content: str = "runs") -> pathlib.Path:
    """--workdir.

    Raises:
      UsageError: it is missing; the message names the `content` of the folder.
    """
    if arguments.workdir is None:
        raise UsageError(f"--workdir: missing; expected a folder for the {content}")
    return arguments.workdir


def require_at_least(flag: str, value: int | None, least: int) -> None:
    """UsageError for an integer below `least`; None, for no value, is accepted."""
    if value is not None and value < least:
        raise UsageError(f"--{flag}={value}: expected an integer >= {least}")


def require_positive(flag: str, value: float | None) -> None:
    """UsageError for a number that is not positive; None, for no value, is accepted."""
    if value is not None and not value > 0:
        raise UsageError(f"--{flag}={value}: expected a number > 0")


def config_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """The keys and values of arguments such as --config.training.epochs=3.

    Raises:
      UsageError: an argument of another form.
    """
    overrides = {}
    for argument in arguments:
        found = re.fullmatch(r"--config\.([^=]+)=(.*)", argument)
        if found is None:
            raise UsageError(f"{argument}: unknown argument; expected --config.key=value or --help")
        overrides[found[1]] = found[2]
    return overrides


def trial_label(differences: Sequence[str]) -> str:
    """The warning to readers of a trial; "" for the whole study.

    Args:
      differences: what differs from the whole study, such as "2 of 30 runs".
    """
    return f"A trial, not a result: {', '.join(differences)}." if differences else ""


def results_folder(home: pathlib.Path, workdir: pathlib.Path, *, trial: bool) -> pathlib.Path:
    """The folder that gets README.md and results/: the study's own, or WORKDIR/report for a trial.

    results/ is made.
    """
    folder = workdir / "report" if trial else home
    (folder / "results").mkdir(parents=True, exist_ok=True)
    return folder
