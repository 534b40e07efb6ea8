"""What a store of text keeps of a distribution: float64 references, expectations of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from distill_jax import losses, parallel
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import Readout, VocabSettings
from distill_jax.teachers import SparseFormat, compute_sparse_answers

REAL, TOKENS = 11, 16


def networks():
    """(hidden, head) of a student and of a teacher with padded ids."""
    generator = np.random.default_rng(5)
    shapes = [((TOKENS, 3), (3, 12)), ((TOKENS, 4), (4, 13))]
    return [tuple(np.float32(generator.standard_normal(s)) for s in both) for both in shapes]


def log_p(temperature):
    """Of the teacher, in float64."""
    hidden, head = map(np.float64, networks()[1])
    z = 2.0 * np.tanh(1.5 * hidden @ head[:, :REAL] / 2.0)
    return log_softmax(z / temperature, -1)


def kept(sparse, uniforms=None, mesh=(1, 1, 1), temperature=1.0):
    @jax.jit
    def answer(hidden, head, uniforms):
        return compute_sparse_answers(
            sparse, hidden, head, uniforms, readout=Readout(2.0, 1.5), temperature=temperature,
            mesh=parallel.make_mesh(*mesh),
        )  # fmt: skip

    return jax.device_get(answer(*networks()[1], uniforms))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)])
def test_the_likeliest_and_the_rest(mesh):
    found = kept(SparseFormat("top_k", 4, REAL, "float32"), mesh=mesh, temperature=2.0)
    expected = log_p(2.0)
    order = np.argsort(-expected, axis=1)
    np.testing.assert_array_equal(found["ids"], order[:, :4])
    named, others = np.split(np.take_along_axis(expected, order, 1), [4], axis=1)
    np.testing.assert_allclose(found["log_probs"], named, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["log_rest"], logsumexp(others, axis=1), rtol=1e-5, atol=1e-6)
    assert found["ids"].dtype == np.uint16 and found["finite"].all()


def test_draws_fall_where_the_summed_probabilities_say():
    sparse, p = SparseFormat("sampled", 6, REAL), np.exp(log_p(1.0))
    uniforms = np.float32(np.random.default_rng(6).uniform(size=(TOKENS, 6, 2)))
    runs = [range(0, 4), range(4, 8), range(8, 11)]
    for mesh in ((1, 1, 1), (2, 2, 2)):
        found = kept(sparse, uniforms, mesh)
        for token in range(TOKENS):
            drawn = []
            for first, second in uniforms[token]:
                masses = np.array([p[token, run].sum() for run in runs])
                run = runs[np.searchsorted(np.cumsum(masses), first)]
                within = np.cumsum(p[token, run])
                drawn.append(run[np.searchsorted(within, second * within[-1])])
            ids, counts = np.unique(drawn, return_counts=True)
            real = found["counts"][token] > 0
            np.testing.assert_array_equal(found["ids"][token][real], ids)
            np.testing.assert_array_equal(found["counts"][token][real], counts)


def test_the_mean_gradient_of_many_stores_is_that_of_the_exact_divergence():
    student, teacher = networks()
    sparse, shared = (
        SparseFormat("sampled", 5, REAL),
        dict(weights=np.ones(TOKENS), settings=VocabSettings(vocab_size=REAL)),
    )
    labels = np.zeros(TOKENS, np.int32)

    def exact(hidden):
        return losses.vocab_divergence(
            hidden, student[1], *teacher, teacher_readout=Readout(2.0, 1.5), **shared
        )[0]

    def stored(hidden, seed):
        uniforms = sparse.uniforms(seed, jnp.arange(4), TOKENS // 4)
        found = sparse.loss_arguments(sparse.compress(jnp.float32(log_p(1.0)), uniforms))
        return losses.vocab_sparse_kl(hidden, student[1], **found, labels=labels, **shared)[0]

    seeds = jnp.arange(600)
    many = jax.jit(jax.vmap(jax.grad(stored), (None, 0)))(student[0], seeds)
    expected = jax.grad(exact)(student[0])
    error = many.std(axis=0) / np.sqrt(len(seeds))
    assert np.max(np.abs(many.mean(axis=0) - expected) / error) < 4.5  # of 48 numbers
    assert np.max(error) < 0.1 * np.max(np.abs(expected))


def test_draws_are_a_function_of_the_seed_and_of_the_number_of_the_row():
    sparse = SparseFormat("sampled", 3, REAL)
    whole = sparse.uniforms(1, jnp.arange(4), 5).reshape(4, 5, 3, 2)
    part = sparse.uniforms(1, jnp.array([2, 0]), 5).reshape(2, 5, 3, 2)
    np.testing.assert_array_equal(part, whole[np.array([2, 0])])
    assert not np.array_equal(whole, sparse.uniforms(2, jnp.arange(4), 5).reshape(4, 5, 3, 2))
    assert SparseFormat("top_k", 3, REAL).uniforms(1, jnp.arange(4), 5) is None


def test_rare_ids_are_drawn_as_often_as_they_should_be():
    # Half of the ids have 3e-8 each, at the upper end of the sum of all, where a float32 has steps
    # of 6e-8: placed in that sum, every other one of them could never be drawn.
    vocab, rare, draws = 40_000, 20_000, 60_000
    p = np.full(vocab, 3e-8)
    p[: vocab - rare] = (1 - 3e-8 * rare) / (vocab - rare)
    sparse = SparseFormat("sampled", draws, vocab)
    uniforms = np.random.default_rng(3).uniform(size=(1, draws, 2))
    runs = 1 - np.float64(3e-8 * rare * 0.9) * uniforms[..., :1]
    found = jax.jit(sparse.compress)(
        jnp.log(jnp.float32(p))[None], jnp.float32(np.concatenate([runs, uniforms[..., 1:]], -1))
    )
    counts = np.zeros(vocab)
    np.add.at(counts, np.asarray(found["ids"][0]), np.asarray(found["counts"][0]))
    chosen = counts[vocab - rare // 2 :]
    assert chosen.sum() > 0.4 * draws and np.mean(chosen > 0) > 0.9


def test_bytes_a_token():
    assert SparseFormat("sampled", 50, 128256).nbytes == 50 * (4 + 1)
    assert SparseFormat("sampled", 300, 50257).nbytes == 300 * (2 + 2)
    assert SparseFormat("top_k", 64, 128256).nbytes == 64 * (4 + 2) + 2


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("top_p", "x='top_p': expected sampled:DRAWS or top_k:IDS"),
        ("sampled:", "x='sampled:': expected sampled:DRAWS"),
        ("top_k:12", "x='top_k:12': expected a number from 1 to 11"),
        ("sampled:0", "x='sampled:0': expected a number from 1 to 65535"),
    ],
)
def test_what_is_no_kind_is_named(said, words):
    with pytest.raises(UsageError, match=words):
        SparseFormat.parse(said, REAL, key="x")
    assert str(SparseFormat.parse("top_k:7", REAL, key="x")) == "top_k:7"
