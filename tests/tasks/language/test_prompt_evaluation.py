"""Evaluation by answers: of decoders whose answers are known, the scores are counted by hand."""

import dataclasses
import json
import os
import re
import signal

import known_answers as known
import numpy as np
import pytest
from small_runs import changed

from distill_jax import cli
from distill_jax import config as configs
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.tasks.language.open_prompts import open_prompts
from distill_jax.training import loop

# Common words of answer and reference twice, over the words of both; in the order of the prompts.
ROUGE = {
    "student": [2 * 5 / (7 + 9), 2 * 2 / (3 + 7), 2 * 3 / (4 + 5), 0, 2 * 1 / (1 + 2), 0],
    "teacher": [2 * 6 / (6 + 9), 2 * 4 / (7 + 7), 1, 2 * 4 / (8 + 4), 2 * 1 / (1 + 2), 0],
}
EXACT = {"student": [0, 1, 0, 0, 1, 0], "teacher": [0, 1, 1, 0, 1, 0]}


def expected(count: int = 6) -> dict[str, float]:
    """The figures of the first prompts, of networks that did not learn."""
    return {
        "prompts": count,
        "rouge_l": np.mean(ROUGE["student"][:count]),
        "teacher_rouge_l": np.mean(ROUGE["teacher"][:count]),
        "exact_match": np.mean(EXACT["student"][:count]),
        "teacher_exact_match": np.mean(EXACT["teacher"][:count]),
    }


def assert_figures(found: dict, values: dict[str, float]) -> None:
    for name, value in values.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> dict:
    """A run whose student hardly moves, with prompts for both splits."""
    folder = tmp_path_factory.mktemp("known")
    teacher = known.write_model(folder / "teacher", known.TEACHER)
    student = known.write_model(folder / "student", known.STUDENT)
    return {
        "data": {
            "name": "text",
            "path": str(known.write_corpus(folder / "corpus.txt")),
            "length": 16,
            "validation": 4,
        },
        "student": {"name": "decoder", "path": str(student)},
        "teacher": {"path": (str(teacher),)},
        "method": {"name": "soft_target", "temperature": 1.0, "hard_weight": 0.0},
        "optimizer": {"name": "adamw", "learning_rate": 1e-7},
        "training": {"steps": 6, "batch_size": 8},
        "evaluation": {
            "every_epochs": 1.0,
            "batch_size": 8,
            "select": "exact_match",
            "prompts": str(known.write_questions(folder / "prompts.jsonl")),
            "test_prompts": str(known.write_questions(folder / "test.jsonl", count=3)),
            "max_new_tokens": known.MAX_NEW_TOKENS,
            "prompt_batch_size": 8,
            "metrics": ("rouge_l", "exact_match"),
        },
        "checkpoint": {"every_epochs": 0.0, "every_steps": 1},
        "logging": {"progress": "off", "tensorboard": True, "every_steps": 2},
        "mesh": {"data": 1},
    }


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    experiment.run(config, workdir)
    return workdir


def lines_of(workdir, split: str) -> list[dict]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


def test_scores_of_known_answers_stand_wherever_figures_stand(finished, capsys):
    lines = lines_of(finished, "validation")
    assert len(lines) > 1
    for line in lines:
        assert_figures(line, expected())
        assert "samples" not in line and line["perplexity"] > 1
    (board,) = (finished / "tensorboard").iterdir()
    assert b"validation/rouge_l" in board.read_bytes()
    result = json.loads((finished / "result.json").read_text())
    assert_figures(result["final"]["validation"], expected())
    assert_figures(result["final"]["test"], expected(3))
    # The scores of two prompts in six and of three in six: the first evaluation is as good as all.
    assert result["selected"]["step"] == lines[0]["step"]
    assert_figures(
        experiment.headline(result["final"]["test"]), {"rouge_l": expected(3)["rouge_l"]}
    )
    assert cli.main(["eval", f"--workdir={finished}", "--split=validation"]) == 0
    said = capsys.readouterr().out
    assert "6 prompts" in said
    for value in (expected()["rouge_l"], expected()["teacher_exact_match"]):
        assert f"{100 * value:.2f}" in said


def test_a_reader_sees_what_was_written(finished):
    final = json.loads((finished / "result.json").read_text())["final"]
    page = re.sub("</?mark>", "", (finished / "report.html").read_text())  # of what differs
    students, teachers = known.said(known.STUDENT), known.said(known.TEACHER)
    for split, count in (("validation", 5), ("test", 3)):
        samples = final[split]["samples"]
        assert len(samples) == count
        for number, sample in enumerate(samples):
            assert sample["prompt"].endswith(f"ask{number}")
            assert sample["reference"] == known.REFERENCES[number]
            assert sample["student"].strip() == students[number]
            assert sample["teacher"].strip() == teachers[number]
    assert students[0] in page and teachers[0] in page
    assert f"{expected(3)['rouge_l']:.2%}" in page


@pytest.mark.slow
def test_training_is_the_same_without_prompts_and_any_devices_answer_alike(
    config, finished, tmp_path
):
    plain = changed(config, evaluation__prompts="", evaluation__test_prompts="")
    plain["evaluation"]["select"] = "nll"
    experiment.run(plain, tmp_path / "plain")
    assert lines_of(tmp_path / "plain", "train") == lines_of(finished, "train")
    hashes = [
        json.loads((run / "result.json").read_text())["parameters_sha256"]
        for run in (tmp_path / "plain", finished)
    ]
    assert hashes[0] == hashes[1]
    assert "rouge_l" not in lines_of(tmp_path / "plain", "validation")[0]
    # That run had no prompts; they can be asked later, on other devices, some of them alone.
    asked = {
        name: str(config["evaluation"][name])
        for name in ("prompts", "max_new_tokens", "prompt_batch_size", "metrics")
    }
    asked = {f"evaluation.{name}": value for name, value in asked.items()}
    overrides = {**asked, "evaluation.max_prompts": "5", "mesh.data": "8"}
    values = experiment.evaluate(tmp_path / "plain", "validation", "final", overrides)
    assert_figures(values, expected(5))
    with pytest.raises(UsageError, match="config.evaluation.batch_size: 8 there, 4 now"):
        experiment.evaluate(tmp_path / "plain", "test", "final", {"evaluation.batch_size": "4"})


def written(path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_finished_run_answers_prompts_of_another_kind(finished, tmp_path):
    row = {"question": "ask0", "answer": "Past the river, past a mountain."}
    overrides = {
        "evaluation.test_prompts": written(tmp_path / "other.jsonl", row),
        "evaluation.fields": "gsm8k",  # which the run's own prompts do not have
        "evaluation.metrics": "rouge_l",  # by which the run did not select
    }
    values = experiment.evaluate(finished, "test", "selected", overrides)
    # "the river past a mountain" in "the river goes on past a mountain" and in the six words.
    assert_figures(values, {"prompts": 1, "rouge_l": 2 * 5 / (7 + 6)})
    assert "exact_match" not in values
    with pytest.raises(UsageError, match="evaluation.select: 'exact_match' there, 'nll' now"):
        experiment.evaluate(finished, "test", "final", {"evaluation.select": "nll"})


def test_a_stopped_run_resumes_to_the_same_figures(config, finished, tmp_path, monkeypatch):
    log = Session.log

    def log_and_interrupt(self, step, sums):
        log(self, step, sums)
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "log", log_and_interrupt)
        with pytest.raises(loop.Preempted):
            experiment.run(config, tmp_path / "run")
    fewer = known.write_questions(tmp_path / "fewer.jsonl", count=5)
    other = changed(config, evaluation__prompts=str(fewer))
    words = r"^evaluation.prompts: other prompts than the run began with \(5, .*\); expected 6, "
    with pytest.raises(UsageError, match=words):
        experiment.run(other, tmp_path / "run")
    same = known.write_questions(tmp_path / "same.jsonl")
    experiment.run(changed(config, evaluation__prompts=str(same)), tmp_path / "run")
    ours, theirs = ((run / "metrics.jsonl").read_bytes() for run in (tmp_path / "run", finished))
    assert ours == theirs


@pytest.mark.slow
def test_a_student_learns_the_answers_of_its_teacher(config, tmp_path):
    config = changed(
        config,
        optimizer__learning_rate=0.01,
        training__steps=60,
        training__remat="full",
        evaluation__every_epochs=10.0,
        evaluation__max_prompts=3,
        evaluation__select="rouge_l",
        checkpoint__every_steps=0,
    )
    experiment.run(config, tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    figures = result["final"]["validation"]
    assert_figures(figures, {"teacher_rouge_l": np.mean(ROUGE["teacher"][:3])})
    assert figures["rouge_l"] == figures["teacher_rouge_l"]
    assert figures["exact_match"] == figures["teacher_exact_match"]
    taught = [sample["student"] for sample in figures["samples"]]
    assert taught == [sample["teacher"] for sample in figures["samples"]]
    lines = lines_of(tmp_path / "run", "validation")
    scores = [line["rouge_l"] for line in lines]
    best = int(np.argmax(scores))
    assert scores[0] < scores[-1] and best < len(scores) - 1
    assert result["selected"]["step"] == lines[best]["step"]


def test_conversations_and_the_fields_of_a_set_are_asked(config, tmp_path):
    known.write_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("<s> {{ messages[-1].content }}")
    turns = [
        {"role": "user", "content": "it goes ask1"},
        {"role": "assistant", "content": "#### 18"},
    ]
    plain = {"question": "ask2", "answer": "Warm water!", "prompt": "unread", "response": "unread"}
    for rows, fields, student in (
        (({"messages": turns},), "named", {"rouge_l": 2 / 4, "exact_match": 1.0}),
        ((plain,), "gsm8k", {"rouge_l": 2 * 2 / (4 + 2), "exact_match": 0.0}),
    ):
        values = {
            "data__tokenizer": str(tmp_path),
            "evaluation__prompts": written(tmp_path / f"{fields}.jsonl", *rows),
            "evaluation__test_prompts": "",
            "evaluation__fields": fields,
        }
        parts = experiment.prepare(configs.resolve(changed(config, **values)))
        found = parts.evaluators["validation"](parts.initial.params, {})
        assert_figures(found, {"prompts": 1, **student})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "ask0"}, "line 1: 'response' or 'completion' is missing; expected"),
        ({"prompt": "ask0", "response": 3}, "line 1: 'response' or 'completion' is 3; expected"),
        ({"prompt": "ask0", "response": "?!"}, "line 1: the response has no word of [a-z0-9]"),
        ({"prompt": "ask0", "response": "the"}, "line 1: the response has no answer"),
        ({"prompt": "ask0", "response": "7 ####"}, "line 1: the response has no answer"),
        ({"response": "7"}, 'line 1: has [\'response\']; expected "messages", "prompt" or "text"'),
        (
            {"messages": [{"role": "user", "content": "ask0"}]},
            "line 1: ends with no message of the assistant's; expected a response",
        ),
        ({"messages": 3}, "line 1: messages is 3"),
    ],
)
def test_lines_that_cannot_be_scored_are_refused(config, tmp_path, row, words):
    path = written(tmp_path / "prompts.jsonl", row)
    for key in ("prompts", "test_prompts"):
        values = {f"evaluation__{key}": path}
        with pytest.raises(UsageError) as caught:
            experiment.run(changed(config, **values), tmp_path / "run")
        assert str(caught.value).startswith(f"evaluation.{key}={path!r}: {words}")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"prompts": "/no/such.jsonl"},
            "evaluation.prompts='/no/such.jsonl': cannot be read: No s",
        ),
        ({"metrics": ()}, "evaluation.metrics=(): expected some of rouge_l, exact_match"),
        ({"metrics": "rouge"}, "evaluation.metrics='rouge': expected names among rouge_l, exact_m"),
        ({"metrics": "rouge_l"}, "evaluation.select='exact_match': evaluation.prompts='"),
        ({"prompts": ""}, "evaluation.select='exact_match': evaluation.prompts=''"),
        ({"max_new_tokens": 0}, "evaluation.max_new_tokens=0: expected an integer >= 1"),
        ({"fields": "doly"}, "evaluation.fields='doly': expected same, named, one of alpaca"),
    ],
)
def test_keys_that_do_not_fit_are_refused(config, values, words):
    values = {f"evaluation__{name}": value for name, value in values.items()}
    with pytest.raises(UsageError) as caught:
        experiment.prepare(configs.resolve(changed(config, **values)))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("short", ["student", "teacher"])
def test_a_prompt_that_leaves_no_room_is_refused(config, short):
    """The third one has 8 tokens, and the answer up to 8 more."""
    parts = experiment.prepare(configs.resolve(config))
    networks = parts.recipe.comparison
    network = getattr(networks, short)
    limited = dataclasses.replace(network.config, positions="learned", max_positions=15)
    network = dataclasses.replace(network, config=limited)
    changes = {"student": network} if short == "student" else {"teachers": (network,)}
    networks = dataclasses.replace(networks, **changes)
    tokenizer = text.load_tokenizer(config["student"]["path"])
    words = (
        r"^evaluation.prompts=.*: line 3: 8 tokens and a response of up to 8; expected at most 15"
    )
    with pytest.raises(UsageError, match=words):
        open_prompts(parts.config, tokenizer, networks, parts.frozen, parts.mesh)
    skipping = configs.resolve(changed(config, evaluation__long_prompts="skip"))
    found = open_prompts(skipping, tokenizer, networks, parts.frozen, parts.mesh)["validation"]
    kept = found(parts.initial.params)
    asked = parts.config, tokenizer, parts.recipe.comparison, parts.frozen, parts.mesh
    lengths = [len(ids) for ids in open_prompts(*asked)["validation"].prompts.ids]
    fitting = [number for number, length in enumerate(lengths) if length + 8 <= 15]
    left_out = [f"line {n}" for n in range(1, 7) if n - 1 not in fitting]
    assert kept["prompts"] == len(fitting) < len(lengths) == 6 and "line 3" in left_out
    assert f"{len(left_out)} of 6 prompts are left out" in found.prompts.note
    assert found.prompts.note.endswith(f"context, 15: {', '.join(left_out)}")
    for name, of in (("rouge_l", "student"), ("teacher_rouge_l", "teacher")):
        assert kept[name] == pytest.approx(np.mean([ROUGE[of][i] for i in fitting]))


def test_prompts_that_do_not_fit_the_run_are_refused(config, tmp_path):
    for values, words in (
        ({"mesh__data": 8, "evaluation__prompt_batch_size": 9}, "evaluation.prompt_batch_size=9: "),
        (
            {"data__validation": 0, "data__test_path": config["data"]["path"]},
            "evaluation.prompts='",
        ),
    ):
        with pytest.raises(UsageError, match=f"^{words}"):
            experiment.prepare(configs.resolve(changed(config, **values)))
    digits = {"student": {"name": "mlp"}, "evaluation": {"prompts": "x.jsonl"}}
    with pytest.raises(
        UsageError, match="evaluation.prompts='x.jsonl': has no meaning for data.na"
    ):
        configs.resolve(digits)
