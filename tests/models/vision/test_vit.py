"""DeiT: its blocks against NumPy in float64, its tokens and heads, stochastic depth."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_reference import draw

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.vision import vit

apply = jax.jit(models.apply, static_argnums=0, static_argnames="train")


def test_small_images_take_small_patches_and_others_are_refused():
    def tokens(patch, **options):
        module = models.abstract(
            "deit_tiny", input_shape=(32, 24, 3), num_classes=10, patch=patch, **options
        )
        return module.position_embedding.shape

    assert tokens(4) == (2 + 48, 192)
    assert tokens(8, distillation_token=False) == (1 + 12, 192)
    for patch in (5, 0, -4, 16):
        with pytest.raises(UsageError, match=f"patch={patch}: expected a divisor .* 32x24"):
            tokens(patch)
    with pytest.raises(UsageError, match="drop_path=1.0: expected a rate"):
        tokens(4, drop_path=1.0)


def test_deit_blocks_are_attention_and_exact_gelu_in_float64():
    block = vit.Block(8, 2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    noise = jax.tree.map(
        lambda value: jnp.asarray(0.5 * draw(*value.shape, seed=value.size)),
        nnx.state(block, nnx.Param),
    )
    nnx.update(block, noise)
    weights = {
        "/".join(map(str, path)): np.float64(param[...])
        for path, param in nnx.to_flat_state(nnx.state(block, nnx.Param))
    }

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return scaled * weights[f"{name}/scale"] + weights[f"{name}/bias"]

    assert all(np.abs(value).min() > 0 for value in weights.values())
    x = np.float64(draw(2, 5, 8, seed=99))
    qkv = dense(norm(x, "norm1"), "attention/qkv")
    query, key, value = (
        part.reshape(2, 5, 2, 4).transpose(0, 2, 1, 3) for part in np.split(qkv, 3, axis=-1)
    )
    scores = np.exp(query @ key.swapaxes(-1, -2) / 2)
    mixed = (scores / scores.sum(-1, keepdims=True)) @ value
    expected = dense(mixed.transpose(0, 2, 1, 3).reshape(x.shape), "attention/projection")
    np.testing.assert_allclose(block.attend(jnp.asarray(x, jnp.float32)), expected, atol=1e-4)
    hidden = dense(norm(x, "norm2"), "dense1")
    erf = np.vectorize(math.erf)(hidden / np.sqrt(2))
    expected = dense(hidden * (1 + erf) / 2, "dense2")
    np.testing.assert_allclose(block.transform(jnp.asarray(x, jnp.float32)), expected, atol=1e-4)


class TestDeiT:
    """The tokens, the heads and stochastic depth, on the smallest images."""

    arguments = {"input_shape": (8, 4, 3), "num_classes": 5, "patch": 4}

    def network(self, **options):
        return models.split(models.create("deit_tiny", **self.arguments, **options))

    def test_logits_are_the_mean_of_both_heads_on_their_tokens(self):
        graphdef, params, stats = self.network()
        outputs, _ = apply(graphdef, params, stats, jnp.asarray(draw(2, 8, 4, 3)))
        last = np.float64(outputs.taps["block12"])
        assert last.shape == (2, 4, 192)
        centred = last - last.mean(-1, keepdims=True)
        last = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(outputs.taps["pooled"], last[:, 0], atol=1e-4)
        heads = [
            last[:, i] @ np.float64(params[f"{head}/kernel"])
            for i, head in enumerate(("classifier", "distillation_classifier"))
        ]
        np.testing.assert_allclose(outputs.taps["class_logits"], heads[0], atol=1e-4)
        np.testing.assert_allclose(outputs.taps["distillation_logits"], heads[1], atol=1e-4)
        np.testing.assert_allclose(outputs.logits, (heads[0] + heads[1]) / 2, atol=1e-4)

    def test_tokens_are_class_distillation_and_patches_row_by_row_plus_their_places(self):
        graphdef, params, stats = self.network()
        # Without the branches of the blocks the tokens go through as they are.
        for name in params:
            if "attention/projection" in name or "dense2" in name:
                params[name] = jnp.zeros_like(params[name])
        x = draw(2, 8, 4, 3)
        outputs, _ = apply(graphdef, params, stats, jnp.asarray(x))
        kernel = np.float64(params["stem/kernel"])
        patches = [
            np.einsum("bijc,ijcd->bd", x[:, i : i + 4], kernel) + params["stem/bias"]
            for i in (0, 4)
        ]
        tokens = [
            np.broadcast_to(params[name], (2, 192))
            for name in ("class_token", "distillation_token")
        ]
        expected = np.stack(tokens + patches, axis=1) + np.asarray(params["position_embedding"])
        np.testing.assert_allclose(outputs.taps["block12"], expected, atol=1e-5)

    @pytest.mark.slow
    def test_stochastic_depth_acts_in_training_alone_and_never_in_the_first_block(self):
        graphdef, params, stats = self.network(drop_path=0.5)
        plain, *_ = self.network()
        x = jnp.asarray(draw(8, 8, 4, 3))
        expected, _ = apply(plain, params, stats, x)
        trained, _ = apply(plain, params, stats, x, train=True)
        np.testing.assert_array_equal(trained.logits, expected.logits)
        evaluated, _ = apply(graphdef, params, stats, x)
        np.testing.assert_array_equal(evaluated.logits, expected.logits)
        first, second = (
            apply(graphdef, params, stats, x, train=True, key=jax.random.key(i))[0] for i in (0, 1)
        )
        np.testing.assert_array_equal(first.taps["block1"], expected.taps["block1"])
        assert np.abs(first.logits - second.logits).max() > 1e-3
        # Both branches of the last block are dropped for a quarter of the images.
        change = np.asarray(first.taps["block12"] - first.taps["block11"])
        assert 0 < (change == 0).all((1, 2)).sum() < 8
        with pytest.raises(ValueError, match="needs a random key"):
            models.apply(graphdef, params, stats, x, train=True)
