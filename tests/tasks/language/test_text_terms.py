"""Hidden states and attention relations on text: a step against single documents, in float64."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import small_texts
from scipy.special import log_softmax
from small_runs import changed

from distill_jax import config as configs
from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.runs import experiment


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("terms")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    config = small_texts.config(small_texts.make_teacher(folder / "teacher"), records)
    return changed(config, data__validation=4, method__hard_weight=0.0, training__ema_decay=0.0)


def summed(config, name, **options):
    """The config with another method; options by their full names."""
    method = {"name": name, "temperature": 2.0, "hard_weight": 0.0}
    for path, value in options.items():
        node, names = method, path.split("__")
        for part in names[:-1]:
            node = node.setdefault(part, {})
        node[names[-1]] = value
    return {**config, "method": method}


def outputs_of(decoder, layer, vocab_size):
    """A function of one document: its logits, its states, and what `layer` attends with."""

    def outputs(ids):
        decoded = decoder(ids)
        positions = jnp.arange(ids.shape[1])[None]
        projected = decoder.attention_inputs(decoded, layer, positions)
        # One relation head: all heads of a token are one vector.
        flat = [x.reshape(x.shape[1], -1) for x in projected]
        return decoder.logits(decoded.hidden)[0, :, :vocab_size], decoded.states[:, 0], flat

    return small_texts.alone(outputs)


def relations(projected):
    """Mean-free reference: log-probabilities of the relation of queries, keys, and values."""
    found = []
    for x in projected:
        scores = x @ x.T / np.sqrt(x.shape[1])
        found.append([log_softmax(row[: place + 1]) for place, row in enumerate(scores)])
    return found


def by_documents(parts, batch):
    """Sums over the learned tokens, each document by itself: divergence, states, relations."""
    student, teacher = (
        outputs_of(decoder, layer, parts.recipe.comparison.vocab_size)
        for decoder, layer in zip(small_texts.networks(parts), (1, 0), strict=True)
    )
    kernels = np.float64(parts.initial.adapters["hidden_states/projections"])
    sums = dict.fromkeys(("soft", "states", "relations", "count"), 0.0)
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            tokens = batch["tokens"][row][here]
            (z_s, own, q_s), (z_t, other, q_t) = student(tokens), teacher(tokens)
            r_s, r_t = relations(q_s), relations(q_t)
            for place in np.flatnonzero(batch["mask"][row][here]):
                p, q = log_softmax(z_t[place] / 2), log_softmax(z_s[place] / 2)
                sums["soft"] += 4.0 * np.sum(np.exp(p) * (p - q))
                for number, (i, j) in enumerate(((0, 1), (2, 2))):
                    mapped = own[i, place] @ kernels[number]
                    sums["states"] += np.mean((mapped - other[j, place]) ** 2) / 2
                for a, b in zip(r_s, r_t, strict=True):
                    sums["relations"] += np.sum(np.exp(b[place]) * (b[place] - a[place])) / 3
                sums["count"] += 1
    return sums


NAME = "soft_target+hidden_states+attention_relations"
OPTIONS = {
    "soft_weight": 0.5,
    "soft_target__weight": 0.7,
    "hidden_states__weight": 3.0,
    "hidden_states__student_layers": (0, 2),
    "hidden_states__teacher_layers": (1, 2),
    "hidden_states__loss": "mse",
    "attention_relations__weight": 20.0,
    "attention_relations__teacher_layer": 0,
}


@pytest.mark.parametrize(
    ("devices", "accumulate"), [(1, 2), pytest.param(8, 1, marks=pytest.mark.slow)]
)
def test_a_step_is_the_weighted_sum_over_single_documents(config, devices, accumulate):
    config = summed(config, NAME, **OPTIONS)
    config = changed(config, mesh__data=devices, training__accumulate=accumulate)
    parts, batch, after = small_texts.first_step(config)
    assert (batch["segments"].max(axis=1) > 1).any() and (batch["segments"] == 0).any()
    sums = by_documents(parts, batch)
    soft, states, relation = (sums[n] / sums["count"] for n in ("soft", "states", "relations"))
    assert min(soft, states, relation) > 1e-3
    expected = {
        "hidden_states": states,
        "attention_relations": relation,
        "soft_loss": 0.7 * soft + 3.0 * states + 20.0 * relation,
        "loss": 0.5 * (0.7 * soft + 3.0 * states + 20.0 * relation),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(after.sums[name], value, rtol=5e-5, err_msg=name)
    before = parts.initial.adapters["hidden_states/projections"]
    assert np.abs(after.adapters["hidden_states/projections"] - before).max() > 1e-4


def test_two_divergences_add_up(config):
    one, other = (
        small_texts.first_step(summed(config, name))[2].sums["soft_loss"]
        for name in ("soft_target", "reverse_kl")
    )
    options = {"soft_target__weight": 0.25, "reverse_kl__weight": 0.75}
    both = small_texts.first_step(summed(config, "soft_target+reverse_kl", **options))[2].sums
    np.testing.assert_allclose(both["loss"], 0.25 * one + 0.75 * other, rtol=1e-5)
    assert abs(one - other) > 5e-3 * one


def test_a_copy_of_the_teacher_has_no_loss_in_its_states(config):
    student = {"name": "decoder", "path": config["teacher"]["path"][0]}
    config = summed({**config, "student": student}, "hidden_states+attention_relations")
    parts, _, after = small_texts.first_step(config)
    assert parts.initial.adapters == {}  # of one width: nothing to project
    assert abs(after.sums["loss"]) < 1e-5 and after.sums["gradient_norm"] < 1e-3
    # No divergence is trained, and yet the distance from the teacher is known.
    assert abs(after.sums["kl"]) < 1e-6 and "soft_target" not in after.sums


@pytest.mark.slow
def test_a_run_resumes_and_saves_the_student_alone(config, tmp_path):
    config = summed(config, "soft_target+hidden_states")
    config = changed(config, training__steps=8, checkpoint__every_steps=4)
    experiment.run(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    short = changed(config, training__steps=8)
    for newest in sorted((tmp_path / "run" / "checkpoints").iterdir())[1:]:
        for path in sorted(newest.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        newest.rmdir()
    (tmp_path / "run" / "result.json").unlink()
    experiment.run(short, tmp_path / "run")
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again["parameters_sha256"] == result["parameters_sha256"]
    saved = models.split(language.load(tmp_path / "run" / "model"))[1]
    assert not any("projections" in name for name in saved)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["hidden_states"] < train[0]["hidden_states"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("hidden_states", {"student_layers": (3,)}, "method.student_layers=3: hidden_states"),
        ("hidden_states", {"teacher_layers": (1, 2)}, "method.teacher_layers=.1, 2.: hidden"),
        ("hidden_states", {"loss": "l1"}, "method.loss='l1'"),
        ("attention_relations", {"relation_heads": 3}, "method.relation_heads=3: expected a div"),
        ("attention_relations", {"teacher_layer": 2}, "method.teacher_layer=2: the teacher has 2"),
        ("attention_relations", {"relations": ("qv",)}, "method.relations='qv'"),
        ("soft_target+fitnet", {}, "fitnet is not for text"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, name, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        experiment.prepare(configs.resolve(summed(config, name, **options)))
    assert "\n" not in str(caught.value)


def test_models_of_images_have_no_such_terms():
    with pytest.raises(UsageError, match="compares decoders; expected data.name='text'"):
        configs.resolve({"method": {"name": "hidden_states"}, "teacher": {"path": ("x",)}})
