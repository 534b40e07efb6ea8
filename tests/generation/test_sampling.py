"""The sampler against transformers' (golden files), float64 numpy, and its own frequencies."""

import json

import generation_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from distill_jax import generation
from distill_jax.errors import UsageError
from distill_jax.generation.sampling import log_probability

LOGITS = reference.make.logits()


def kept(logits, temperature, top_k, top_p, vocab_size=None) -> list[list[int]]:
    """The ids that may be drawn, row by row."""
    sampler = generation.Sampler(temperature, top_k, top_p)
    found = generation.filter_logits(jnp.asarray(logits), sampler, vocab_size or logits.shape[-1])
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in np.asarray(found)]


def kept_by_counting(logits, temperature, top_k, top_p, vocab_size=None) -> list[list[int]]:
    """The same in float64, one id at a time: what is more likely than it decides."""
    found = []
    for row in np.asarray(logits, np.float64) / temperature:
        ids = range(vocab_size or len(row))
        if top_k:
            ids = [i for i in ids if sum(row[j] > row[i] for j in ids) < top_k]
        mass = {i: np.exp(row[i] - max(row[j] for j in ids)) for i in ids}
        whole = sum(mass.values())
        if top_p < 1:
            ids = [i for i in ids if sum(mass[j] for j in ids if row[j] > row[i]) < top_p * whole]
        found.append(list(ids))
    return found


@pytest.mark.parametrize("number, sampler", list(enumerate(reference.make.SAMPLERS)))
def test_the_same_tokens_stay_as_in_transformers(number, sampler):
    expected = json.loads((reference.GOLDEN / "samplers.json").read_text())[number]
    ours = kept(LOGITS, *sampler)
    assert ours[:4] == expected[:4]
    # Rows 4 and 5 have ties: at the border of top-p transformers keeps some, we keep all.
    for row in (4, 5):
        assert ours[row] == expected[row] or set(expected[row]) < set(ours[row])
        assert {LOGITS[row, i] for i in ours[row]} == {LOGITS[row, i] for i in expected[row]}


@pytest.mark.parametrize("vocab_size", [40, 33, 3])
@pytest.mark.parametrize("sampler", [*reference.make.SAMPLERS, (0.3, 4, 0.5), (5.0, 100, 0.97)])
def test_the_same_tokens_stay_as_by_counting(sampler, vocab_size):
    assert kept(LOGITS, *sampler, vocab_size) == kept_by_counting(LOGITS, *sampler, vocab_size)


def test_all_of_equally_likely_tokens_stay():
    logits = np.array([[2.0, 1.0, 1.0, 1.0, -5.0]], np.float32)
    assert kept(logits, 1.0, 2, 1.0) == [[0, 1, 2, 3]]
    assert kept(logits, 1.0, 0, 0.5) == [[0, 1, 2, 3]]
    assert kept(logits, 1.0, 0, 0.4) == [[0]]


def test_what_stays_keeps_its_logits_at_the_temperature():
    found = np.asarray(generation.filter_logits(LOGITS, generation.Sampler(2.0, 7, 0.9), 40))
    here = np.isfinite(found)
    np.testing.assert_allclose(found[here], LOGITS[here] / 2, rtol=1e-6)
    assert np.all(found[~here] == -np.inf)


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 0, 1.0), (2.5, 0, 1.0), (0.8, 4, 1.0), (1.5, 0, 0.85)]
)
def test_frequencies_are_the_probabilities(temperature, top_k, top_p):
    # Two ids beyond the vocabulary have the largest logits.
    logits = np.array([1.2, 0.3, -0.5, 0.9, -2.0, 0.0, 0.31, -1.0, 9.0, 9.0], np.float32)
    count, real = 20_000, 8
    (ids,) = kept_by_counting(logits[None], temperature, top_k, top_p, real)
    probabilities = np.exp(logits[ids].astype(np.float64) / temperature)
    probabilities /= probabilities.sum()
    keys = generation.row_keys(3, np.arange(count))
    sampler = generation.Sampler(temperature, top_k, top_p)
    drawn = generation.sample(jnp.tile(logits, (count, 1)), keys, sampler, real)
    counts = np.bincount(np.asarray(drawn), minlength=10)
    assert counts[ids].sum() == count
    assert scipy.stats.chisquare(counts[ids], probabilities * count).pvalue > 1e-3
    # The test has the power to tell another temperature.
    other = np.exp(logits[ids].astype(np.float64) / (temperature * 1.15))
    other /= other.sum()
    assert scipy.stats.chisquare(counts[ids], other * count).pvalue < 1e-3


def test_greedy_takes_the_first_of_the_most_likely_real_ids():
    logits = jnp.array([[0.0, 3.0, 3.0, 9.0], [5.0, 1.0, 2.0, 9.0]])
    drawn = generation.sample(logits, None, generation.Sampler(0.0), 3)
    assert drawn.tolist() == [1, 0] and drawn.dtype == jnp.int32


def test_log_probabilities_are_those_of_the_real_ids():
    tokens = np.array([0, 5, 31, 2, 32, 7])
    wide = LOGITS.astype(np.float64)[:, :33]
    expected = wide[np.arange(6), tokens] - np.log(np.exp(wide).sum(-1))
    found = log_probability(jnp.asarray(LOGITS), jnp.asarray(tokens), 33)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_keys_depend_on_seed_prompt_and_sample_alone():
    def data(*arguments):
        return np.asarray(jax.random.key_data(generation.row_keys(*arguments)))

    whole = data(7, np.arange(6))
    np.testing.assert_array_equal(data(7, [5, 2]), whole[[5, 2]])
    all_keys = [whole, data(8, np.arange(6)), data(7, np.arange(6), 1)]
    assert len(np.unique(np.concatenate(all_keys), axis=0)) == 18


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(temperature=-0.1), r"sampler.temperature=-0.1: expected a number of at least 0"),
        (dict(temperature=float("nan")), r"sampler.temperature=nan: expected"),
        (dict(temperature=True), r"sampler.temperature=True: expected"),
        (dict(top_k=2.0), r"sampler.top_k=2.0: expected an int of at least 0; 0 is off"),
        (dict(top_k=-1), r"sampler.top_k=-1: expected"),
        (dict(top_p=0.0), r"sampler.top_p=0.0: expected a number in \(0, 1\]; 1 is off"),
        (dict(top_p=1.01), r"sampler.top_p=1.01: expected"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=message):
        generation.Sampler(**values)
