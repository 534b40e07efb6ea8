"""Mixtures of experts: the layer against float64 loops, on meshes, and of chosen layers."""

import functools
import re

import jax
import jax.numpy as jnp
import language_reference as reference
import numpy as np
import pytest
from flax import nnx

from distill_jax import models, parallel
from distill_jax.models import language
from distill_jax.models.language.experts import mix_experts
from distill_jax.planning import hlo
from distill_jax.planning.collectives import collectives

CONFIG = language.DecoderConfig(
    vocab_size=32,
    dim=16,
    layers=2,
    heads=8,
    kv_heads=8,
    head_dim=4,
    mlp_dim=16,
    experts=6,
    experts_per_token=2,
)


def inputs() -> dict[str, np.ndarray]:
    """Tokens, a router and five experts of unequal popularity; the last is chosen by no token."""
    random = np.random.default_rng(0)
    shapes = {"x": (2, 4, 3), "router": (3, 5), "gate": (5, 3, 4), "up": (5, 3, 4)}
    made = {name: random.normal(size=shape) for name, shape in shapes.items()}
    made["down"] = random.normal(size=(5, 4, 3))
    made["x"][..., 0] = 1.0
    made["router"][0] = [1.0, 0.0, 0.0, 0.0, -30.0]
    return made


def by_loops(x, router, gate, up, down, *, normalised: bool, chosen: int = 2) -> np.ndarray:
    """One token and one expert at a time."""
    y = np.zeros_like(x)
    for place in np.ndindex(*x.shape[:-1]):
        logits = x[place] @ router
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        experts = np.argsort(-probabilities)[:chosen]
        whole = probabilities[experts].sum() if normalised else 1.0
        for expert in experts:
            opened = x[place] @ gate[expert]
            inner = opened / (1 + np.exp(-opened)) * (x[place] @ up[expert])
            y[place] += probabilities[expert] / whole * (inner @ down[expert])
    return y


def by_us(x, router, gate, up, down, *, normalised: bool):
    kernels = {"gate/kernel": gate, "up/kernel": up, "down/kernel": down}
    return mix_experts(x, x @ router, kernels, top_k=2, normalised=normalised, activation="silu")


@pytest.mark.parametrize("normalised", [True, False])
def test_the_layer_and_its_gradients_are_those_of_loops_in_float64(normalised):
    given = inputs()
    ours = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
    expected = by_loops(**given, normalised=normalised)
    found = jax.jit(functools.partial(by_us, normalised=normalised))(**ours)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    weights = np.random.default_rng(1).normal(size=expected.shape)

    def loss(arrays):
        return jnp.sum(by_us(**arrays, normalised=normalised) * weights.astype(np.float32))

    gradients = jax.jit(jax.grad(loss))(ours)
    for name, value in given.items():
        slopes = np.zeros_like(value)
        for place in np.ndindex(*value.shape):
            sums = []
            for step in (1e-5, -1e-5):
                moved = value.copy()
                moved[place] += step
                moved_sum = by_loops(**given | {name: moved}, normalised=normalised) * weights
                sums.append(np.sum(moved_sum))
            slopes[place] = (sums[0] - sums[1]) / 2e-5
        np.testing.assert_allclose(gradients[name], slopes, rtol=1e-4, atol=2e-5, err_msg=name)
    assert not np.any(gradients["gate"][4]) and np.any(gradients["gate"][1])


def test_experts_of_bfloat16_are_near_those_of_float32():
    given = inputs()
    ours = {name: jnp.asarray(value, jnp.bfloat16) for name, value in given.items()}
    kernels = {f"{name}/kernel": ours[name] for name in ("gate", "up", "down")}
    logits = ours["x"].astype(jnp.float32) @ ours["router"].astype(jnp.float32)
    found = mix_experts(ours["x"], logits, kernels, top_k=2, normalised=True, activation="silu")
    assert found.dtype == jnp.bfloat16
    rounded = {name: np.float64(value) for name, value in ours.items()}
    expected = by_loops(**rounded, normalised=True)
    size = np.sqrt(np.mean(expected**2))
    assert np.sqrt(np.mean((np.float64(found) - expected) ** 2)) < 0.02 * size


def compared(model: language.Decoder, tokens: np.ndarray):
    """Hidden states, and the gradients of a sum of their sines."""
    graphdef, params, _ = models.split(model)

    def loss(params):
        hidden = models.merge(graphdef, params)(tokens).hidden
        return jnp.sum(jnp.sin(3 * hidden)), hidden

    (_, hidden), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return hidden, gradients


def wide(config: language.DecoderConfig) -> models.Flat:
    """Parameters far from those of an untrained model, whose routers hardly choose."""
    params = models.split(language.create(config, seed=4))[1]
    return {name: v if "norm" in name else 8 * v for name, v in params.items()}


TOKENS = np.random.default_rng(2).integers(0, 32, (8, 5)).astype(np.int32)


@functools.cache
def on_one_device(width: int):
    config = CONFIG.replace(mlp_dim=width)
    return compared(language.from_params(config, wide(config)), TOKENS)


@pytest.mark.parametrize(
    "mesh, width",
    [
        ((2, 2, 2), 16),
        ((1, 1, 8), 16),
        pytest.param((8, 1, 1), 16, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), 16, marks=pytest.mark.slow),
        # Each device has every expert whole.
        pytest.param((1, 1, 8), 12, marks=pytest.mark.slow),
    ],
)
def test_shards_give_the_states_and_gradients_of_one_device(mesh, width):
    config, mesh = CONFIG.replace(mlp_dim=width), parallel.make_mesh(*mesh)
    params = {
        name: jax.device_put(value, parallel.sharding(name, value.shape, mesh))
        for name, value in wide(config).items()
    }
    tokens = jax.device_put(TOKENS, parallel.batch_sharding(mesh))
    hidden, gradients = compared(language.from_params(config, params, mesh=mesh), tokens)
    states, expected = on_one_device(width)
    np.testing.assert_allclose(hidden, states, rtol=1e-4, atol=1e-5)
    for name, value in gradients.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("mesh", [(1, 8, 1), pytest.param((2, 4, 1), marks=pytest.mark.slow)])
def test_gradients_of_experts_are_scattered_over_fsdp_and_summed_in_shards(mesh):
    mesh = parallel.make_mesh(*mesh)
    graphdef, params, _ = models.split(language.create(CONFIG, seed=0))
    graphdef = models.split(language.from_params(CONFIG, params, mesh=mesh))[0]
    where = parallel.shardings({"student": params}, mesh)["student"]
    given = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=where[name])
        for name, value in params.items()
    }
    tokens = jax.ShapeDtypeStruct((8, 4), jnp.int32, sharding=parallel.batch_sharding(mesh))

    def loss(params, tokens):
        return jnp.sum(jnp.sin(models.merge(graphdef, params)(tokens).hidden))

    gradient = jax.jit(jax.grad(loss), out_shardings=where)
    text = gradient.lower(given, tokens).compile().as_text()
    module = hlo.parse(text)
    found = {(c.kind, c.axes): c.count for c in collectives(module, mesh)}
    # Of three kernels in each of two layers, and of the embedding.
    assert found["reduce-scatter", ("fsdp",)] == 3 * CONFIG.layers + 1
    one_expert = re.escape(f"[{CONFIG.experts},{CONFIG.dim},{CONFIG.mlp_dim}]")
    assert re.search(rf"f32{one_expert}.* all-gather\(", text)
    assert not re.search(rf"f32{one_expert}.* all-reduce\(", text)


def test_each_device_has_its_part_of_every_expert():
    mesh = parallel.make_mesh(2, 2, 2)
    shape = (2, 6, 16, 24)
    for name, spec in {
        "runs/0/mlp/gate/kernel": (None, None, "fsdp", "tensor"),
        "runs/0/mlp/down/kernel": (None, None, "tensor", "fsdp"),
    }.items():
        assert parallel.sharding(name, shape, mesh).spec == jax.sharding.PartitionSpec(*spec)
    scale = parallel.sharding("runs/0/mlp/up/kernel_scale", (2, 6, 24), mesh)
    assert scale.spec == jax.sharding.PartitionSpec(None, None, "tensor")
    assert parallel.sharding("runs/0/mlp/router/kernel", (2, 16, 6), mesh).is_fully_replicated


def test_integers_in_shards_give_the_logits_of_one_device(tmp_path):
    folder = reference.write(tmp_path / "qwen3_moe", "qwen3_moe")
    tokens = np.concatenate([reference.TOKENS] * 2)
    alone = reference.logits(language.load(folder, quantize="int8"), tokens)
    mesh = parallel.make_mesh(2, 2, 2)

    def sharding_fn(name, shape):
        return parallel.sharding(name, shape, mesh)

    model = language.load(folder, quantize="int8", sharding_fn=sharding_fn, mesh=mesh)
    placed = jax.device_put(tokens, parallel.batch_sharding(mesh))
    np.testing.assert_allclose(reference.logits(model, placed), alone, rtol=1e-5, atol=2e-5)


def test_a_decoder_of_chosen_layers_has_their_experts_and_routers():
    teacher = language.create(CONFIG.replace(layers=3), seed=2)
    student = language.from_layers(teacher, (2, 0))
    old, new = reference.parameters(teacher), reference.parameters(student)
    for part in ("router", "gate", "up", "down"):
        name = f"runs/0/mlp/{part}/kernel"
        np.testing.assert_array_equal(new[name], old[name][np.array([2, 0])])
    assert student.config == CONFIG


def test_kept_products_are_not_computed_again():
    tokens = jnp.zeros((1, 4), jnp.int32)

    def products(remat: str) -> int:
        graphdef, state = nnx.split(language.abstract(CONFIG, remat=remat))

        def loss(state):
            return jnp.sum(nnx.merge(graphdef, state)(tokens).hidden)

        return str(jax.make_jaxpr(jax.grad(loss))(state)).count("ragged_dot_general[")

    # Three forward, six for the gradients; but for the last none is needed again with "dots".
    assert [products(remat) for remat in ("none", "dots", "full")] == [9, 9, 12]
