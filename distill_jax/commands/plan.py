"""`distill-jax plan`: compiles a run for hardware one does not have, and estimates its speed."""

import argparse
import json
from collections.abc import Mapping

from distill_jax import storage
from distill_jax.commands import flags


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
    out = arguments.out
    if out is None and arguments.workdir is not None:
        out = arguments.workdir / "plan.json"
    chosen = planning.search if arguments.search else planning.check
    fits, text, content = chosen(config, targets.open_target(arguments.target))
    if out is not None:
        with storage.reporting_unreachable(out, "--out"):
            storage.make_folder(out.parent)
            storage.write_atomically(out, json.dumps(content, indent=2) + "\n")
    print(text)
    return 0 if fits else 1
