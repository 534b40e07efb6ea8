"""Runs on text: the numbers of a step against single documents, and every promise of a run."""

import json
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import small_texts
from scipy.special import log_softmax
from small_runs import changed

from distill_jax import config as configs
from distill_jax import models, parallel
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop, step
from distill_jax.training.state import Frozen, copy_to


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    return small_texts.make_teacher(folder / "teacher"), records


@pytest.fixture(scope="module")
def config(folders):
    return small_texts.config(*folders)


def by_documents(parts, batch, temperature):
    """Sums over the learned tokens of a batch, each piece of a document by itself, in float64.

    Returns:
      {"soft", "hard", "kl", "teacher", "agreement", "count"}.
    """
    real = parts.recipe.comparison.vocab_size
    student, teacher = (
        small_texts.alone(lambda ids, model=model: model.logits(model(ids).hidden)[0, :, :real])
        for model in small_texts.networks(parts)
    )
    sums = dict.fromkeys(("soft", "hard", "kl", "teacher", "agreement", "count"), 0.0)
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            z_s, z_t = (model(batch["tokens"][row][here]) for model in (student, teacher))
            learned = batch["mask"][row][here]
            targets = batch["targets"][row][here]
            for place in np.flatnonzero(learned):
                s, t = z_s[place], z_t[place]
                for name, heat in (("soft", temperature), ("kl", 1.0)):
                    q, p = log_softmax(s / heat), log_softmax(t / heat)
                    sums[name] += heat**2 * np.sum(np.exp(p) * (p - q))
                sums["hard"] -= log_softmax(s)[targets[place]]
                sums["teacher"] -= log_softmax(t)[targets[place]]
                sums["agreement"] += s.argmax() == t.argmax()
                sums["count"] += 1
    return sums


@pytest.mark.parametrize(
    ("accumulate", "devices"),
    [(1, 8), *(pytest.param(n, d, marks=pytest.mark.slow) for n, d in ((2, 1), (1, 1), (2, 8)))],
)
def test_a_step_is_the_sum_over_single_documents(config, devices, accumulate):
    if accumulate == 2 and devices == 8:
        config = changed(config, training__batch_size=16)
    config = changed(
        config, mesh__data=devices, training__accumulate=accumulate, data__validation=4
    )
    parts, batch, after = small_texts.first_step(config)
    assert (batch["segments"].max(axis=1) > 1).any() and (batch["segments"] == 0).any()
    sums = by_documents(parts, batch, temperature=2.0)
    count = sums["count"]
    assert 0 < count < batch["mask"].size
    expected = {
        "soft_loss": sums["soft"] / count,
        "hard_loss": sums["hard"] / count,
        "loss": 0.5 * sums["hard"] / count + sums["soft"] / count,
        "kl": sums["kl"] / count,
        "teacher_loss": sums["teacher"] / count,
        "agreement": sums["agreement"] / count,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(after.sums[name], value, rtol=2e-5, err_msg=name)


@pytest.mark.slow
def test_devices_and_accumulation_change_no_parameter(config):
    base = changed(config, training__batch_size=16, data__validation=4)
    one = small_texts.first_step(base)[2]
    for values in ({"mesh__data": 8}, {"training__accumulate": 4}):
        other = small_texts.first_step(changed(base, **values))[2]
        for name, value in one.params.items():
            np.testing.assert_allclose(other.params[name], value, atol=2e-5, err_msg=name)


def test_a_copy_of_the_teacher_has_no_loss_and_no_gradient(config, folders):
    student = {"name": "decoder", "path": str(folders[0])}
    config = changed({**config, "student": student}, method__hard_weight=0.0)
    after = small_texts.first_step(config)[2]
    assert abs(after.sums["soft_loss"]) < 1e-6
    assert after.sums["gradient_norm"] < 1e-5
    np.testing.assert_allclose(after.sums["agreement"], 1.0, rtol=1e-6)


@pytest.mark.slow
def test_the_text_alone_needs_no_teacher(config, folders):
    config = changed(
        {**config, "method": {"name": "supervised"}, "teacher": {}}, data__tokenizer=str(folders[0])
    )
    parts, batch, after = small_texts.first_step(config)
    assert parts.description["teachers"] == []
    logits = models.merge(parts.recipe.comparison.student.graphdef, parts.initial.params)
    total = 0.0
    for row, mask in enumerate(batch["mask"]):
        hidden = logits(
            jnp.asarray(batch["tokens"][row][None]),
            segments=jnp.asarray(batch["segments"][row][None]),
        ).hidden
        z = log_softmax(np.float64(logits.logits(hidden))[0][:, :300], axis=-1)
        total -= z[np.arange(len(mask)), batch["targets"][row]][mask].sum()
    np.testing.assert_allclose(after.sums["loss"], total / batch["mask"].sum(), rtol=1e-5)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    experiment.run(config, workdir)
    return workdir


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return result["parameters_sha256"], (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("at", [3, pytest.param(9, marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_the_same_bits(config, undisturbed, tmp_path, monkeypatch, at):
    log = Session.log

    def log_and_interrupt(self, step, sums):
        log(self, step, sums)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "log", log_and_interrupt)
        with pytest.raises(loop.Preempted):
            experiment.run(config, tmp_path / "run")
    experiment.run(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(undisturbed)


@pytest.mark.slow
def test_a_run_learns_and_its_figures_are_those_of_its_saved_model(undisturbed, config):
    result = json.loads((undisturbed / "result.json").read_text())
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["hard_loss"] < 0.98 * train[0]["hard_loss"]
    test = result["final"]["test"]
    assert test["unit"] == "tokens" and test["count"] > 0
    np.testing.assert_allclose(test["perplexity"], np.exp(test["nll"]))
    again = experiment.evaluate(undisturbed, "test", "final", {})
    assert again == test
    parts = experiment.prepare(configs.resolve(config))
    saved = models.split(language.load(undisturbed / "model"))[1]
    sums = {"kl": 0.0, "hard": 0.0, "count": 0.0}
    fresh = type(parts.initial)(**{**vars(parts.initial), "params": saved})
    object.__setattr__(parts, "initial", fresh)
    feed = parts.evaluators["test"]._batches
    for batch in feed:
        found = by_documents(parts, batch, temperature=1.0)
        sums = {name: value + found[name] for name, value in sums.items()}
    assert sums["count"] == test["count"]
    np.testing.assert_allclose(test["kl"], sums["kl"] / sums["count"], rtol=1e-4)
    np.testing.assert_allclose(test["nll"], sums["hard"] / sums["count"], rtol=1e-4)
    assert "tokens" in (undisturbed / "report.html").read_text()


def test_the_record_has_what_both_expected_at_each_token(undisturbed):
    test = json.loads((undisturbed / "result.json").read_text())["final"]["test"]
    record = np.load(undisturbed / "evaluation" / "test.npz")
    for name in ("by_position", "by_length"):
        count, student, teacher = record[name].sum(axis=0)
        assert count == test["count"]
        np.testing.assert_allclose(student / count, test["nll"], rtol=1e-5)
        np.testing.assert_allclose(teacher / count, test["teacher_nll"], rtol=1e-5)
    assert record["each_count"].sum() == test["count"] and record["each_count"].all()
    np.testing.assert_allclose(record["each_nll"].sum() / test["count"], test["nll"], rtol=1e-5)
    rows = json.loads(record["rows"].tobytes())
    tokens = [token for row in rows for token in row if "kl" in token]
    assert len(tokens) > 20 and all(row[0]["begin"] for row in rows)
    found = 0
    for token in tokens:
        for prefix in ("", "teacher_"):
            top = token[f"{prefix}top"]
            shares = [p for _, p in top]
            assert len(top) == 5 and shares == sorted(shares, reverse=True) and sum(shares) <= 1.001
            for text_of, p in top:
                if text_of == token["text"]:
                    np.testing.assert_allclose(p, np.exp(-token[f"{prefix}nll"]), atol=2e-4)
                    found += 1
        assert token["kl"] > -1e-4
    assert found  # some targets were among the likeliest
    text_of_rows = "".join(token["text"] for token in rows[0] if not token.get("begin"))
    assert any(word in text_of_rows for word in small_texts.WORDS)


def test_a_student_of_a_finished_run_is_a_teacher(undisturbed, config, folders):
    config = changed(config, teacher__path=(str(undisturbed),), data__tokenizer=str(folders[0]))
    parts = experiment.prepare(configs.resolve(config))
    result = json.loads((undisturbed / "result.json").read_text())
    assert parts.description["teachers"][0]["fingerprint"] == result["parameters_sha256"]


def test_layers_of_the_teacher_begin_as_they_are(config, folders):
    config = {**config, "student": {"name": "decoder", "layers": (1,)}}
    parts = experiment.prepare(configs.resolve(config))
    teacher = models.split(language.load(folders[0]))[1]
    for name, value in parts.initial.params.items():
        expected = teacher[name][1:] if name.startswith("runs/") else teacher[name]
        np.testing.assert_array_equal(value, expected, err_msg=name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__name": "digits"}, "student.name='decoder': data.name='digits'; expected a model"),
        ({"data__image_size": 8}, "data.image_size=8: has no meaning for data.name='text'"),
        ({"method__name": "fitnet"}, "method.name='fitnet': fitnet is not for text"),
        ({"data__path": ""}, "data.path=''"),
        ({"data__path": "/no/such.txt"}, "data.path='/no/such.txt': no such file"),
        ({"teacher__path": ("/no",)}, "teacher.path='/no'"),
        ({"data__validation": 0}, "data.test_path=''"),
        ({"student__dim": 0}, "student.dim=0"),
        ({"student__heads": 3}, "student.heads=3: expected a divisor of student.dim=8"),
        ({"student__layers": (7,)}, "student.layers"),
        ({"training__batch_size": 6, "mesh__data": 8}, "training.batch_size=6"),
        ({"data__length": 1}, "data.length=1"),
        ({"data__packing": "tight"}, "data.packing='tight'"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, values, words):
    with pytest.raises(UsageError, match=words.replace("(", "\\(").replace(")", "\\)")) as caught:
        experiment.prepare(configs.resolve(changed(config, **values)))
    assert "\n" not in str(caught.value)


def test_a_model_of_images_reads_no_text(config):
    words = "student.name='mlp': data.name='text'; expected decoder"
    with pytest.raises(UsageError, match=words):
        configs.resolve({**config, "student": {"name": "mlp"}})


def test_another_tokenizer_is_refused_and_the_way_is_named(config, folders, tmp_path):
    small_texts.write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="sequence-level"):
        experiment.prepare(configs.resolve(changed(config, data__tokenizer=str(tmp_path))))


def test_conversations_are_read_by_the_template_beside_the_tokenizer(config, tmp_path):
    small_texts.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}<s>{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant<s>{% endif %}"
    )
    turns = [{"role": "user", "content": "cold water"}, {"role": "assistant", "content": "a river"}]
    path = tmp_path / "talks.jsonl"
    path.write_text((json.dumps({"messages": turns}) + "\n") * 60)
    values = {"data__path": str(path), "data__tokenizer": str(tmp_path)}
    parts = experiment.prepare(configs.resolve(changed(config, **values)))
    batch = next(parts.feed.at(0))
    learned = batch["targets"][0][batch["mask"][0] & (batch["segments"][0] == 1)]
    tokenizer = text.load_tokenizer(tmp_path)
    assert learned.tolist() == [*tokenizer.encode("a river"), tokenizer.eos]


def test_the_rows_are_those_of_the_documents(config):
    parts = experiment.prepare(configs.resolve(config))
    data = parts.description["data"]
    assert data["train"]["documents"] + 16 == 60
    assert data["fingerprint"] == text.fingerprint(parts.feed.rows)


@pytest.mark.slow
def test_a_teacher_beside_the_text_alone_is_measured_and_trains_nothing(config, folders):
    parts, batch, after = small_texts.first_step({**config, "method": {"name": "supervised"}})
    assert parts.recipe.metrics == ("loss", "hard_loss", "student_entropy", "accuracy")
    assert parts.description["teachers"][0]["path"] == str(folders[0])
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    now = copy_to(parts.initial, parallel.replicated(parts.mesh))
    without = compiled(now, Frozen(), {}, step.put_batches([batch], parts.mesh))
    for name, value in after.params.items():
        np.testing.assert_array_equal(without.params[name], value, err_msg=name)
    judged = experiment.prepare(configs.resolve(config))
    figures, expected = (
        one.evaluators["test"](judged.initial.params, {}) for one in (parts, judged)
    )
    assert expected["kl"] > 0.1
    for name in ("nll", "kl", "agreement", "teacher_nll"):
        np.testing.assert_allclose(figures[name], expected[name], rtol=1e-5, err_msg=name)
