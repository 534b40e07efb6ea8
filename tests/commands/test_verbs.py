"""The table of verbs: every verb has its flags, and help needs nothing heavy."""

import argparse
import subprocess
import sys

import pytest

from distill_jax import cli
from distill_jax.commands import VERBS

NAMES = [name for verb in VERBS for name in (verb.name, *verb.aliases)]


def test_the_public_verbs():
    assert NAMES == [
        *("train", "eval", "plan", "report", "compare", "runs", "import"),
        *("precompute", "store", "generate", "quantize", "export"),
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_help_of_a_verb_has_an_example_and_a_text_for_each_flag(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    verb = next(verb for verb in VERBS if name in (verb.name, *verb.aliases))
    assert f"example: distill-jax {verb.name} " in printed
    assert ("--config.KEY=VALUE" in printed) == verb.takes_config_keys
    parser = argparse.ArgumentParser()
    verb.load().add_arguments(parser)
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize(
    "verb", [v for v in VERBS if not v.takes_config_keys], ids=lambda v: v.name
)
def test_a_verb_without_a_config_refuses_its_keys(verb, capsys):
    required = {
        "report": ["--workdir=x"],
        "runs": ["x"],
        "compare": ["x", "y"],
        "export": ["--workdir=x", "--out=y"],
        "quantize": ["--workdir=x", "--out=y", "--recipe=int8"],
        "import": [
            *("x.pth", "--model=mlp", "--classes=2", "--mean=0", "--std=1", "--workdir=x"),
        ],
    }
    assert cli.main([verb.name, *required[verb.name], "--config.seed=1"]) == 2
    line = capsys.readouterr().err
    assert line == f"distill-jax: error: --config.seed: {verb.name} takes no config keys\n"


def test_help_imports_neither_jax_nor_numpy():
    code = (
        "import sys\nfrom distill_jax import cli\ncli._make_parser().format_help()\n"
        "print(sorted({'jax', 'numpy', 'flax', 'ml_collections'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
