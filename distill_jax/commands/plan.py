"""`distill-jax plan`: compiles a run for hardware one does not have, and estimates its speed."""

import argparse
import json
import os
import pathlib
from collections.abc import Mapping

from distill_jax import storage
from distill_jax.commands import flags
from distill_jax.errors import UsageError
from distill_jax.storage import gcs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `plan`."""
    parser.description = (
        "Compiles the training step of a config for given hardware, without the hardware, and "
        "prints whether it fits the memory and how fast it can be. Exit code 1: it does not fit. "
        f"{flags.CONFIG_KEYS}"
    )
    parser.epilog = (
        "example: distill-jax plan --config=configs/llama_8b_to_1b.py --target=tpu:v5p:4x4x4"
    )
    flags.add_config(parser, " of the run")
    parser.add_argument(
        "--target",
        required=True,
        metavar="TARGET",
        help="the hardware, such as tpu:v5p:4x4x4, gpu:h100:8 or local",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="rank meshes, rematerialisation and teacher dtypes in place of the config's own",
    )
    flags.add_workdir(parser, "folder for plan.json", required=False)
    flags.add_path(
        parser,
        "--out",
        remote=True,
        metavar="FILE",
        help="file for the plan in JSON, in place of plan.json in --workdir",
    )


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Plans, writes the JSON and prints the text; 1 when the run does not fit."""
    from distill_jax.planning import targets

    targets.prepare_process(arguments.target)  # before JAX is imported
    from distill_jax import config as configs
    from distill_jax import planning

    config = configs.load(arguments.config, overrides)
    out, flag = arguments.out, "--out"
    if out is None and arguments.workdir is not None:
        out, flag = arguments.workdir / "plan.json", "--workdir"
    if out is not None:
        _check_can_be_written(out, f"{flag}={arguments.out or arguments.workdir}")
    chosen = planning.search if arguments.search else planning.check
    fits, text, content = chosen(config, targets.open_target(arguments.target))
    if out is not None:
        with storage.reporting_unreachable(out, flag):
            storage.make_folder(out.parent)
            storage.write_atomically(out, json.dumps(content, indent=2) + "\n")
    print(text)
    return 0 if fits else 1


def _check_can_be_written(out: pathlib.Path, location: str) -> None:
    """Refuses a file that cannot be written, before the minutes that a plan may take.

    Args:
      out: the file; folders above it that are missing will be made.
      location: the flag and its value.
    """
    if storage.is_remote(out):
        with storage.reporting_unreachable(out, location.partition("=")[0]):
            gcs.list_names(out.parent)
        return
    folder = next(above for above in out.absolute().parents if above.exists())
    if out.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        found = f"{out} is a folder" if out.is_dir() else f"{folder} is no folder to write to"
        raise UsageError(f"{location}: cannot be written: {found}; expected a file to write")
