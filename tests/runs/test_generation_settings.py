"""What a config says about writing text, and what of it is refused."""

import dataclasses

import pytest

from distill_jax.errors import UsageError
from distill_jax.runs.generation_settings import Settings, parse


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(prompts=""), "prompts='': expected the path of a JSONL file"),
        (dict(prompts=3), "prompts=3: expected the path of a JSONL file"),
        (dict(long="cut"), "generate.long='cut': unknown name; known: refuse, skip"),
        (dict(licence=None), "generate.licence=None: expected text"),
        (dict(top_p=1.5), r"generate.top_p=1.5: expected a number in \(0, 1\]; 1 is off"),
        (dict(temperature=-1), "generate.temperature=-1: expected"),
        (dict(top_k=1.5), "generate.top_k=1.5: expected"),
        (dict(max_new_tokens=0), "generate.max_new_tokens=0: expected a positive int"),
        (dict(samples=True), "generate.samples=True: expected a positive int"),
        (dict(batch_size=0), "generate.batch_size=0: expected"),
        (dict(shard=-1), "generate.shard=-1: expected"),
        (dict(seed=2**32), r"generate.seed=4294967296: expected an int in \[0, 2\*\*32\)"),
        (dict(stops=[1]), r"generate.stops=\[1\]: expected a tuple of ids"),
        (dict(compute_dtype="float3"), "generate.compute_dtype='float3': unknown dtype; did you"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        Settings(**{"prompts": "x.jsonl", **changes})


def test_a_config_gives_settings():
    config = {
        "teacher": {"path": "a"},
        "prompts": "p.jsonl",
        "generate": {"top_k": 4, "stops": [1, 2]},
    }
    expected = Settings(prompts="p.jsonl", top_k=4, stops=(1, 2))
    assert parse(config) == ("a", expected)
    assert parse({**config, "teacher": {"path": ("a",)}}) == ("a", expected)
    stated = {"path": "a", "licence": ("mit",), "outputs_may_train_other_models": (True,)}
    both = dataclasses.replace(expected, licence="mit", permission=True)
    assert parse({**config, "teacher": stated}) == ("a", both)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"generate": {"topp": 1}}, "config='generate.topp': unknown key; did you mean 'generate."),
        ({"promts": ""}, "config='promts': unknown key; did you mean 'prompts'"),
        ({"generate": {"top_p": 2.0}}, "generate.top_p=2.0: expected"),
        ({"prompts": ""}, "prompts='': expected the path of a JSONL file"),
        ({"teacher": {"path": ""}}, "teacher.path='': expected one teacher"),
        ({"teacher": {"path": ("a", "b")}}, r"teacher.path=\('a', 'b'\): expected one teacher"),
        (
            {"teacher": {"path": "a", "outputs_may_train_other_models": 1}},
            "teacher.outputs_may_tra",
        ),
        ({"teacher": {"path": "a", "licence": "x"}, "generate": {"licence": "y"}}, "teacher.lic"),
        ({"teacher": {}}, "teacher.path='': expected one teacher"),
    ],
)
def test_bad_configs_are_refused(changes, message):
    config = {"teacher": {"path": "a"}, "prompts": "p.jsonl"}
    with pytest.raises(UsageError, match=f"^{message}"):
        parse({**config, **changes})
