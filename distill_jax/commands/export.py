"""`distill-jax export`: writes a trained decoder for other libraries."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `export`."""
    parser.description = (
        "Writes the student of a finished run on text, with its tokenizer, as a Hugging Face "
        "folder that transformers and other libraries load."
    )
    parser.epilog = "example: distill-jax export --workdir=runs/a --out=exported"
    flags.add_workdir(parser, "folder of the run")
    parser.add_argument(
        "--format",
        choices=("huggingface",),
        default="huggingface",
        help="format of the folder (default: %(default)s)",
    )
    flags.add_path(
        parser,
        "--out",
        remote=True,
        required=True,
        metavar="DIR",
        help="new folder, such as exported or gs://bucket/exported",
    )
    flags.add_which(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the folder and prints what it holds."""
    from distill_jax.runs import export

    print(json.dumps(export.write(arguments.workdir, arguments.out, arguments.which)))
    return 0
