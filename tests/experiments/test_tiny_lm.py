"""The study of tiny language models: its text, its plan, its tables, and a tiny run of it."""

import json
import pathlib

import pytest

from distill_jax.data import text as texts
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from experiments import markers
from experiments.tiny_lm import corpus, plan, report, run


@pytest.fixture(scope="module")
def source(shared_data) -> pathlib.Path:
    try:
        return corpus.data_folder(str(shared_data))
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory) -> corpus.Corpus:
    return corpus.prepare(source, tmp_path_factory.mktemp("tiny_lm") / "text", 400)


def documents(prepared, name) -> list[str]:
    lines = (prepared.folder / name).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == prepared.documents[name] > 0
    return [row.get("text") or row["prompt"] + row["response"] for row in rows]


def test_what_is_held_out_trains_nothing_and_the_rest_fits_into_a_row(prepared):
    names = (corpus.TEACHER, corpus.STUDENT, corpus.FEW, corpus.VALID, corpus.TEST)
    teacher, student, few, valid, test = (set(documents(prepared, name)) for name in names)
    assert few < student < teacher
    assert not (valid | test) & teacher
    assert len(few) == -(-len(student) // corpus.SCARCE)
    tokenizer = texts.load_tokenizer(prepared.tokenizer)
    for name in names[1:]:
        rows = texts.tokenize(
            texts.read(prepared.folder / name), tokenizer, eos=True, prompt_loss=False
        )
        for begin, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True):
            learned = rows.loss_mask[begin:end].sum()
            assert learned <= corpus.HALF and end - begin - learned <= corpus.HALF


def test_the_same_source_gives_the_same_bytes(source, prepared, tmp_path):
    again = corpus.prepare(source, tmp_path / "text", 400)
    assert again.fingerprint == prepared.fingerprint
    assert again.documents == prepared.documents
    fewer = corpus.prepare(source, tmp_path / "fewer", 300)
    assert fewer.fingerprint != prepared.fingerprint


def test_answers_that_were_cut_off_are_not_kept(tmp_path):
    rows = [
        {"prompt": "a", "response": " b", "finish": "stop", "tokens": [3, 2]},
        {"prompt": "a", "response": " c", "finish": "length", "tokens": [3, 4]},
        {"prompt": "a", "response": "", "finish": "stop", "tokens": [2]},
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = corpus.finished(tmp_path / "all.jsonl", tmp_path / "kept.jsonl")
    assert found == {"written": 3, "kept": 1}
    kept = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert kept == [{"prompt": "a", "response": " b"}]


def test_students_differ_in_what_their_arm_says_alone(prepared):
    documents = {**prepared.documents, plan.RESPONSES: 100}
    text = corpus.Corpus(
        prepared.folder, prepared.stories, prepared.tokenizer, documents, prepared.fingerprint
    )
    found = {
        arm.name: plan.student_config(arm, 1, text, pathlib.Path("runs/teacher"), 8)
        for arm in plan.ARMS
    }
    hard = found["hard"]
    for config in found.values():
        with config.unlocked():
            config.training.epochs = hard.training.epochs  # training.steps takes their place
        for section in ("student", "optimizer", "training", "teacher", "mesh"):
            assert config[section] == hard[section]
        assert config.training.steps == 8 and config.training.batch_size == plan.ROWS
        assert config.data.packing == "single" and config.data.length == hard.data.length
        assert config.data.test_path == hard.data.test_path
        # Warm-up and evaluations at the same steps, however long an epoch is.
        rows = documents[pathlib.Path(config.data.path).name]
        per_step = plan.ROWS / rows
        assert config.evaluation.every_epochs == pytest.approx(8 / plan.EVALUATIONS * per_step)
        assert config.schedule.warmup_epochs == pytest.approx(plan.WARMUP * 8 * per_step)
    methods = {name: config.method.name for name, config in found.items()}
    assert methods["hard"] == methods["sequence"] == methods["few_hard"] == "supervised"
    assert methods["reverse_kl"] == "reverse_kl"
    assert {name for name, config in found.items() if config.rollout.probability} == {"on_policy"}
    assert {name for name, config in found.items() if config.method.hard_weight} == {
        "hard", "sequence", "few_hard", "logits_and_hard",
    }  # fmt: skip
    for name in ("forward_kl", "reverse_kl", "jsd", "on_policy", "logits_and_hard"):
        assert found[name].method.temperature == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps=2"], "--steps=2: expected an integer >= 4"),
        (["--seeds=0"], "--seeds=0: expected an integer >= 1"),
        (["--documents=5"], "--documents=5: expected an integer >= 100"),
        (["--data=/no/such"], "--data=/no/such: has no text/gsm8k_train.jsonl"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, arguments, message):
    workdir = tmp_path / "study"
    assert run.main([f"--workdir={workdir}", *arguments], home=tmp_path / "home") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_readme_says_what_the_results_say():
    """The committed table is the one that the committed results give."""
    summary = json.loads((run.HERE / "results" / report.SUMMARY).read_text())
    readme = (run.HERE / "README.md").read_text()
    assert f"{markers.BEGIN}\n{report.block(summary)}{markers.END}" in readme
    assert (run.HERE / "results" / report.CURVES).exists() and not summary["label"]
    seeds = {(one["arm"], one["seed"]) for one in summary["runs"]}
    assert seeds == {(arm.name, seed) for arm in plan.ARMS for seed in range(plan.SEEDS)}


def test_a_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("Prose that somebody wrote.\n")
    with pytest.raises(UsageError, match="expected the markers"):
        report.write_readme({}, readme)
    assert readme.read_text() == "Prose that somebody wrote.\n"


@pytest.mark.slow
def test_a_tiny_study_runs_resumes_and_reports(source, tmp_path, monkeypatch):
    small = [plan.ARM[name] for name in ("hard", "sequence", "on_policy")]
    monkeypatch.setattr(plan, "ARMS", tuple(small))
    root, home = tmp_path / "study", tmp_path / "home"
    command = [
        f"--workdir={root}",
        f"--data={source}",
        "--steps=4",
        "--teacher-steps=24",
        "--seeds=1",
        "--documents=100",
    ]
    assert run.main(command, home=home) == 0
    assert not home.exists()  # a trial does not touch the study's own folder
    folder = root / "report"
    summary = json.loads((folder / "results" / report.SUMMARY).read_text())
    readme = (folder / "README.md").read_text()
    assert [one["arm"] for one in summary["runs"]] == [arm.name for arm in small]
    assert "A trial, not a result: 4 steps, 24 teacher steps, 1 seeds" in readme
    assert str(tmp_path) not in readme and str(tmp_path) not in json.dumps(summary)
    for arm in small:
        assert arm.title in readme
    assert (folder / "results" / report.CURVES).stat().st_size > 1000
    for one in summary["runs"]:
        assert [point["step"] for point in one["curve"]] == [1, 2, 3, 4]
        assert one["curve"][-1]["nll"] == one["test"]["nll"] > summary["teacher"]["test"]["nll"]
        assert 0 < one["test"]["kl"] and 0 <= one["test"]["agreement"] <= 1
    assert set(summary["samples"][0]) >= {"prompt", "reference", "teacher", "hard", "on_policy"}

    # A run that lost its result resumes from its checkpoint; no other run is changed.
    (root / "hard-seed0" / "result.json").unlink()
    began = []
    prepare = experiment.prepare
    monkeypatch.setattr(
        experiment, "prepare", lambda config: began.append(config) or prepare(config)
    )
    assert run.main(command, home=home) == 0
    assert [config.method.name for config in began] == ["supervised"]
    again = json.loads((folder / "results" / report.SUMMARY).read_text())
    assert again["samples"] == summary["samples"] and again["written"] == summary["written"]
    for old, new in zip(summary["runs"], again["runs"], strict=True):
        assert old["parameters_sha256"] == new["parameters_sha256"]
        assert old["test"] == new["test"]

    # The report alone is made again from the summary, around the prose that stands there.
    (home / "results").mkdir(parents=True)
    (home / "results" / report.SUMMARY).write_text(json.dumps(again))
    (home / "README.md").write_text(f"Before\n{markers.BEGIN}\nold\n{markers.END}\nAfter\n")
    assert run.main(["--report-only"], home=home) == 0
    written = (home / "README.md").read_text()
    assert written.startswith("Before\n") and written.endswith("\nAfter\n")
    assert report.block(again) in written and "\nold\n" not in written
