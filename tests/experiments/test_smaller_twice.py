"""The study of distilling and quantizing: its configs, its table, and its refusals."""

import json

import pytest

from distill_jax import config as configs
from distill_jax.errors import UsageError
from experiments.smaller_twice import plan, report, run


def _record(name: str, model: str, kind: str, perplexity: float, size: int, **more) -> dict:
    row = dict(name=name, model=model, type=kind, aware=False, kl=0.1, agreement=0.5, rouge_l=20.0)
    return row | dict(perplexity=perplexity, bytes=size, tokens=8192) | more


SUMMARY = {
    "command": "python -m experiments.smaller_twice.run",
    "revision": "abc",
    "versions": {},
    "tokens": 8192,
    "test_tokens": 2048,
    "prompts": 3,
    "rounds": 1,
    "planned": 11,
    "rows": [
        _record("teacher-f16", "teacher", "f16", 20.0, 200),
        _record("12-text-seed0-q4_0", "12-text-seed0", "q4_0", 80.0, 50, rouge_l=10.0),
        _record("12-text-seed0-q4_0-aware", "12-text-seed0", "q4_0", 60.0, 50, aware=True),
    ],
    "speeds": {
        name: dict(tokens_per_second=speed, prompt_tokens_per_second=1.0, memory_mib=300.0)
        for name, speed in (
            ("teacher-f16", 10.0),
            ("12-text-seed0-q4_0", 40.0),
            ("12-text-seed0-q4_0-aware", 40.0),
        )
    },
}


def test_the_table_names_its_budget_and_what_each_step_bought(tmp_path):
    report.save(SUMMARY, tmp_path)
    readme = (tmp_path / "README.md").read_text()
    assert "8,192 tokens each, of the 1,000,000 that are planned: a trial" in readme
    assert "3 of 11 planned files" in readme
    sentence = "12 layers, the text alone: int4 (Q4_0), after training: 50% of the teacher's next"
    assert (
        f"{sentence} tokens, 50% of its ROUGE-L, at 25% of its bytes and 25% of its time" in readme
    )
    assert "int4 (Q4_0), quantization-aware" in readme
    assert (tmp_path / "results" / "bytes.svg").stat().st_size > 1000


def test_the_table_is_of_the_largest_budget(tmp_path):
    report.save(SUMMARY | {"tokens": 1_000_000}, tmp_path)
    report.save(SUMMARY, tmp_path)
    assert "Students of 1,000,000 tokens each." in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("larger", "kept"), [(False, [(1, 9), (2, 5), (4, 3)]), (True, [(4, 3)])])
def test_the_frontier_has_what_nothing_beats(larger, kept):
    points = [(2, 5), (1, 9), (3, 6), (4, 3), (2, 8)]
    assert report.frontier(points, larger=larger) == kept


def test_students_have_the_first_and_the_last_layer_and_equal_tokens(tmp_path):
    students = list(plan.students(1))
    assert [student.layers for student in students] == [12, 12, 18, 18, 24, 24]
    for student in students:
        assert student.chosen[0] == 0 and student.chosen[-1] == 29
        assert len(set(student.chosen)) == student.layers
        steps = {}
        for make in (plan.train_command, plan.aware_command):
            verb, file, _, *overrides = make(tmp_path, student, 1_000_000)
            assert verb == "train"
            keys = dict(text.removeprefix("--config.").split("=", 1) for text in overrides)
            resolved = configs.load(file.removeprefix("--config="), keys)
            steps[make] = resolved.training.steps
            assert bool(resolved.teacher.store) == (student.method == "stored")
        assert steps == {plan.train_command: 488, plan.aware_command: 122}
        assert resolved.student.quantize == "q4_0"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--tokens=0"], "--tokens=0"),
        (["--sizes=31"], "--sizes=31"),
        (["--gguf=/no/such"], "--gguf=/no/such"),
        (["--data=/no/such"], "--data=/no/such"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(flags, words, tmp_path, capsys):
    for name in plan.SOURCES:
        (tmp_path / name).write_text("x")
    root = tmp_path / "runs"
    arguments = [f"--workdir={root}", f"--data={tmp_path}", *flags]
    assert run.main(arguments, home=tmp_path) == 2
    assert words in capsys.readouterr().err
    assert not root.exists()


def test_the_text_is_in_the_template_of_the_teacher(tmp_path):
    import small_texts

    small_texts.write_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    record = {"instruction": "Which?", "input": "A or B", "output": "A."}
    (tmp_path / "dolly_dev.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "wikitext2_valid.txt").write_text(" = One = \n text\n = Two = \n more\n")
    plan.write_texts(tmp_path, tmp_path, tmp_path / "text")
    lines = (tmp_path / "text" / "train.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert texts[0] == "<s>Which?\n\nA or B</s><s>A.</s>"
    assert texts[1:] == [" = One = \n text", " = Two = \n more\n"]


def test_a_report_needs_results(tmp_path):
    with pytest.raises(UsageError, match="tokens-N.json"):
        report.write(tmp_path)


@pytest.mark.slow
def test_the_commands_lead_to_a_file_with_the_codes_that_were_trained(tmp_path, monkeypatch):
    """The study's own commands, on a tiny teacher of as many layers."""
    import small_texts

    from distill_jax import cli
    from distill_jax.models import language
    from distill_jax.models.files import gguf_file

    config = small_texts.TEACHER.replace(
        dim=32, heads=2, head_dim=16, mlp_dim=32, layers=plan.TEACHER_LAYERS, max_positions=256
    )
    language.save(tmp_path / "teacher", language.create(config))
    small_texts.write_tokenizer(tmp_path / "teacher")
    (tmp_path / "text").mkdir()
    lines = [json.dumps({"text": " ".join(small_texts.sentence(300, seed=i))}) for i in range(120)]
    (tmp_path / "text" / "train.jsonl").write_text("\n".join(lines))
    student, tokens = plan.Student(2, "stored"), 2 * plan.LENGTH * plan.ROWS * plan.AWARE_PART
    for command in (
        plan.store_command(tmp_path, tokens),
        plan.train_command(tmp_path, student, tokens),
        plan.aware_command(tmp_path, student, tokens),
    ):
        assert cli.main(command) == 0, command
    result = json.loads((tmp_path / f"{student.name}-aware" / "result.json").read_text())
    assert result["final"]["step"] == 2
    file = tmp_path / "aware.gguf"
    flags = [f"--workdir={tmp_path / student.name}-aware", "--format=gguf", f"--out={file}"]
    assert cli.main(["export", *flags, "--type=q4_0"]) == 0
    with gguf_file.File(file, key="FILE") as opened:
        types = {name: tensor.type for name, tensor in opened.tensors.items()}
    assert types["blk.1.ffn_down.weight"] == "Q4_0" and types["token_embd.weight"] == "Q8_0"
