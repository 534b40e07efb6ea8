"""Low-rank adapters against dense matrices: the same answers, and gradients by the chain rule."""

import functools

import jax
import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest

from distill_jax import models, parallel
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import lora

# Float32 alone moves the logits of Gemma's golden weights by several 1e-5.
FAMILIES = {"llama": 1e-5, "phi3": 1e-5, "gemma2": 1e-4, "mixtral": 1e-5, "qwen3_moe_dense": 1e-5}
RANK, ALPHA = 2, 6.0
SCALE = 3.0  # ALPHA / RANK


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return functools.cache(lambda name: language.load(reference.write(folder / name, name)))


def trained(model, **options):
    """The graph, adapters of random A and B, and the base of an adapted model."""
    adapted = lora.adapt(model, rank=RANK, alpha=ALPHA, **options)
    graphdef, params, _ = models.split(adapted)
    adapters, base = lora.split_adapters(params)
    random = np.random.default_rng(0)
    adapters = {
        name: jnp.asarray(random.normal(0, 0.3, value.shape), jnp.float32)
        for name, value in adapters.items()
    }
    return graphdef, adapters, base


def dense_of(adapters, base):
    """W + A B alpha / rank of every matrix, layer by layer in float64."""
    whole = {name: np.float64(value) for name, value in base.items()}
    for name, a in adapters.items():
        if name.endswith("/low_rank/a/kernel"):
            stem = name.removesuffix("/low_rank/a/kernel")
            b = np.float64(adapters[f"{stem}/low_rank/b/kernel"])
            for layer in range(len(a)):
                whole[f"{stem}/kernel"][layer] += SCALE * np.float64(a[layer]) @ b[layer]
    return whole


@pytest.mark.parametrize("name", FAMILIES)
def test_the_adapted_model_is_the_dense_one_with_the_product_added(load, name):
    model = load(name)
    graphdef, adapters, base = trained(model)
    assert base.keys() == reference.parameters(model).keys()
    kernels = [name for name in base if "/kernel" in name]
    if model.config.experts:
        # Kernels of experts have one more axis; routers are left out, too.
        kernels = [n for n in kernels if base[n].ndim == 3 and "/router/" not in n]
    assert len(adapters) == 2 * len(kernels)
    expected = dense_of(adapters, base)
    dense = {name: jnp.asarray(value, jnp.float32) for name, value in expected.items()}
    wanted = reference.logits(language.from_params(model.config, dense), reference.TOKENS)
    adapted = models.merge(graphdef, {**adapters, **base})
    found = reference.logits(adapted, reference.TOKENS)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=FAMILIES[name])
    assert np.abs(found - reference.logits(model, reference.TOKENS)).max() > 0.01
    merged = lora.merge_adapters(adapters, base, SCALE)
    assert list(merged) == list(reference.parameters(model))
    for key, value in merged.items():
        assert value.dtype == np.float32
        whole = parallel.fetch_slice(value)
        np.testing.assert_allclose(whole, expected[key], atol=1e-6, err_msg=key)
        # Layer by layer the same bits.
        for row in range(value.shape[0] if value.ndim > 2 else 0):
            np.testing.assert_array_equal(parallel.fetch_slice(value, (row,)), whole[row])


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_the_gradients_are_those_of_the_dense_matrices_by_the_chain_rule(load, name):
    model = load(name)
    graphdef, adapters, base = trained(model)
    chosen = jnp.asarray(np.random.default_rng(1).normal(size=model.config.dim), jnp.float32)

    def loss(hidden):
        return jnp.sum(jnp.sin(hidden) * chosen)

    def of_adapters(adapters):
        return loss(models.merge(graphdef, {**adapters, **base})(reference.TOKENS).hidden)

    def of_dense(params):
        return loss(language.from_params(model.config, params)(reference.TOKENS).hidden)

    found = jax.jit(jax.grad(of_adapters))(adapters)
    dense = {name: jnp.asarray(v, jnp.float32) for name, v in dense_of(adapters, base).items()}
    gradient = jax.jit(jax.grad(of_dense))(dense)
    assert found.keys() == adapters.keys()
    for key, value in found.items():
        stem, _, end = key.partition("/low_rank/")
        a, b = (np.float64(adapters[f"{stem}/low_rank/{part}/kernel"]) for part in "ab")
        whole = np.float64(gradient[f"{stem}/kernel"])
        if end == "a/kernel":
            expected = SCALE * np.einsum("lio,lro->lir", whole, b)
        else:
            expected = SCALE * np.einsum("lir,lio->lro", a, whole)
        size = np.abs(expected).max()
        assert size > 0
        np.testing.assert_allclose(value, expected, atol=2e-5 * max(size, 1), err_msg=key)


def test_new_adapters_add_nothing_and_the_base_is_not_changed(load):
    model = load("llama")
    before = {name: np.array(value) for name, value in reference.parameters(model).items()}
    adapted = lora.adapt(model, rank=RANK, alpha=ALPHA, seed=5)
    tokens = jnp.asarray(reference.TOKENS)
    np.testing.assert_array_equal(
        reference.logits(adapted, tokens), reference.logits(model, tokens)
    )
    after = reference.parameters(model)
    assert after.keys() == before.keys()  # the adapters are the copy's
    for name, value in after.items():
        np.testing.assert_array_equal(value, before[name])
    starts = []
    for name, value in lora.split_adapters(reference.parameters(adapted))[0].items():
        assert value.dtype == jnp.float32
        if name.endswith("b/kernel"):
            assert not np.any(value)
            continue
        bound = value.shape[1] ** -0.5
        assert 0.8 * bound < np.abs(value).max() <= bound
        assert abs(np.mean(value)) < 0.3 * bound
        starts.append(np.asarray(value).ravel()[:16])
    assert len(np.unique(np.stack(starts)[:, 0])) == len(starts) == 7
    again = lora.split_adapters(
        reference.parameters(lora.adapt(model, rank=RANK, alpha=ALPHA, seed=5))
    )
    other = lora.split_adapters(
        reference.parameters(lora.adapt(model, rank=RANK, alpha=ALPHA, seed=6))
    )
    name = "runs/0/mlp/up/low_rank/a/kernel"
    first = lora.split_adapters(reference.parameters(adapted))[0][name]
    np.testing.assert_array_equal(again[0][name], first)
    assert np.any(other[0][name] != first)


def test_only_the_targets_are_adapted(load):
    _, adapters, _ = trained(load("llama"), targets=("query", "down"))
    assert {name.split("/")[3] for name in adapters} == {"query", "down"}


def test_a_model_without_a_gate_has_adapters_on_the_rest(tmp_path):
    gpt2 = language.load(reference.write(tmp_path / "gpt2", "gpt2"))
    _, adapters, _ = trained(gpt2)
    assert {name.split("/")[3] for name in adapters} == set(lora.TARGETS) - {"gate"}
    with pytest.raises(UsageError, match=r"student.lora_targets=\('gate',\): the student has no"):
        lora.adapt(gpt2, rank=2, alpha=2.0, targets=("gate",))


def test_adapters_of_experts_are_refused(load):
    with pytest.raises(UsageError) as caught:
        lora.adapt(load("mixtral"), rank=2, alpha=2.0, targets=("query", "up"))
    assert str(caught.value) == (
        "student.lora_targets=('query', 'up'): the student adapts no experts' 'up'; expected some "
        "of query, key, value, output"
    )


def test_too_high_a_rank_is_refused(load):
    # The keys of this one: 16 inputs, two heads of 6.
    with pytest.raises(UsageError, match="student.lora_rank=13: expected at most 12"):
        lora.adapt(load("llama"), rank=13, alpha=1.0)
    lora.adapt(load("llama"), rank=13, alpha=1.0, targets=("gate",))
