"""`distill-jax export`: writes a trained decoder for other libraries."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `export`."""
    parser.description = (
        "Writes the student of a finished run for other libraries. Of a run on text: a Hugging "
        "Face folder with its tokenizer, which transformers loads. Of a run on images, or of an "
        "imported network: a folder with the state dict of PyTorch, under the names of public "
        "implementations, as model.safetensors or model.npz."
    )
    parser.epilog = "example: distill-jax export --workdir=runs/a --out=exported"
    flags.add_workdir(parser, "folder of the run")
    parser.add_argument(
        "--format",
        choices=("huggingface", "safetensors", "npz"),
        help="format of the folder (default: huggingface of text, safetensors of images)",
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
    flags.add_trust(parser)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the folder and prints what it holds."""
    from distill_jax.runs import export

    written = export.write(arguments.workdir, arguments.out, arguments.which, arguments.format)
    print(json.dumps(written))
    return 0
