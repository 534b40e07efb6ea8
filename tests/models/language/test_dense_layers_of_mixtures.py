"""Mixtures of experts in which some layers have one MLP, as Qwen3-MoE's config.json may name."""

import jax
import language_reference as reference
import numpy as np
import pytest

from distill_jax import models, parallel
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language.config import layer_runs

CONFIG = language.DecoderConfig(
    vocab_size=40,
    dim=16,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_dim=8,
    experts=4,
    experts_per_token=2,
)
MIXED = CONFIG.replace(dense=(True, False, False, True), dense_mlp_dim=12)


@pytest.mark.parametrize(
    "alone, every, dense",
    [
        ([], 1, (False,) * 4),
        ([0, 100], 1, (True, False, False, False)),
        ([], 2, (True, False, True, False)),
        ([3], 2, (True, False, True, True)),
    ],
)
def test_dense_layers_of_a_mixture_are_counted_as_by_transformers(alone, every, dense):
    content = reference.golden("qwen3_moe")["config"] | dict(
        num_hidden_layers=4,
        intermediate_size=20,
        mlp_only_layers=alone,
        decoder_sparse_step=every,
    )
    config = language.from_huggingface(content)
    assert tuple(kind.dense for kind in config.layer_kinds()) == dense
    assert config.dense_mlp_dim == (20 if any(dense) else 0)
    written = language.to_huggingface(config)
    assert language.from_huggingface(written) == config
    assert ("mlp_only_layers" in written) == any(dense)


def test_layers_of_one_run_have_the_same_parameters():
    dense = dict(dense=(True, False, False), dense_mlp_dim=12)
    config = CONFIG.replace(layers=7, **dense)
    runs = layer_runs(config)
    assert [(run.dense, run.layers) for run in runs] == [
        *((True, 1), (False, 2)) * 2,
        (True, 1),
    ]
    assert sum(run.layers for run in runs) == 7
    # Where no layer is dense, nothing of a model's definition changes.
    assert not {"dense", "dense_mlp_dim"} & CONFIG.definition().keys()


def test_chosen_layers_of_a_mixture_with_dense_ones_are_those_layers():
    """A new decoder of some layers computes as the old one would with these alone."""
    teacher = language.create(MIXED, seed=2)
    student = language.from_layers(teacher, (3, 1, 0))
    kinds = [kind.dense for kind in student.config.layer_kinds()]
    assert kinds == [True, False, True] and student.config.dense_mlp_dim == 12
    old, new = models.split(teacher)[1], models.split(student)[1]
    for ours, theirs in (("runs/0", "runs/2"), ("runs/1", "runs/1"), ("runs/2", "runs/0")):
        names = [name for name in new if name.startswith(f"{ours}/")]
        assert (f"{ours}/mlp/router/kernel" in names) == (ours == "runs/1")
        for name in names:
            expected = old[name.replace(ours, theirs)][:1]
            np.testing.assert_array_equal(new[name], expected, err_msg=name)
    alone = language.from_layers(teacher, (1,))
    assert alone.config.dense == (False,) and alone.config.dense_mlp_dim == 0
    with pytest.raises(UsageError, match=r"student.layers=\[0, 3\]: expected at least one layer"):
        language.from_layers(teacher, (0, 3))


def test_a_mesh_gives_the_states_of_one_device():
    tokens = reference.TOKENS[:, :8]
    alone = language.create(MIXED, seed=2)
    mesh = parallel.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])

    def sharding(name, shape):
        return parallel.sharding(name, shape, mesh)

    params = {
        name: parallel.put(value, sharding(name, value.shape))
        for name, value in models.split(alone)[1].items()
    }
    spread = language.from_params(MIXED, params, mesh=mesh)
    found, expected = (reference.forward(model, tokens).hidden for model in (spread, alone))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_student_of_sizes_has_experts_in_every_layer():
    from distill_jax.models.language import student

    options = student.check_student({"dim": 8, "depth": 2, "heads": 2, "mlp_dim": 8})
    made = student.open_student(
        options, language.create(MIXED, seed=2), 40, seed=0, dtype=np.float32
    )
    assert made.config.dense == (False,) and made.config.experts == 4
