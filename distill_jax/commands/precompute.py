"""`distill-jax precompute`: writes a teacher's answers to all training data to disk."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `precompute`."""
    parser.description = (
        "Computes the answers of the config's teacher to all training data, once, and writes them "
        "to a folder. A run with --config.teacher.store=DIR reads them in place of the teacher. "
        f"The same command resumes where a stopped one ended. {flags.CONFIG_KEYS}"
    )
    parser.epilog = (
        "example: distill-jax precompute --config=configs/digits.py --workdir=answers "
        "--config.teacher.path=runs/teacher"
    )
    flags.add_config(parser, " of the runs that will read the answers")
    flags.add_workdir(parser, "folder for the answers", remote=False)
    parser.add_argument(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="dtype of the answers (default: float16; bfloat16 for images alone)",
    )
    parser.add_argument(
        "--taps",
        metavar="NAME,NAME",
        help="images: features to write with the logits, such as pooled,stage3; '' for none "
        "(default: pooled)",
    )
    parser.add_argument(
        "--answers",
        metavar="KIND:N",
        help="text: what to keep of the distribution of each token, sampled:N draws or the N most "
        "likely ids, such as top_k:64 (default: sampled:50)",
    )
    flags.add_path(
        parser,
        "--logits",
        remote=False,
        metavar="FILE",
        help="images: store the logits of this .npz or .safetensors file, which another program "
        "computed, in place of a teacher's: train [images, views, classes] and test [images, "
        "classes], in the order of the data, or of an array ids",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the answers and prints how many there are."""
    from distill_jax import config as configs
    from distill_jax import tasks

    if arguments.logits:
        # The later runs have no teacher but this store.
        overrides = {**overrides, "teacher.store": str(arguments.workdir)}
    config = configs.load(arguments.config, overrides)
    taps = arguments.taps
    if taps is not None:
        taps = tuple(name for name in taps.split(",") if name)
    written = tasks.precompute(
        config,
        arguments.workdir,
        dtype=arguments.dtype or "float16",
        taps=taps,
        answers=arguments.answers,
        logits=arguments.logits,
    )
    print(json.dumps(written))
    return 0
