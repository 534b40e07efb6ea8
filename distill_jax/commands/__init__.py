"""The verbs of the command line, one module each with its flags and what it runs.

To add a verb, write its module and a row of `VERBS`. Modules import nothing heavy at the top, so
that `--help` needs no JAX; `run` imports what it uses.
"""

import argparse
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Protocol, cast


class Command(Protocol):
    """What the module of a verb defines."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the flags of the verb to its parser."""

    def run(self, arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
        """Runs the verb.

        Args:
          arguments: the parsed flags.
          overrides: the config keys of `--config.key=value`, as text.

        Returns:
          The exit code.

        Raises:
          UsageError: a mistake of the user.
        """


@dataclasses.dataclass(frozen=True)
class Verb:
    """A verb of the command line.

    Attributes:
      name: the verb.
      module: its module in this package.
      summary: its line in `distill-jax --help`.
      aliases: other names of the verb.
      takes_config_keys: whether it accepts `--config.key=value`.
      computes: whether it runs networks, for which memory in huge pages is worth a new start.
      resumes: whether the same command goes on where a stopped one ended.
    """

    name: str
    module: str
    summary: str
    aliases: tuple[str, ...] = ()
    takes_config_keys: bool = True
    computes: bool = False
    resumes: bool = False

    def load(self) -> Command:
        """The module of the verb."""
        return cast(Command, importlib.import_module(f"{__name__}.{self.module}"))


VERBS = (
    Verb(
        "train",
        "train",
        "train a teacher, a baseline or a student; resumes",
        computes=True,
        resumes=True,
    ),
    Verb("eval", "evaluate", "evaluate the student of a finished run", computes=True),
    Verb("plan", "plan", "predict whether a run fits given hardware, and how fast it can be"),
    Verb(
        "report", "report", "write report.html of a run, finished or not", takes_config_keys=False
    ),
    Verb(
        "compare", "compare", "compare runs on one page, with their seeds", takes_config_keys=False
    ),
    Verb(
        "runs", "list_runs", "list the runs in a folder with their state", takes_config_keys=False
    ),
    Verb(
        "import",
        "import_weights",
        "turn a PyTorch state dict or a GGUF file into a teacher",
        takes_config_keys=False,
    ),
    Verb(
        "precompute",
        "precompute",
        "write a teacher's answers to all training data to disk; resumes",
        aliases=("store",),
        computes=True,
        resumes=True,
    ),
    Verb(
        "generate",
        "generate",
        "let a teacher respond to prompts; resumes",
        computes=True,
        resumes=True,
    ),
    Verb(
        "quantize",
        "quantize",
        "round the matrices of a trained model to few bits",
        takes_config_keys=False,
    ),
    Verb(
        "export", "export", "write a trained decoder for other libraries", takes_config_keys=False
    ),
)
