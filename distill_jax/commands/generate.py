"""`distill-jax generate`: lets a teacher respond to prompts."""

import argparse
import json
from collections.abc import Mapping

from distill_jax.commands import flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `generate`."""
    parser.description = (
        "Lets the teacher of a config respond to prompts and writes the responses as JSONL, to "
        "train on. The same command resumes where a stopped one ended. --config.KEY=VALUE "
        "overrides a key of the config, such as --config.generate.temperature=0.7."
    )
    parser.epilog = (
        "example: distill-jax generate --config=generate.py --workdir=responses "
        "--config.generate.samples=4"
    )
    flags.add_config(parser, " of teacher.path, prompts and the section generate")
    flags.add_workdir(parser, "folder for responses.jsonl", remote=False)


def run(arguments: argparse.Namespace, overrides: Mapping[str, str]) -> int:
    """Writes the responses and prints how many there are."""
    from distill_jax import config as configs
    from distill_jax.runs import generation, generation_settings

    teacher, settings = generation_settings.parse(configs.read(arguments.config, overrides))
    print(json.dumps(generation.write(settings, teacher, arguments.workdir)))
    return 0
