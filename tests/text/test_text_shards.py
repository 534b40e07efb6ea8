"""Training on text in shards: the mesh changes where numbers lie, not what they are."""

import jax
import numpy as np
import pytest
import small_texts
from small_runs import changed

from distill_jax import config as configs
from distill_jax import experiment
from distill_jax.training import step
from distill_jax.training.state import placed

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Widths and ids that eight devices share, but for two heads of keys and 300 real ids."""
    folder = tmp_path_factory.mktemp("texts")
    small_texts.write_records(folder / "records.jsonl")
    teacher = small_texts.make_teacher(folder / "teacher")
    base = small_texts.config(teacher, folder / "records.jsonl")
    return changed(
        base, student__dim=32, student__heads=8, student__kv_heads=2, student__mlp_dim=64
    )


def trained(config, steps=5):
    """Parts, and the state after some steps."""
    parts = experiment.prepare(configs.resolve(config))
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    now, feed = placed(parts.initial, parts.layout), parts.batches(0)
    for _ in range(steps):
        batches = step.put_batches([next(feed)], parts.mesh)
        now = compiled(now, parts.teacher_variables, {}, batches)
    return parts, now


def on(config, mesh, **changes):
    data, fsdp, tensor = mesh
    return changed(config, mesh__data=data, mesh__fsdp=fsdp, mesh__tensor=tensor, **changes)


def assert_close(one, other):
    for name in ("params", "adapters", "optimizer", "average", "sums"):
        for (path, a), (_, b) in zip(
            jax.tree_util.tree_leaves_with_path(getattr(one, name)),
            jax.tree_util.tree_leaves_with_path(getattr(other, name)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5, err_msg=f"{name} {path}")


@pytest.fixture(scope="module")
def alone(config):
    return trained(on(config, (1, 1, 1)))[1]


@pytest.mark.parametrize("mesh", MESHES)
def test_five_steps_are_those_of_one_device(config, alone, mesh):
    assert_close(trained(on(config, mesh))[1], alone)
