"""The KL from answers that name some ids: dense float64, limits, and expectations over draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from loss_reference import numeric_gradient
from scipy.special import log_softmax, logsumexp
from test_vocab_mesh import collectives, mesh_of

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import Readout, VocabSettings

TOKENS, REAL, WIDTH, K = 16, 11, 13, 4


def draw(kind, scale=1.0):
    """Hidden states and head, and an answer at any temperature; one token names fewer ids."""
    generator = np.random.default_rng(7)
    hidden, head = (
        np.float32(scale * generator.standard_normal(s)) for s in ((TOKENS, 3), (3, WIDTH))
    )
    ids = np.argsort(generator.uniform(size=(TOKENS, REAL)), axis=1)[:, :K].astype(np.int32)
    masses = generator.dirichlet(np.ones(K + 1), TOKENS)
    answer = {"ids": ids, "log_probs": np.float32(np.log(masses[:, :K]))}
    if kind == "top_k":
        answer["log_rest"] = np.float32(np.log(masses[:, K]))
        answer["log_rest"][3] = -np.inf
    answer["ids"][5, 2:] = -1
    labels = generator.integers(0, REAL, TOKENS).astype(np.int32)
    weights = np.float32(generator.uniform(0.1, 1, TOKENS) * (np.arange(TOKENS) % 5 != 2))
    return hidden, head, answer, labels, weights


def reference(hidden, head, answer, labels, weights, temperature):
    """T^2 KL over the outcomes and 0.3 of the cross-entropy; logits scaled and capped."""
    z = 2.0 * np.tanh(0.7 * np.float64(hidden) @ np.float64(head)[:, :REAL] / 2.0)
    log_q, total = log_softmax(z / temperature, -1), 0.0
    for token in range(TOKENS):
        pairs = zip(answer["ids"][token], answer["log_probs"][token], strict=True)
        named = [(i, p) for i, p in pairs if i >= 0]
        ids = [i for i, _ in named]
        p, q = [np.exp(np.float64(p)) for _, p in named], [log_q[token, i] for i in ids]
        if "log_rest" in answer:
            others = np.delete(log_q[token], ids)
            p, q = [*p, np.exp(np.float64(answer["log_rest"][token]))], [*q, logsumexp(others)]
        p = np.array(p) / np.sum(p)
        soft = sum(a * (np.log(a) - b) for a, b in zip(p, q, strict=True) if a > 0)
        hard = -log_softmax(z[token])[labels[token]]
        total += weights[token] * (temperature**2 * soft + 0.3 * hard)
    return total


def fused(hidden, head, answer, labels, weights, temperature, shape=None):
    @jax.jit
    def both(hidden, head, answer):
        def loss(hidden, head):
            return losses.vocab_sparse_kl(
                hidden, head, **answer, labels=labels, weights=weights, temperature=temperature,
                hard_weight=0.3, readout=Readout(2.0, 0.7),
                settings=VocabSettings(
                    vocab_size=REAL, chunk=3, mesh=shape and mesh_of(*shape)
                ),
            )  # fmt: skip

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

    return both(hidden, head, answer)


@pytest.mark.parametrize("shape", [None, (2, 2, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_value_and_gradients(kind, temperature, shape):
    hidden, head, *rest = draw(kind)
    (loss, measures), gradients = fused(hidden, head, *rest, temperature, shape)
    np.testing.assert_allclose(
        loss, reference(hidden, head, *rest, temperature), rtol=2e-5, atol=2e-6
    )
    known = {"soft_loss", "hard_loss", "student_entropy", "accuracy"}
    assert set(measures) == known | ({"agreement"} if kind == "top_k" else set())
    along = (
        lambda array: reference(array, head, *rest, temperature),
        lambda array: reference(hidden, array, *rest, temperature),
    )
    for function, array, gradient in zip(along, (hidden, head), gradients, strict=True):
        slope = numeric_gradient(function, array)
        np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=5e-6)


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_saturated_logits_have_finite_values_and_gradients(kind):
    hidden, head, answer, labels, weights = draw(kind, scale=60.0)

    def loss(hidden, head):
        return losses.vocab_sparse_kl(hidden, head, **answer, labels=labels, weights=weights)[0]

    value, gradients = jax.value_and_grad(loss, (0, 1))(hidden, head)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in gradients)
    assert np.any(gradients[0])


@pytest.mark.parametrize("shape", [None, (2, 2, 2)])
def test_all_ids_by_their_probabilities_are_the_exact_divergence(shape):
    hidden, head, _, labels, weights = draw("top_k")
    generator = np.random.default_rng(8)
    other = [np.float32(generator.standard_normal(s)) for s in ((TOKENS, 5), (5, REAL))]
    shared = dict(
        labels=labels, weights=weights, temperature=2.0,
        settings=VocabSettings(vocab_size=REAL, mesh=shape and mesh_of(*shape)),
    )  # fmt: skip

    def exact(hidden, head):
        return losses.vocab_divergence(hidden, head, *other, **shared)

    log_p = log_softmax(np.float64(other[0]) @ np.float64(other[1]) / 2.0, -1)
    ids = np.argsort(-log_p, axis=1).astype(np.int32)
    answer = {
        "ids": ids,
        "log_probs": np.float32(np.take_along_axis(log_p, ids, 1)),
        "log_rest": np.full(TOKENS, -np.inf, np.float32),
    }

    def sparse(hidden, head):
        return losses.vocab_sparse_kl(hidden, head, **answer, **shared)

    found, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(hidden, head) for f in (sparse, exact)
    )
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-5)
    for name, value in found[0][1].items():
        np.testing.assert_allclose(value, expected[0][1][name], rtol=1e-5, err_msg=name)
    for one, same in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-6)


def test_the_likeliest_are_a_lower_bound_that_grows_with_k():
    hidden, head, _, labels, weights = draw("top_k")
    log_p = log_softmax(np.random.default_rng(9).standard_normal((TOKENS, WIDTH)), -1)
    order = np.argsort(-log_p, axis=1).astype(np.int32)
    values = []
    for k in (1, 4, 9, WIDTH):
        named = np.take_along_axis(log_p, order, 1)
        rest = jax.nn.logsumexp(jnp.array(named[:, k:]), axis=1) if k < WIDTH else -np.inf
        values.append(
            losses.vocab_sparse_kl(
                hidden, head, ids=order[:, :k], log_probs=named[:, :k], labels=labels,
                log_rest=jnp.broadcast_to(rest, TOKENS), weights=weights,
            )[0]
        )  # fmt: skip
    assert 0 < values[0] < values[1] < values[2] < values[3]


@pytest.mark.parametrize("kind", ["two teachers", "sampled", "top_k"])
def test_over_tensor_no_logits_and_no_heads_are_gathered(kind):
    tokens, dim, vocab, mesh = 64, 16, 4096, mesh_of(1, 1, 8)
    over = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    heads = [jax.ShapeDtypeStruct((dim, vocab), jnp.float32, sharding=over)] * 3
    hidden = [jax.ShapeDtypeStruct((tokens, dim), jnp.float32)] * 3
    shared = dict(weights=np.ones(tokens), settings=VocabSettings(chunk=4, mesh=mesh))
    answer = {"ids": np.tile(np.arange(5), (tokens, 1)), "log_probs": np.zeros((tokens, 5))}
    if kind == "top_k":
        answer["log_rest"] = np.zeros(tokens)

    def step(hidden, heads):
        def loss(own, head):
            if kind == "two teachers":
                return losses.vocab_divergence(own, head, hidden[1:], heads[1:], **shared)[0]
            labels = np.zeros(tokens, np.int32)
            return losses.vocab_sparse_kl(own, head, **answer, labels=labels, **shared)[0]

        return jax.value_and_grad(loss, (0, 1))(hidden[0], heads[0])

    found = collectives(jax.jit(step).lower(hidden, heads).compile().as_text())
    assert found and max(size for _, size, _ in found) <= tokens * dim
    assert not [name for name, _, _ in found if name == "all-gather"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log_probs": np.zeros((TOKENS, 2))}, r"ids \(16, 4\), log_probs \(16, 2\): expected"),
        ({"log_rest": np.zeros(3)}, r"log_rest \(3,\): expected \[N\] of 16 tokens"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"settings": VocabSettings(vocab_size=14)}, "vocab_size=14"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named(changes, words):
    hidden, head, answer, labels, weights = draw("top_k")
    given = {**answer, "labels": labels, "weights": weights, **changes}
    with pytest.raises(UsageError, match=words):
        losses.vocab_sparse_kl(hidden, head, **given)
