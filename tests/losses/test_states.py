"""Hidden states and attention relations against float64 numpy, one token after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import losses
from distill_jax.errors import UsageError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def relation_by_tokens(student, teacher, seen):
    """The mean over heads of each token's KL, written out for one token and head at a time."""
    (a_s, b_s), (a_t, b_t) = student, teacher
    rows, length, heads, _ = a_s.shape
    values = np.zeros((rows, length))
    for row in range(rows):
        for token in range(length):
            places = np.flatnonzero(seen[row, token])
            if not len(places):
                continue
            for head in range(heads):
                chances = []
                for a, b in ((a_s, b_s), (a_t, b_t)):
                    scores = b[row, places, head] @ a[row, token, head] / np.sqrt(a.shape[-1])
                    exponents = np.exp(scores - scores.max())
                    chances.append(exponents / exponents.sum())
                q, p = chances
                values[row, token] += np.sum(p * np.log(p / q)) / heads
    return values


def test_hidden_states_equal_float64():
    student, teacher = normal(2, 3, 8), 5 * normal(2, 3, 8, seed=1)
    np.testing.assert_allclose(
        losses.hidden_mse(student, teacher), ((student - teacher) ** 2).mean(-1), rtol=1e-5
    )
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    cosine = (student * teacher).sum(-1) / norms
    np.testing.assert_allclose(losses.hidden_cosine(student, teacher), 1 - cosine, rtol=1e-5)
    np.testing.assert_allclose(
        losses.hidden_mse(student, teacher, normalise=True), 2 - 2 * cosine, rtol=1e-5
    )


@pytest.mark.parametrize(
    "loss",
    [losses.hidden_mse, losses.hidden_cosine, lambda s, t: losses.hidden_mse(s, t, normalise=True)],
)
def test_gradients_of_hidden_states(loss):
    student, teacher = normal(4, seed=2), normal(4, seed=3)
    found = jax.grad(lambda s: loss(s[None], teacher[None])[0])(jnp.asarray(student, jnp.float32))
    numeric = [
        (by_numpy(loss, student + step, teacher) - by_numpy(loss, student - step, teacher)) / 2e-6
        for step in 1e-6 * np.eye(4)
    ]
    np.testing.assert_allclose(found, numeric, rtol=1e-3, atol=1e-5)
    own = jnp.asarray(student, jnp.float32)[None]
    still = jax.grad(lambda t: loss(own, t[None])[0])(jnp.asarray(teacher, jnp.float32))
    assert not np.any(still)


def by_numpy(loss, student, teacher):
    cosine = student @ teacher / np.linalg.norm(student) / np.linalg.norm(teacher)
    if loss is losses.hidden_mse:
        return np.mean((student - teacher) ** 2)
    return 1 - cosine if loss is losses.hidden_cosine else 2 - 2 * cosine


def test_zero_states_have_finite_gradients():
    for loss in (losses.hidden_cosine, lambda s, t: losses.hidden_mse(s, t, normalise=True)):
        gradient = jax.grad(lambda s, loss=loss: loss(s, jnp.ones((1, 4)))[0])(jnp.zeros((1, 4)))
        assert np.isfinite(gradient).all()


def test_relations_equal_float64_with_unequal_widths_and_documents():
    student = tuple(normal(2, 5, 3, 4, seed=i) for i in range(2))
    teacher = tuple(2 * normal(2, 5, 3, 6, seed=i) for i in range(2, 4))
    segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]])
    places = np.arange(5)
    seen = (segments[:, :, None] == segments[:, None]) & (places[:, None] >= places)
    seen[1, 3:] = False
    found = losses.attention_relation(student, teacher, seen)
    expected = relation_by_tokens(student, teacher, seen)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert expected[0, 1] > 1e-3 and not found[1, 3:].any()


def test_gradients_of_relations_equal_float64():
    pair = tuple(normal(1, 4, 2, 3, seed=i) for i in range(2))
    teacher = tuple(normal(1, 4, 2, 3, seed=i) for i in range(2, 4))
    seen = np.tril(np.ones((1, 4, 4), bool))

    def total(a):
        return jnp.sum(losses.attention_relation((a, pair[1]), teacher, seen))

    found = np.asarray(jax.grad(total)(jnp.asarray(pair[0], jnp.float32)))
    for index in [(0, 1, 0, 2), (0, 3, 1, 0), (0, 2, 0, 1)]:
        values = []
        for sign in (1, -1):
            moved = pair[0].copy()
            moved[index] += sign * 1e-5
            values.append(relation_by_tokens((moved, pair[1]), teacher, seen).sum())
        numeric = (values[0] - values[1]) / 2e-5
        np.testing.assert_allclose(found[index], numeric, rtol=1e-3, atol=1e-6)


def test_equal_relations_have_no_loss_and_no_gradient():
    pair = tuple(jnp.asarray(30 * normal(1, 4, 2, 3, seed=i), jnp.float32) for i in range(2))
    seen = np.tril(np.ones((1, 4, 4), bool))
    value, gradient = jax.value_and_grad(
        lambda p: jnp.sum(losses.attention_relation(p, pair, seen))
    )(pair)
    assert abs(value) < 1e-6
    assert all(np.abs(part).max() < 1e-5 for part in gradient)


@pytest.mark.usefixtures("unchecked_shapes")
def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(UsageError, match="shape"):
        losses.hidden_mse(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
    own, other = jnp.zeros((1, 4, 2, 3)), jnp.zeros((1, 4, 3, 3))
    with pytest.raises(UsageError, match="the same B, T and A"):
        losses.attention_relation((own, own), (other, other), jnp.ones((1, 4, 4), bool))
