"""The residual networks against an independent float64 implementation, and on real weights."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from distill_jax import models

apply = jax.jit(models.apply, static_argnums=0, static_argnames="train")


def convolve(x, kernel, stride):
    """Cross-correlation, NHWC and HWIO, zero padding of (size - 1) / 2 on all sides, as PyTorch."""
    size = kernel.shape[0]
    margin = (size - 1) // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return np.einsum("bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel)


def reference(weights, x):
    """resnet8 in evaluation, written out layer by layer."""

    def norm(x, name):
        scale = weights[f"{name}/scale"] / np.sqrt(weights[f"{name}/var"] + 1e-5)
        return (x - weights[f"{name}/mean"]) * scale + weights[f"{name}/bias"]

    def block(x, name, stride):
        y = np.maximum(
            norm(convolve(x, weights[f"{name}/first/conv/kernel"], stride), f"{name}/first/norm"), 0
        )
        y = norm(convolve(y, weights[f"{name}/second/conv/kernel"], 1), f"{name}/second/norm")
        if stride == 2:
            x = norm(
                convolve(x, weights[f"{name}/projection/conv/kernel"], 2), f"{name}/projection/norm"
            )
        return y + x

    taps = {"stem": np.maximum(norm(convolve(x, weights["stem/conv/kernel"], 1), "stem/norm"), 0)}
    x = taps["stem"]
    for stage, stride in (("stage1", 1), ("stage2", 2), ("stage3", 2)):
        taps[f"{stage}_pre"] = block(x, f"{stage}/0", stride)
        taps[stage] = x = np.maximum(taps[f"{stage}_pre"], 0)
    taps["pooled"] = x.mean((1, 2))
    return taps["pooled"] @ weights["classifier/kernel"] + weights["classifier/bias"], taps


def random_network(generator, shape):
    graphdef, *groups = models.split(models.create("resnet8", input_shape=shape, num_classes=7))
    for group in groups:
        for name, value in group.items():
            noise = generator.normal(size=value.shape)
            positive = name.endswith(("/scale", "/var"))
            group[name] = np.float32(0.5 + np.abs(noise) if positive else 0.3 * noise)
    return graphdef, *groups


def test_resnet8_is_the_reference_layer_by_layer():
    generator = np.random.default_rng(0)
    for shape in ((32, 32, 3), (9, 14, 1)):
        graphdef, params, stats = random_network(generator, shape)
        x = generator.normal(size=(2, *shape))
        outputs, _ = apply(graphdef, params, stats, jnp.asarray(x, jnp.float32))
        weights = {name: np.float64(v) for name, v in {**params, **stats}.items()}
        logits, taps = reference(weights, np.float64(np.float32(x)))
        assert set(taps) == set(outputs.taps)
        for name, expected in {**taps, "logits": logits}.items():
            actual = outputs.logits if name == "logits" else outputs.taps[name]
            scale = np.abs(expected).max()
            np.testing.assert_allclose(actual / scale, expected / scale, atol=1e-4, err_msg=name)


def test_running_statistics_are_nine_tenths_old_and_one_tenth_of_the_batch():
    generator = np.random.default_rng(1)
    graphdef, params, stats = random_network(generator, (8, 8, 3))
    x = np.float32(generator.normal(size=(4, 8, 8, 3)))
    _, new = apply(graphdef, params, stats, jnp.asarray(x), train=True)
    seen = convolve(np.float64(x), np.float64(params["stem/conv/kernel"]), 1).reshape(-1, 16)
    for name, batch in (("mean", seen.mean(0)), ("var", seen.var(0))):
        expected = 0.9 * stats[f"stem/norm/{name}"] + 0.1 * batch
        np.testing.assert_allclose(new[f"stem/norm/{name}"], expected, rtol=1e-4, atol=1e-5)


def test_published_weights_keep_their_accuracy(shared_data):
    # PyTorch, CIFAR-100, 72.63 % on the 10,000 test images; the first 200 of them are used here.
    spec = models.Spec(
        name="resnet56",
        options={},
        input_shape=(32, 32, 3),
        num_classes=100,
        mean=(0.5070, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2761),
    )
    saved = models.load(shared_data / "teachers" / "cifar100_resnet56.npz", spec=spec)
    module = models.abstract("resnet56", input_shape=spec.input_shape, num_classes=100)
    graphdef = models.split(module)[0]
    with np.load(shared_data / "vision" / "cifar100_test.npz") as pack:
        first = pack["webp"][pack["offsets"][0] : pack["offsets"][1]].tobytes()
        labels = pack["label"][:200]
    mosaic = np.asarray(Image.open(io.BytesIO(first)).convert("RGB"))
    grid = mosaic.reshape(mosaic.shape[0] // 32, 32, -1, 32, 3).swapaxes(1, 2)
    pixels = jnp.asarray(grid.reshape(-1, 32, 32, 3)[:200] / 255, jnp.float32)
    x = models.normalise(pixels, spec.mean, spec.std)
    forward = jax.jit(lambda p, s, x: models.apply(graphdef, p, s, x)[0].logits)
    accuracy = (np.asarray(forward(saved.params, saved.stats, x)).argmax(-1) == labels).mean()
    assert 0.66 < accuracy < 0.80
