"""Initial values of every family: those of its reference implementation in PyTorch."""

import numpy as np
import pytest

from distill_jax import models

SMALL = (32, 32, 3)


def initial(name, **options):
    module = models.create(name, input_shape=SMALL, num_classes=100, **options)
    params = models.split(module)[1]
    return {key: np.asarray(value) for key, value in params.items()}


def is_normal(values, deviation):
    """Mean, spread and tails of N(0, deviation^2), to five standard errors."""
    error = 5 / np.sqrt(values.size)
    assert abs(values.mean()) < error * deviation
    assert abs(values.std() / deviation - 1) < error
    # Of a normal distribution 4.55 % lie outside of two deviations; of a uniform one, none.
    assert abs((np.abs(values) > 2 * deviation).mean() - 0.0455) < 0.21 * error


def is_uniform(values, bound):
    assert np.abs(values).max() <= bound
    assert np.abs(values).max() > bound * (1 - 20 / values.size)
    assert abs(values.std() / bound - 1 / np.sqrt(3)) < 5 / np.sqrt(values.size)


def test_wide_resnet_starts_as_its_reference():
    params = initial("wrn_16_2")
    is_normal(params["stem/kernel"], np.sqrt(2 / (9 * 16)))
    is_normal(params["stage2/0/conv1/kernel"], np.sqrt(2 / (9 * 64)))
    is_normal(params["stage2/0/projection/kernel"], np.sqrt(2 / 64))
    is_uniform(params["classifier/kernel"], 1 / np.sqrt(128))
    assert (params["classifier/bias"] == 0).all()


def test_vgg_starts_as_its_reference():
    params = initial("vgg8")
    is_normal(params["stage1/0/conv/kernel"], np.sqrt(2 / (9 * 128)))
    is_normal(params["classifier/kernel"], 0.01)
    biases = [name for name in params if name.endswith("/bias")]
    assert len(biases) == 5 + 5 + 1
    assert all((params[name] == 0).all() for name in biases)


def test_mobilenet_v2_starts_as_its_reference():
    params = initial("mobilenet_v2")
    is_normal(params["stage3/1/first/conv/kernel"], np.sqrt(2 / 192))
    # Fan out is not divided by the groups: PyTorch's formula for it is size^2 * outputs.
    assert params["stage3/1/second/conv/kernel"].shape == (3, 3, 1, 192)
    is_normal(params["stage3/1/second/conv/kernel"], np.sqrt(2 / (9 * 192)))
    is_normal(params["classifier/kernel"], 0.01)
    assert (params["classifier/bias"] == 0).all()


@pytest.mark.parametrize("name", ["shufflenet_v1", "shufflenet_v2", "mobilenet_v1"])
def test_shufflenets_and_mobilenet_v1_start_as_pytorch_does_by_default(name):
    params = initial(name)
    convolutions = [key for key in params if key.endswith("conv/kernel")]
    depthwise = 0
    for key in convolutions:
        size, _, fan_in, _ = params[key].shape  # [size, size, inputs / groups, outputs]
        is_uniform(params[key], 1 / np.sqrt(size * size * fan_in))
        depthwise += fan_in == 1
    blocks = {"shufflenet_v1": 16, "shufflenet_v2": 19, "mobilenet_v1": 13}
    assert depthwise == blocks[name]
    bound = 1 / np.sqrt(params["classifier/kernel"].shape[0])
    is_uniform(params["classifier/kernel"], bound)
    is_uniform(params["classifier/bias"], bound)


def test_bottlenecks_start_as_their_reference():
    params = initial("resnet50")
    is_normal(params["stem/conv/kernel"], np.sqrt(2 / (9 * 64)))
    is_normal(params["stage1/0/first/conv/kernel"], np.sqrt(2 / 64))
    is_normal(params["stage1/0/second/conv/kernel"], np.sqrt(2 / (9 * 64)))
    is_normal(params["stage1/0/third/conv/kernel"], np.sqrt(2 / 256))
    assert (params["stage1/0/third/norm/scale"] == 1).all()
    is_uniform(params["classifier/bias"], 1 / np.sqrt(2048))


def test_deit_starts_as_its_reference():
    params = initial("deit_tiny", patch=4)
    for name in ("class_token", "distillation_token", "position_embedding"):
        is_normal(params[name], 0.02)
    assert not np.array_equal(params["class_token"], params["distillation_token"])
    for name in ("attention/qkv", "attention/projection", "dense1", "dense2"):
        is_normal(params[f"blocks/3/{name}/kernel"], 0.02)
        assert (params[f"blocks/3/{name}/bias"] == 0).all()
    for name in ("classifier", "distillation_classifier"):
        is_normal(params[f"{name}/kernel"], 0.02)
        assert (params[f"{name}/bias"] == 0).all()
    assert not np.array_equal(params["classifier/kernel"], params["distillation_classifier/kernel"])
    for part in ("kernel", "bias"):
        is_uniform(params[f"stem/{part}"], 1 / np.sqrt(4 * 4 * 3))
