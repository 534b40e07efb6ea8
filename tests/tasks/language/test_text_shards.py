"""Training on text in shards: the mesh changes where numbers lie, not what they are."""

import contextlib
import json
import os
import signal

import jax
import numpy as np
import pytest
import small_texts
from small_runs import changed

from distill_jax import config as configs
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop, step
from distill_jax.training.state import copy_to

MESHES = [
    (2, 2, 2),
    *(pytest.param(s, marks=pytest.mark.slow) for s in ((8, 1, 1), (1, 8, 1), (1, 1, 8))),
]


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
    now, feed = copy_to(parts.initial, parts.layout), parts.feed.at(0)
    for _ in range(steps):
        batches = step.put_batches([next(feed)], parts.mesh)
        now = compiled(now, parts.frozen, {}, batches)
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
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4, err_msg=f"{name} {path}")


@pytest.fixture(scope="module")
def alone(config):
    return trained(on(config, (1, 1, 1)))[1]


@pytest.mark.parametrize("mesh", MESHES)
def test_five_steps_are_those_of_one_device(config, alone, mesh):
    assert_close(trained(on(config, mesh))[1], alone)


@pytest.mark.slow
def test_a_mixture_of_experts_learns_from_another_as_on_one_device(config, tmp_path):
    sizes = dict(family="mixtral", mlp_dim=24, experts=4, experts_per_token=2)
    teacher = small_texts.make_teacher(tmp_path / "mixture", small_texts.TEACHER.replace(**sizes))
    student = {"name": "decoder", "layers": (1,)}
    method = {"name": "soft_target+hidden_states+attention_relations"}
    of_layers = changed(
        {**config, "student": student, "method": method}, teacher__path=(str(teacher),)
    )
    _, alone = trained(on(of_layers, (1, 1, 1)))
    assert alone.params["runs/0/mlp/gate/kernel"].shape == (1, 4, 16, 24)
    parts, now = trained(on(of_layers, (2, 2, 2), training__remat="dots"))
    assert_close(now, alone)
    for part in ("router", "gate"):
        name = f"runs/0/mlp/{part}/kernel"
        assert np.abs(np.asarray(now.params[name]) - parts.initial.params[name]).max() > 1e-3


def test_what_is_in_shards_and_what_is_not(config):
    parts, now = trained(on(config, (2, 2, 2)), steps=1)
    name = "runs/0/mlp/up/kernel"  # [2, 32, 64]
    moments = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(now.optimizer)
        if getattr(path[-1], "key", "") == name
    ]
    assert len(moments) == 2
    for array in (now.params[name], now.average["params"][name], *moments):
        assert array.addressable_shards[0].data.shape == (2, 16, 32)
    assert now.params["final_norm/scale"].sharding.is_fully_replicated
    teacher = parts.frozen.teachers[0][name]  # [2, 16, 24]
    assert teacher.addressable_shards[0].data.shape == (2, 8, 12)
    whole, _ = trained(on(config, (2, 2, 2), mesh__replicate=("student", "teacher")), steps=0)
    assert whole.initial.params[name].sharding.is_fully_replicated
    assert whole.frozen.teachers[0][name].sharding.is_fully_replicated
    assert not whole.initial.average["params"][name].sharding.is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"training__remat": "full", "method__name": "jensen_shannon+hidden_states"},
        {"training__accumulate": 2, "mesh__replicate": ("student", "teacher")},
    ],
    ids=["remat", "replicated"],
)
def test_other_settings_in_shards(config, changes):
    one = trained(on(config, (1, 1, 1), **changes), steps=2)[1]
    assert_close(trained(on(config, (2, 2, 2), **changes), steps=2)[1], one)


def figures(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_run_goes_on_over_another_mesh(config, tmp_path, monkeypatch):
    config = changed(config, training__steps=15)
    experiment.run(configs.resolve(on(config, (1, 1, 1))), tmp_path / "undisturbed")
    for mesh, stop in (((8, 1, 1), 6), ((2, 2, 2), 12), ((1, 1, 1), None)):
        with monkeypatch.context() as patch:
            if stop:
                log = Session.log

                def log_and_interrupt(self, at, sums, log=log, stop=stop):
                    log(self, at, sums)
                    if at == stop:
                        os.kill(os.getpid(), signal.SIGTERM)

                patch.setattr(Session, "log", log_and_interrupt)
            resolved = configs.resolve(on(config, mesh))
            with contextlib.nullcontext() if stop is None else pytest.raises(loop.Preempted):
                experiment.run(resolved, tmp_path / "moved")
    one, other = (figures(tmp_path / name) for name in ("undisturbed", "moved"))
    assert len(one) == len(other) > 5
    for line, same in zip(one, other, strict=True):
        assert line.keys() == same.keys()
        for key in line:
            if isinstance(line[key], float):
                assert same[key] == pytest.approx(line[key], rel=1e-3, abs=1e-4), key
