"""The views that a store holds: their numbering, and the draws and keys of a training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import data
from distill_jax.errors import UsageError
from distill_jax.teachers.answers import schemes
from distill_jax.teachers.answers.schemes import Finite, Seeded

FINITE = [Finite(4, True), Finite(1, False), Finite(0, True), Finite(0, False)]


@pytest.mark.parametrize(
    ("scheme", "count"), list(zip(FINITE, (9 * 9 * 2, 3 * 3, 2, 1), strict=True)), ids=str
)
def test_every_view_has_a_number_of_its_own(scheme, count):
    side = range(2 * scheme.padding + 1)
    numbers = {
        int(scheme.index({"dy": np.int32(dy), "dx": np.int32(dx), "flip": np.bool_(flip)}))
        for dy, dx, flip in itertools.product(side, side, (False, True)[: 1 + scheme.flip])
    }
    assert scheme.count == count
    assert numbers == set(range(count))


@pytest.mark.parametrize("scheme", FINITE, ids=str)
def test_draws_and_numbers_are_inverse_to_each_other_also_in_a_jitted_function(scheme):
    index = np.arange(scheme.count, dtype=np.int32)
    draws = jax.jit(scheme.draws)(index)
    names = ["dx", "dy"] * (scheme.padding > 0) + ["flip"] * scheme.flip
    assert sorted(draws) == sorted(names)
    for found in (jax.jit(scheme.index)(draws), scheme.index(jax.device_get(draws))):
        assert found.dtype == np.int32
        np.testing.assert_array_equal(np.broadcast_to(found, index.shape), index)


@pytest.mark.parametrize("scheme", FINITE, ids=str)
def test_the_identity_is_the_view_that_changes_nothing(scheme):
    options = data.Augment(crop_padding=scheme.padding, flip=scheme.flip)
    images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    draws = scheme.draws(np.array([scheme.identity], np.int32))
    view, _ = data.view(jnp.asarray(images), jnp.zeros(1, int), 2, draws, options)
    np.testing.assert_array_equal(view, data.identity(images, jnp.zeros(1, int), 2)[0])
    assert scheme.index({}) == scheme.identity


def test_an_absent_draw_means_none():
    scheme = Finite(2, True)
    flips = np.array([True, False])
    both = scheme.index({"dy": np.full(2, 2), "dx": np.full(2, 2), "flip": flips})
    np.testing.assert_array_equal(scheme.index({"flip": flips}), both)
    np.testing.assert_array_equal(scheme.index({"dy": np.arange(2), "dx": np.arange(2)}), [0, 12])


def test_the_scheme_of_an_augmentation():
    assert Finite.of(data.Augment(crop_padding=4, padding_mode="reflect", flip=True)) == FINITE[0]
    assert Finite.of(data.Augment()) == Finite(0, False)
    # A strong view is another than the one that is stored.
    assert Finite.of(data.Augment(flip=True, strong_ops=2, strong_cutout=0.3)) == Finite(0, True)


@pytest.mark.parametrize("option", ["color_jitter", "mixup", "cutmix"])
def test_an_augmentation_with_endlessly_many_views_is_refused(option):
    with pytest.raises(
        UsageError, match=rf"data.augment.{option}=0.5: .* expected 0.0, or a store"
    ):
        Finite.of(data.Augment(crop_padding=1, **{option: 0.5}))


@pytest.mark.parametrize("step", [0, 3, 100_000])
def test_the_key_and_draws_of_a_step(step):
    options = data.Augment(crop_padding=4, flip=True, color_jitter=0.2)
    key, _ = jax.random.split(jax.random.fold_in(jax.random.key(7), step))
    assert schemes.view_key(7, step) == key
    assert jax.jit(schemes.view_key, static_argnums=0)(7, jnp.int32(step)) == key
    expected, found = data.draw(key, 16, options), schemes.host_draws(7, step, 16, options)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert isinstance(values, np.ndarray)
        np.testing.assert_array_equal(values, expected[name])


def test_the_keys_of_seeded_steps_are_those_of_the_training():
    keys = Seeded(steps=9, batch_size=4, seed=5).keys(3, 4)
    expected = [jax.random.key_data(schemes.view_key(5, step)) for step in range(3, 7)]
    np.testing.assert_array_equal(keys, expected)
    assert keys.dtype == np.uint32


@pytest.mark.parametrize("values", [{"steps": 0}, {"batch_size": 0}])
def test_a_store_of_no_steps_is_refused(values):
    with pytest.raises(UsageError, match="=0: expected 1 or more"):
        Seeded(**{"steps": 3, "batch_size": 4, "seed": 0, **values})


def test_other_draws_from_the_same_keys_are_noticed():
    scheme, options = Seeded(3, 32, 0), data.Augment(flip=True, color_jitter=0.4)
    probe = scheme.probe(options)
    assert scheme.still_draws(probe, options)
    nearly = {**probe, "contrast": [value * (1 + 1e-6) for value in probe["contrast"]]}
    assert scheme.still_draws(nearly, options)
    other = {**probe, "contrast": [*probe["contrast"][:-1], 0.5]}
    assert not scheme.still_draws(other, options)
    assert not scheme.still_draws({**probe, "flip": probe["flip"][1:]}, options)
    assert not scheme.still_draws({"flip": probe["flip"]}, options)
