"""Names, options and their errors; a new family needs nothing but `register`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models import registry
from distill_jax.models.outputs import checked_images
from distill_jax.models.vision import layers

DIGITS = {"input_shape": (8, 8, 1), "num_classes": 10}


class Linear(nnx.Module):
    """The smallest family: a classifier on summed pixels, with an option of each kind."""

    def __init__(
        self, gain, input_shape, num_classes, *, shift=0.5, signs=(1, 1), flip=False, dtype, rngs
    ):
        self.gain, self.shift, self.signs, self.flip = gain, shift, signs, flip
        self.input_shape, self.dtype = input_shape, dtype
        self.classifier = layers.classifier(input_shape[-1], num_classes, rngs=rngs)

    def __call__(self, images, *, train=False, key=None):
        pooled = layers.pool(checked_images(images, self.input_shape, self.dtype))
        return models.Outputs(self.classifier(pooled * self.gain + self.shift), {"pooled": pooled})


@pytest.fixture
def family(monkeypatch):
    monkeypatch.setattr(registry, "_constructors", dict(registry._constructors))
    models.register("linear3", Linear, 3)
    return "linear3"


def test_names_of_this_library():
    assert set(models.names()) >= {"mlp", "cnn", "resnet8", "resnet110", "resnet8x4", "resnet32x4"}
    assert list(models.names()) == sorted(models.names())


def test_options_are_the_keyword_defaults_of_the_constructor(family):
    assert models.options("mlp") == {"widths": (800, 800), "dropout": 0.0, "input_dropout": 0.0}
    norm = {"bn_momentum": 0.9, "bn_epsilon": 1e-5, "bn_unbiased": False}
    assert models.options("cnn") == {"channels": (32, 64), "dense": 128, "dropout": 0.0, **norm}
    assert models.options("resnet20") == {"shortcut": "projection", **norm}
    assert models.options(family) == {"shift": 0.5, "signs": (1, 1), "flip": False}


def test_a_registered_family_is_created_split_and_applied(family):
    module = models.create(family, **DIGITS, shift=2, signs=[1, -1], flip=True)
    assert (module.gain, module.shift, module.signs, module.flip) == (3, 2.0, (1, -1), True)
    graphdef, params, stats = models.split(module)
    assert list(params) == ["classifier/bias", "classifier/kernel"] and stats == {}
    outputs, _ = models.apply(graphdef, params, stats, jnp.ones((2, 8, 8, 1)))
    expected = 5.0 * params["classifier/kernel"][0] + params["classifier/bias"]
    np.testing.assert_allclose(outputs.logits, np.stack([expected] * 2), rtol=1e-5)


def test_a_name_is_registered_once(family):
    with pytest.raises(ValueError, match="'linear3' is registered already"):
        models.register(family, Linear, 4)


def test_unknown_name_and_option_name_the_nearest(family):
    with pytest.raises(UsageError, match=r"student.name='resnet8x'.*did you mean 'resnet8x4'\?"):
        models.create("resnet8x", **DIGITS)
    with pytest.raises(UsageError, match=r"student.width=\(8,\).*'widths'.*input_dropout, widths"):
        models.create("mlp", **DIGITS, width=(8,))
    with pytest.raises(UsageError, match="student.widths=.*unknown option of resnet8.*bn_epsilon"):
        models.create("resnet8", **DIGITS, widths=(8,))
    models.register("bare", lambda input_shape, num_classes, *, dtype, rngs: None)
    with pytest.raises(UsageError, match="student.widths=.*unknown option of bare; known: none"):
        models.create("bare", **DIGITS, widths=(8,))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("widths", 800),
        ("widths", "800"),
        ("widths", (8.0,)),
        ("widths", (True,)),
        ("widths", ()),
        ("widths", (8, 0)),
        ("dropout", "0.5"),
        ("dropout", True),
        ("dropout", None),
        ("dropout", float("nan")),
        ("dropout", 1.0),
        ("input_dropout", -0.1),
    ],
)
def test_a_mistyped_or_impossible_option_is_named(option, value):
    with pytest.raises(UsageError) as error:
        models.create("mlp", **DIGITS, **{option: value})
    assert str(error.value).startswith(f"student.{option}={value!r}: expected ")


def test_bool_and_int_are_not_each_other(family):
    with pytest.raises(UsageError, match="student.flip=1: expected bool"):
        models.create(family, **DIGITS, flip=1)
    with pytest.raises(UsageError, match="student.dense=True: expected int"):
        models.create("cnn", **DIGITS, dense=True)


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": (8, 8)},
        {"input_shape": (8, 0, 1)},
        {"num_classes": 0},
        {"num_classes": 10.0},
        {"dtype": jnp.int32},
    ],
)
def test_impossible_arguments_are_named(change):
    with pytest.raises(UsageError, match=next(iter(change))):
        models.create("mlp", **{**DIGITS, **change})


def test_the_seed_alone_decides_the_parameters():
    def params(seed):
        return models.split(models.create("cnn", **DIGITS, seed=seed, channels=(4,), dense=8))[1]

    first = params(3)
    with jax.default_prng_impl("rbg"):
        again = params(3)
    compiled = jax.jit(lambda: params(3))()
    other = params(4)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
        np.testing.assert_array_equal(value, compiled[name])
    assert not np.array_equal(first["classifier/kernel"], other["classifier/kernel"])
    assert not np.array_equal(first["dense/kernel"][:8], first["classifier/kernel"][:8, :8])


def test_abstract_is_the_same_network_without_numbers():
    arguments = {**DIGITS, "channels": [4, 4], "dtype": "bfloat16"}
    graphdef, params, stats = models.split(models.abstract("cnn", **arguments))
    real = models.split(models.create("cnn", **{**arguments, "dtype": jnp.bfloat16}))
    assert graphdef == real[0] and hash(graphdef) == hash(real[0])
    for shapes, arrays in ((params, real[1]), (stats, real[2])):
        assert {name: (v.shape, v.dtype) for name, v in shapes.items()} == {
            name: (v.shape, v.dtype) for name, v in arrays.items()
        }
    assert models.parameter_count(params) == sum(value.size for value in real[1].values())
