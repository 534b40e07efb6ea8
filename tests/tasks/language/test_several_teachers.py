"""Several teachers of a run on text: the mean of what they say, and what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_plans
import small_texts
from scipy.special import log_softmax, softmax
from small_runs import changed

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.errors import UsageError
from distill_jax.planning import memory, step_flops
from distill_jax.runs import experiment

LARGER = small_texts.TEACHER.replace(dim=24, heads=3, head_dim=8, vocab_size=352)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    small_texts.write_records(folder / "records.jsonl")
    return (
        small_texts.make_teacher(folder / "first"),
        small_texts.make_teacher(folder / "second", LARGER),
        folder / "records.jsonl",
    )


@pytest.fixture(scope="module")
def config(folders):
    first, second, records = folders
    both = changed(small_texts.config(first, records), teacher__path=(str(first), str(second)))
    return changed(both, teacher__weights=(1.0, 3.0), training__ema_decay=0.0)


def by_tokens(parts, batch):
    """Soft loss at T = 2, KL at T = 1 and agreement, sums over learned tokens in float64."""
    compared = parts.recipe.comparison
    arrays = [parts.initial.params, *parts.frozen.teachers]
    given = {name: jnp.asarray(value) for name, value in batch.items()}
    z = []
    for network, own in zip((compared.student, *compared.teachers), arrays, strict=True):
        decoder = models.merge(network.graphdef, jax.device_put(jax.device_get(own)))
        made = decoder(given["tokens"], positions=given["positions"], segments=given["segments"])
        z.append(np.float64(decoder.logits(made.hidden))[..., : compared.vocab_size])
    mask, sums = batch["mask"], {}
    for name, heat in (("soft_loss", 2.0), ("kl", 1.0)):
        p = 0.25 * softmax(z[1] / heat, -1) + 0.75 * softmax(z[2] / heat, -1)
        kl = np.sum(p * (np.log(p) - log_softmax(z[0] / heat, -1)), -1)
        sums[name] = heat**2 * kl[mask].mean()
    sums["agreement"] = (z[0].argmax(-1) == p.argmax(-1))[mask].mean()
    return sums


@pytest.mark.parametrize(
    "values", [{}, {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "student__kv_heads": 2}]
)
def test_a_step_is_taken_towards_the_mean_of_both(config, folders, values):
    parts, batch, after = small_texts.first_step(changed(config, **values))
    for name, value in by_tokens(parts, batch).items():
        np.testing.assert_allclose(after.sums[name], value, rtol=5e-5, err_msg=name)
    entries = parts.description["teachers"]
    assert [entry["path"] for entry in entries] == [str(folder) for folder in folders[:2]]
    assert entries[0]["fingerprint"] != entries[1]["fingerprint"]
    if values:  # the second lies as the first
        name, mesh = "runs/0/mlp/up/kernel", {"data": 2, "fsdp": 2, "tensor": 2}
        one, other = (teacher[name] for teacher in parts.frozen.teachers)
        assert dict(one.sharding.mesh.shape) == mesh and one.sharding.spec == other.sharding.spec
        assert other.addressable_shards[0].data.size * 4 == other.size


def test_the_same_teacher_twice_is_one(config, folders):
    one = changed(config, teacher__path=(str(folders[0]),), teacher__weights=())
    twice = changed(config, teacher__path=(str(folders[0]),) * 2)
    expected, found = (small_texts.first_step(c)[2] for c in (one, twice))
    for name, value in expected.params.items():
        np.testing.assert_allclose(found.params[name], value, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(found.sums["kl"], expected.sums["kl"], rtol=1e-5)


@pytest.mark.slow
def test_both_in_int8_evaluate_and_resume(config, tmp_path):
    prompts = str(config["data"]["path"])
    config = changed(
        config, teacher__quantize="int8", training__steps=4, checkpoint__every_steps=2,
        evaluation__test_prompts=prompts, evaluation__max_prompts=2,
        evaluation__max_new_tokens=4, evaluation__prompt_batch_size=2,
    )  # fmt: skip
    parts = experiment.prepare(configs.resolve(config))
    assert len(parts.frozen.teachers) == 2
    for teacher in parts.frozen.teachers:
        assert teacher["runs/0/mlp/up/kernel"].dtype == jnp.int8
    test = experiment.run(config, tmp_path / "run").values["final"]["test"]
    assert test["kl"] > 0 and test["rouge_l"] >= 0
    # A mean of distributions writes nothing.
    assert "teacher_rouge_l" not in test and "teacher" not in test["samples"][0]
    again = changed(config, teacher__path=config["teacher"]["path"][::-1])
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(UsageError, match="another teacher than the run began with"):
        experiment.run(again, tmp_path / "run")


def test_a_plan_counts_both(tmp_path):
    second = small_plans.LLAMA | {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 640}
    settings = small_plans.config(tmp_path)
    paths = (*settings.teacher.path, small_plans.folder(tmp_path, "second", second))
    found = []
    for chosen in (paths[:1], paths[1:], paths):
        flat = configs.flatten(settings) | {"teacher.path": chosen}
        run = tasks.abstract_step(configs.resolve(configs.unflatten(flat)), jax.devices()[:1])
        held = memory.argument_bytes(run.state, run.frozen, run.resident, run.batches)
        done = step_flops.count_step(run)
        found.append(
            (held["teacher"], run.parameters["teacher"], done.teacher_forward, done.student_forward)
        )
    for one, other, both in list(zip(*found, strict=True))[:3]:
        assert one + other == both and other > 0
    assert len({students for *_, students in found}) == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"method__name": "soft_target+hidden_states"},
            "teacher.path=.*matches the streams of one",
        ),
        ({"method__name": "attention_relations"}, "teacher.path=.*expected one path"),
        ({"teacher__weights": (1.0,)}, "teacher.weights=(1.0,): expected 2 of them"),
        ({"teacher__combine": "sum_losses"}, "teacher.combine='sum_losses': has no meaning"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, values, words):
    pattern = words.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UsageError, match=pattern) as caught:
        configs.resolve(changed({**config, "method": {"name": "soft_target"}}, **values))
    assert "\n" not in str(caught.value)


def test_the_teacher_with_another_tokenizer_is_named(config, folders, tmp_path):
    other = small_texts.make_teacher(tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(content))
    config = changed(config, teacher__path=(str(folders[0]), str(other)))
    said = re.escape(f"teacher.path='{other}/tokenizer.json': not the tokenizer of the teacher")
    with pytest.raises(UsageError, match=said):
        experiment.prepare(configs.resolve(config))
