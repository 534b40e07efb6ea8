"""On-policy distillation: what a student writes, and what it is trained on then."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_texts
from scipy.special import log_softmax, softmax
from small_runs import changed

from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop

NEW_TOKENS = 6


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rollouts")
    records = folder / "records.jsonl"
    small_texts.write_records(records)
    config = small_texts.config(small_texts.make_teacher(folder / "teacher"), records)
    rollout = {"probability": 1.0, "max_new_tokens": NEW_TOKENS, "temperature": 0.0}
    return changed(
        {**config, "rollout": rollout},
        data__packing="single",
        data__length=40,
        data__validation=4,
        method__hard_weight=0.5,
        training__ema_decay=0.0,
    )


@pytest.fixture(scope="module")
def parts(config):
    return experiment.prepare(configs.resolve(config))


def shown(parts, batch, at=0):
    state = dataclasses.replace(parts.initial, step=jnp.int32(at))
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    found = jax.jit(parts.recipe.inputs)(state, parts.frozen, {}, batch, None)
    return {name: np.asarray(value) for name, value in found.items()}


def greedy_rows(parts, batch):
    """Each row's ids with the student's most likely continuation, by whole forward passes.

    Returns:
      [(ids, tokens of the prompt)]; None for a row without room.
    """
    student, _ = small_texts.networks(parts)
    length = batch["tokens"].shape[1]
    forward = jax.jit(lambda ids: student.logits(student(ids[None]).hidden)[0])
    rows = []
    for tokens, mask in zip(batch["tokens"], batch["mask"], strict=True):
        prompt = int(np.flatnonzero(mask)[0]) + 1
        if prompt + NEW_TOKENS > length:
            rows.append(None)
            continue
        ids = list(tokens[:prompt])
        for _ in range(NEW_TOKENS):
            padded = np.array(ids + [0] * (length - len(ids)), np.int32)
            z = np.asarray(forward(padded))[len(ids) - 1, :300]
            ids.append(int(z.argmax()))
            if ids[-1] in parts.recipe.rollout.stops:
                break
        rows.append((ids, prompt))
    return rows


def test_a_row_is_its_prompt_and_what_the_student_writes(parts):
    batch = next(parts.feed.at(0))
    found = shown(parts, batch)
    rows = greedy_rows(parts, batch)
    assert any(rows)
    for number, row in enumerate(rows):
        if row is None:
            for name in ("tokens", "targets", "segments", "positions"):
                np.testing.assert_array_equal(found[name][number], batch[name][number])
            continue
        ids, prompt = row
        count = len(ids) - 1
        for name, expected in {
            "tokens": ids[:-1],
            "targets": ids[1:],
            "segments": [1] * count,
            "positions": list(range(count)),
            "weights": [0.0] * (prompt - 1) + [found["weights"].max()] * (count - prompt + 1),
        }.items():
            np.testing.assert_array_equal(found[name][number][:count], expected, err_msg=name)
            assert not found[name][number][count:].any(), name
    np.testing.assert_allclose(found["weights"].sum(), 1.0, rtol=1e-6)


def test_the_teacher_judges_what_the_student_wrote_and_no_label_does(parts, config):
    batch = next(parts.feed.at(0))
    student, teacher = (
        small_texts.alone(lambda ids, model=model: model.logits(model(ids).hidden)[0, :, :300])
        for model in small_texts.networks(parts)
    )
    total, count = 0.0, 0
    for number, row in enumerate(greedy_rows(parts, batch)):
        if row is None:
            real = batch["segments"][number] > 0
            ids = batch["tokens"][number][real]
            places = np.flatnonzero(batch["mask"][number][real])
        else:
            ids, places = row[0][:-1], range(row[1] - 1, len(row[0]) - 1)
        z_s, z_t = (model(ids) / 2.0 for model in (student, teacher))
        for place in places:
            p, q = log_softmax(z_t[place]), log_softmax(z_s[place])
            total += 4.0 * np.sum(softmax(z_t[place]) * (p - q))
            count += 1
    after = small_texts.first_step(config)[2]
    np.testing.assert_allclose(after.sums["loss"], total / count, rtol=5e-5)
    assert after.sums["on_policy"] == 1.0 and after.sums["hard_loss"] > 0


@pytest.mark.slow
def test_devices_and_accumulation_change_no_parameter(config):
    one = small_texts.first_step(config)[2]
    for values in ({"mesh__data": 8}, {"training__accumulate": 4}):
        other = small_texts.first_step(changed(config, **values))[2]
        for name, value in one.params.items():
            np.testing.assert_allclose(other.params[name], value, atol=2e-5, err_msg=name)


def test_some_batches_are_the_students_and_the_others_stay(config):
    config = changed(config, rollout__probability=0.5, rollout__temperature=1.0)
    parts = experiment.prepare(configs.resolve(config))
    batch = next(parts.feed.at(0))
    flags, texts = [], set()
    for at in range(12):
        found = shown(parts, batch, at)
        own = found["on_policy"][0]
        assert (found["on_policy"] == own).all()
        flags.append(own)
        same = all((found[name] == batch[name]).all() for name in ("tokens", "targets"))
        assert same == (own == 0.0)
        if own:
            texts.add(found["tokens"].tobytes())
    assert 0 < sum(flags) < 12
    assert len(texts) == sum(flags)  # every step draws anew


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(config, tmp_path, monkeypatch):
    config = changed(config, rollout__probability=0.5, rollout__temperature=1.0)
    outcomes = []
    for name, at in (("undisturbed", 0), ("stopped", 9)):
        log = Session.log

        def log_and_interrupt(self, step, sums, at=at, log=log):
            log(self, step, sums)
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Session, "log", log_and_interrupt)
            if at:
                with pytest.raises(loop.Preempted):
                    experiment.run(config, tmp_path / name)
        experiment.run(config, tmp_path / name)
        result = json.loads((tmp_path / name / "result.json").read_text())
        metrics = (tmp_path / name / "metrics.jsonl").read_bytes()
        outcomes.append((result["parameters_sha256"], metrics))
    assert outcomes[0] == outcomes[1]
    shares = [json.loads(line).get("on_policy") for line in outcomes[0][1].splitlines()]
    shares = [share for share in shares if share is not None]
    assert 0 < sum(shares) < len(shares)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data__packing": "whole"}, "data.packing='whole': rollout.probability=1.0 continues"),
        ({"rollout__max_new_tokens": 40}, "rollout.max_new_tokens=40: expected less than"),
        ({"rollout__probability": 1.5}, "rollout.probability=1.5"),
        ({"method__name": "supervised"}, "no teacher to judge what it writes"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, values, words):
    with pytest.raises(UsageError, match=words) as caught:
        experiment.prepare(configs.resolve(changed(config, **values)))
    assert "\n" not in str(caught.value)
