"""Decoding: transformers' greedy responses, and a row that does not feel its batch."""

import collections
import dataclasses
import json
import re

import generation_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import NamedSharding, PartitionSpec

from distill_jax import generation, models, parallel
from distill_jax.errors import UsageError
from distill_jax.generation import decode

GREEDY = generation.Sampler(temperature=0.0)
PROMPTS = [list(prompt) for prompt in reference.make.PROMPTS]
NEW = reference.make.MAX_NEW_TOKENS


def generate(name: str, prompts=PROMPTS, **options) -> list[generation.Response]:
    """Responses of a golden model; the options are those of `Decoding` and of `generate`."""
    fields = {field.name for field in dataclasses.fields(generation.Decoding)}
    chosen = dict(sampler=GREEDY, max_new_tokens=NEW, vocab_size=40)
    chosen |= {name: options.pop(name) for name in fields & options.keys()}
    return generation.generate(
        reference.golden_model(name),
        prompts,
        generation.Decoding(**chosen),
        **{"batch_size": 6, "smallest_bucket": 16, **options},
    )


def ids(responses: list[generation.Response]) -> list[list[int]]:
    return [response.ids.tolist() for response in responses]


@pytest.fixture(scope="module")
def golden() -> dict[str, list[list[int]]]:
    content = json.loads((reference.GOLDEN / "greedy.json").read_text())
    assert content["prompts"] == PROMPTS
    return {name: [row["ids"] for row in rows] for name, rows in content["families"].items()}


@pytest.mark.parametrize("name", reference.make.FAMILIES)
def test_greedy_is_what_transformers_generates(golden, name):
    found = generate(name)
    assert ids(found) == golden[name]
    assert {response.finish for response in found} == {"length"}


def test_a_response_ends_with_the_first_stop_id(golden):
    # Among the golden responses there are those with one of these, with both and with none.
    stops = (29, 34)
    found = generate("phi3", stop_ids=stops)
    for response, whole in zip(found, golden["phi3"], strict=True):
        first = next((i for i, token in enumerate(whole) if token in stops), None)
        expected = whole if first is None else whole[: first + 1]
        assert response.ids.tolist() == expected
        assert response.finish == ("length" if first is None else "stop")
    assert len({len(response.ids) for response in found}) > 2


def test_ids_beyond_the_vocabulary_are_never_drawn(golden):
    assert max(max(row) for row in golden["phi3"]) >= 30
    for sampler in (GREEDY, generation.Sampler(3.0)):
        found = generate("phi3", sampler=sampler, vocab_size=30)
        assert max(max(row) for row in ids(found)) < 30


@pytest.fixture(scope="module")
def sampled() -> list[generation.Response]:
    """Responses of phi3 to the prompts, in one batch."""
    return generate("phi3", sampler=generation.Sampler(1.5, 20, 0.95), seed=5, log_probs=True)


def test_one_by_one_gives_what_a_batch_gives(sampled):
    keys = generation.row_keys(5, np.arange(len(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        (alone,) = generate(
            "phi3",
            [prompt],
            sampler=generation.Sampler(1.5, 20, 0.95),
            keys=keys[i : i + 1],
            log_probs=True,
            batch_size=1,
        )
        assert alone.ids.tolist() == sampled[i].ids.tolist()
        np.testing.assert_allclose(alone.log_probs, sampled[i].log_probs, atol=1e-4)


def test_padding_changes_nothing(sampled):
    sampler = generation.Sampler(1.5, 20, 0.95)
    found = generate("phi3", sampler=sampler, seed=5, log_probs=True, smallest_bucket=64)
    assert ids(found) == ids(sampled)


def test_another_seed_draws_other_tokens(sampled):
    other = generate("phi3", sampler=generation.Sampler(1.5, 20, 0.95), seed=6, log_probs=True)
    assert all(ours != theirs for ours, theirs in zip(ids(other), ids(sampled), strict=True))


def test_log_probabilities_are_those_of_a_pass_over_the_whole_text(sampled):
    model = reference.golden_model("phi3")
    for prompt, response in zip(PROMPTS[2:4], sampled[2:4], strict=True):
        logits = reference.logits_of(model, [*prompt, *response.ids])[len(prompt) - 1 : -1]
        every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = every[np.arange(len(response.ids)), response.ids]
        np.testing.assert_allclose(response.log_probs, expected, atol=1e-4)


MESH = dict(data=1, fsdp=2)


def laid_out(layout: str, mesh) -> models.Flat:
    """The parameters of phi3, whole on both devices or with their last axes split."""

    def place(array: jax.Array) -> jax.Array:
        split = layout == "in shards" and array.shape[-1] % 2 == 0
        spec = PartitionSpec(*(None,) * (array.ndim - 1), "fsdp")
        where = NamedSharding(mesh, spec) if split else parallel.replicated(mesh)
        return jax.device_put(array, where)

    return jax.tree.map(place, models.split(reference.golden_model("phi3"))[1])


@pytest.mark.parametrize("layout", ["whole", "in shards"])
def test_the_batch_is_split_over_devices(sampled, layout):
    mesh = parallel.make_mesh(**MESH, devices=jax.devices()[:2])
    graphdef = models.split(reference.golden_model("phi3"))[0]
    found = generation.generate(
        models.merge(graphdef, laid_out(layout, mesh)),
        PROMPTS,
        generation.Decoding(generation.Sampler(1.5, 20, 0.95), NEW, vocab_size=40, mesh=mesh),
        seed=5,
        batch_size=6,
        smallest_bucket=16,
    )
    assert ids(found) == ids(sampled)


def test_each_device_holds_the_cache_of_its_rows():
    mesh = parallel.make_mesh(**MESH, devices=jax.devices()[:2])
    graphdef = models.split(reference.golden_model("phi3"))[0]
    rows = jax.device_put(
        (jnp.zeros((6, 16), jnp.int32), jnp.ones(6, jnp.int32), generation.row_keys(0, range(6))),
        parallel.batch_sharding(mesh),
    )
    decoding = generation.Decoding(GREEDY, max_new_tokens=NEW, vocab_size=40, mesh=mesh)
    lowered = decode._generate_tokens.lower(
        graphdef, laid_out("in shards", mesh), *rows, decoding=decoding
    )
    program = lowered.compile().as_text()
    # [layers, B, S, key heads, head]: 3 of the 6 rows, with both heads.
    assert "f32[3,3,36,2,4]" in program
    assert not re.search(r"f32\[3,6,36,\d+,\d+\]", program)


def test_draws_follow_the_model_at_both_of_two_positions():
    """Chi-square of the pairs of tokens that 8,192 prompts, all alike, are continued with."""
    model, count, prompt = reference.golden_model("phi3"), 8192, [11, 26]
    # Few enough ids that every pair is expected often.
    options = dict(vocab_size=6, sampler=generation.Sampler(1.7), max_new_tokens=2)
    found = generate("phi3", [prompt] * count, batch_size=1024, seed=1, **options)
    counts = collections.Counter(map(tuple, ids(found)))

    def probabilities(text: list[int]) -> np.ndarray:
        weights = np.exp(reference.logits_of(model, text)[-1, :6] / 1.7)
        return weights / weights.sum()

    pairs = [(a, b) for a in range(6) for b in range(6)]
    first = probabilities(prompt)
    second = [probabilities([*prompt, a]) for a in range(6)]
    expected = np.array([first[a] * second[a][b] for a, b in pairs]) * count
    often = expected > 5
    observed = np.array([counts[pair] for pair in pairs])
    observed = np.append(observed[often], observed[~often].sum())
    expected = np.append(expected[often], expected[~often].sum())
    assert len(observed) > 12
    kept = expected > 0
    assert scipy.stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-3


def test_learned_positions_are_a_limit():
    long = [list(range(12)), [3] * 25]
    # The model has 32 positions: the longer prompt is padded to no more than these.
    found = generate("gpt2", long, max_new_tokens=7, log_probs=True)
    model = reference.golden_model("gpt2")
    for prompt, response in zip(long, found, strict=True):
        logits = reference.logits_of(model, [*prompt, *response.ids[:-1]])[len(prompt) - 1 :]
        assert response.ids.tolist() == logits.argmax(-1).tolist()
    message = r"prompts\[1\]: 25 tokens and a response of up to 8; expected at most 32 together"
    with pytest.raises(UsageError, match=message):
        generate("gpt2", long, max_new_tokens=8)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UsageError, match=r"prompts\[1\]: no token; expected text"):
        generate("phi3", [[1], []])


def test_few_padded_lengths_serve_all_prompts():
    config = reference.golden_model("phi3").config.replace(max_positions=4096)
    sizes = {generation.padded_length(config, n, 32) for n in range(1, 2049)}
    assert sizes == {32, 64, 128, 256, 512, 1024, 2048}
    assert all(generation.padded_length(config, n, 32) >= n for n in range(1, 2049))
    assert generation.padded_length(reference.golden_model("gpt2").config, 30, 24) == 32
    assert generation.padded_length(config.replace(max_positions=32), 30, 24) == 32
    many = generation.padded_length(config.replace(max_positions=70), 68, 32)
    assert many == 70


@pytest.mark.parametrize(("prompts", "rows"), [(1, 1), (2, 2), (3, 4), (8, 8), (13, 25), (25, 25)])
def test_few_prompts_do_not_fill_a_large_batch(prompts, rows):
    assert decode._batch_rows(prompts, 25, None) == rows


def test_a_prompt_beyond_the_context_of_a_rotary_model_is_refused():
    limit = reference.golden_model("phi3").config.max_positions
    message = rf"prompts\[0\]: {limit} tokens and a response of up to 1; expected at most {limit}"
    with pytest.raises(UsageError, match=message):
        generate("phi3", [[1] * limit], max_new_tokens=1)


def test_programs_are_compiled_once_for_each_padded_length():
    options = dict(max_new_tokens=3, batch_size=2)
    generate("phi3", [[1], [2, 3]], **options)
    before = decode._generate_tokens._cache_size()
    generate("phi3", [[4, 5, 6], [7], [8] * 16, [9]], seed=3, **options)
    assert decode._generate_tokens._cache_size() == before
    generate("phi3", [[8] * 17], **options)
    assert decode._generate_tokens._cache_size() == before + 1
