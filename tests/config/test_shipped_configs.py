"""Every file of configs/ loads, and the step that it makes can be traced: shapes, without data."""

import pathlib
import runpy

import jax
import pytest

from distill_jax import config as configs
from distill_jax import tasks
from distill_jax.runs import generation_settings
from distill_jax.training.step import compile_steps

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
SHARED = {"literature", "recipes"}  # read by other configs
LARGE, SMALL = (str(CONFIGS / "shapes" / name / "") for name in ("llama-3.1-8b", "llama-3.2-1b"))
PAIR = {"teacher.path": LARGE, "student.path": SMALL}
MESH = {"mesh.data": "1", "mesh.fsdp": "4", "mesh.tensor": "2"}  # of eight devices
METHODS = runpy.run_path(str(CONFIGS / "literature.py"))["METHODS"]
ONE = {"mesh.data": "1"}
#: SOURCE of `--config` -> what its docstring has the user give, or fewer devices.
SHIPPED = {
    "cifar10_hinton.py:teacher": ONE,
    "cifar10_hinton.py:baseline": ONE,
    "cifar10_hinton.py:student": {**ONE, "teacher.path": "resnet110"},
    "cifar100.py:wrn_16_2": ONE,
    "cifar100.py:resnet56,deit_tiny,deit": {**ONE, "teacher.path": "resnet56"},
    "digits.py:teacher": {},
    "digits.py:baseline": {},
    "digits.py:smoothed": {},
    "digits.py:student": {"teacher.path": "mlp:widths=(64,)"},
    "gemma3_27b_to_4b.py": MESH,
    "imagenet_resnet152_to_resnet50.py": {},
    "imagenet_vit_giant_to_deit_small.py": {"mesh.fsdp": "8"},
    "llama_70b_to_8b.py": MESH,
    "llama_8b_to_1b.py": {},
    "lm_logits.py": PAIR,
    "lm_on_policy.py": PAIR,
    "lm_quantization_aware.py": PAIR,
    "lm_sequence.py": {"student.path": SMALL},
    "lm_stored.py": {"teacher.store": "sampled:50", "student.path": SMALL},
    "mnist_hinton.py:teacher": {},
    "mnist_hinton.py:baseline": {},
    "mnist_hinton.py:student": {"teacher.path": "mlp:widths=(64,)"},
    "qwen3_32b_to_4b.py": MESH,
}


def traced(source: str, overrides: dict[str, str]):
    """The step of a shipped config, traced for eight devices."""
    config = configs.load(f"{CONFIGS}/{source}", overrides)
    run = tasks.abstract_step(config, jax.devices())
    layout = jax.tree.map(lambda a: a.sharding, run.state)
    steps = compile_steps(run.recipe, run.mesh, layout)
    return run, steps.trace(run.state, run.frozen, run.resident, run.batches).out_info


SLOW = {"cifar10_hinton.py:teacher"}  # 110 layers with their gradients


@pytest.mark.parametrize(
    "source", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in SHIPPED]
)
def test_the_step_of_a_shipped_config_is_traced(source):
    run, after = traced(source, SHIPPED[source])
    assert jax.tree.structure(after) == jax.tree.structure(run.state)
    shapes = jax.tree.map(lambda before, now: before.shape == now.shape, run.state, after)
    assert all(jax.tree.leaves(shapes))


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_every_method_of_the_literature_is_traced(method):
    own = {} if method in ("mutual", "ema") else {"teacher.path": "resnet14:bn_unbiased=True"}
    _, after = traced(f"cifar100.py:resnet14,resnet8,{method}", ONE | own)
    assert after.sums["loss"].shape == ()


def test_the_config_of_generate_is_read():
    given = {"teacher.path": "/models/teacher", "prompts": "prompts.jsonl"}
    path, settings = generation_settings.parse(configs.read(f"{CONFIGS}/lm_generate.py", given))
    assert (
        path == given["teacher.path"]
        and settings.max_new_tokens == 512
        and settings.compute_dtype == "bfloat16"
    )


def test_no_config_is_left_out():
    files = {path.stem for path in CONFIGS.glob("*.py")} - SHARED
    assert files == {source.partition(".")[0] for source in SHIPPED} | {"lm_generate"}
