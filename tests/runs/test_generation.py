"""From prompts to files: what the lines say, resuming to the same bytes, and what is refused."""

import dataclasses
import json
import shutil

import generation_reference as reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_generations import lines_of, settings_for, write

from distill_jax import models, parallel
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.runs import generation as generate
from distill_jax.runs.generation_settings import Settings
from distill_jax.storage import sharded


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return reference.small_teacher(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    return settings_for(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="module")
def done(settings, teacher, tmp_path_factory):
    """The workdir of a run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("run") / "text"
    summary = write(settings, teacher, workdir)
    assert summary["path"] == str(workdir / "responses.jsonl")
    lines = lines_of(workdir)
    assert summary["responses"] == len(lines) == 14
    assert summary["tokens"] == sum(len(line["tokens"]) for line in lines)
    assert summary["stopped"] == sum(line["finish"] == "stop" for line in lines)
    return workdir


def test_a_teacher_in_shards_writes_the_same(settings, teacher, done, tmp_path):
    shards = dataclasses.replace(settings, fsdp=2, tensor=2, batch_size=4)
    generate.write(shards, teacher, tmp_path / "run", note=lambda line: None)
    assert len(jax.devices()) == 8
    found, expected = lines_of(tmp_path / "run"), lines_of(done)
    assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]


def test_a_teacher_of_8_bits_writes_what_its_rounded_weights_say(settings, teacher, done, tmp_path):
    settings = dataclasses.replace(settings, temperature=0.0, samples=1)
    model = language.load(teacher)
    params = dict(models.split(model)[1])
    for name, value in params.items():
        if name.endswith("/kernel"):
            scale = np.abs(np.float64(value)).max(1, keepdims=True) / 127
            params[name] = jnp.asarray(np.rint(value / scale) * scale, jnp.float32)
    rounded = tmp_path / "rounded"
    shutil.copytree(teacher, rounded)
    weights = language.from_params(model.config, params)
    language.save(tmp_path / "weights", weights)
    shutil.copy(tmp_path / "weights" / "model.safetensors", rounded)
    (rounded / "SHA256SUMS").unlink()  # of the weights as they were
    write(dataclasses.replace(settings, quantize="int8"), teacher, tmp_path / "a")
    write(settings, rounded, tmp_path / "b")
    found, expected = lines_of(tmp_path / "a"), lines_of(tmp_path / "b")
    assert [line["tokens"] for line in found] == [line["tokens"] for line in expected]
    whole = models.fingerprint_of(model.config.definition(), models.split(model)[1])
    assert lines_of(done)[0]["teacher"]["fingerprint"] == whole  # else the next line says nothing
    assert found[0]["teacher"]["fingerprint"] != whole
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["teachers"][0]["quantize"] == "int8"
    with pytest.raises(UsageError):
        write(settings, teacher, tmp_path / "a")


def test_a_line_says_what_was_drawn_from_whom_and_how(done, teacher):
    lines = lines_of(done)
    tokenizer = text.load_tokenizer(teacher)
    ends = {tokenizer.eos, *range(40, 60)}
    assert [(line["number"], line["sample"]) for line in lines] == [
        (number, sample) for number in range(7) for sample in range(2)
    ]
    for line in lines:
        assert line["sampler"] == {
            "temperature": 0.9,
            "top_k": 0,
            "top_p": 0.98,
            "max_new_tokens": 12,
        }
        assert line["seed"] == 3 and line["teacher"]["license"] == "apache-2.0"
        assert len(line["teacher"]["fingerprint"]) == 64
        stopped = line["tokens"][-1] in ends
        assert line["finish"] == ("stop" if stopped else "length")
        assert stopped or len(line["tokens"]) == 12
        assert not ends & set(line["tokens"][:-1])
        assert max(line["tokens"]) < tokenizer.vocab_size
        said = tokenizer.decode(line["tokens"][:-1] if stopped else line["tokens"])
        assert line["response"] == said
    assert lines[0]["prompt"] == "The quick brown fox" and lines[2]["prompt"] == "Hello"
    assert lines[6]["prompt"] == "<s>[user]Say something.</s>[assistant]"
    assert lines[6]["messages"][-1] == {"role": "assistant", "content": lines[6]["response"]}
    assert {line["finish"] for line in lines} == {"stop", "length"}
    assert len({tuple(line["tokens"]) for line in lines}) > 12


def test_the_tokens_are_those_of_their_prompt_alone(done, settings, teacher):
    """The draws of transformers' rule, step by step in float64, with the keys that are promised."""
    lines = lines_of(done)
    tokenizer = text.load_tokenizer(teacher)
    model = language.load(teacher)
    line = lines[3]
    prompt = tokenizer.encode("Hello")
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 1), 1)
    written = []
    for position in range(len(line["tokens"])):
        logits = reference.logits_of(model, prompt + written)[-1, : tokenizer.vocab_size] / 0.9
        chances = np.exp(logits - logits.max())
        chances /= chances.sum()
        above = np.array([chances[chances > chance].sum() for chance in chances])
        # The draw is the largest of the logits with Gumbel noise, over the padded vocabulary.
        noise = jax.random.gumbel(jax.random.fold_in(key, position), (model.config.vocab_size,))
        noisy = np.where(above < 0.98, logits + np.asarray(noise)[: len(logits)], -np.inf)
        written.append(int(noisy.argmax()))
    assert written == line["tokens"]


def test_what_is_written_can_be_trained_on(done, teacher):
    tokenizer = text.load_tokenizer(teacher)
    records = list(text.read(done / "responses.jsonl"))
    assert len(records) == 14 and records[6].messages and records[0].prompt
    documents = text.tokenize(records, tokenizer, chat=text.load_chat_template(tokenizer))
    assert len(documents) == 14 and documents.loss_mask.any()


def test_raw_prompts_are_written_by_the_template_where_it_is_wanted(teacher, tmp_path):
    settings = settings_for(tmp_path, samples=1, shard=8, max_new_tokens=2)
    notes: list[str] = []
    write(settings, teacher, tmp_path / "raw", notes)
    assert any("raw" in note and "generate.chat=True" in note for note in notes)
    notes.clear()
    write(dataclasses.replace(settings, chat=True), teacher, tmp_path / "chat", notes)
    assert not any("given raw" in note for note in notes)
    template = text.load_chat_template(text.load_tokenizer(teacher))
    for raw, line in zip(lines_of(tmp_path / "raw"), lines_of(tmp_path / "chat"), strict=True):
        user = raw.get("messages", [{"role": "user", "content": raw["prompt"]}])[:1]
        assert line["messages"][0] == user[0]
        assert line["prompt"] == template.render(user, opening=True)


def test_the_manifest_tells_versions_teacher_and_shards(done):
    manifest = json.loads((done / "manifest.json").read_text())
    assert manifest["made_from"]["generate.top_p"] == 0.98
    assert "jax" in manifest["libraries"] and manifest["resumed"] == []
    assert manifest["teachers"][0]["license"] == "apache-2.0"
    assert manifest["data"]["prompts"] == 7
    assert [entry["lines"] for entry in manifest["shards"].values()] == [4, 4, 4, 2]


def test_a_second_run_writes_nothing_anew(done, settings, teacher):
    before = {path.name: path.read_bytes() for path in done.glob("responses*")}
    notes = []
    write(settings, teacher, done, notes)
    assert {path.name: path.read_bytes() for path in done.glob("responses*")} == before
    assert [note for note in notes if "given raw" not in note] == []
    assert len(json.loads((done / "manifest.json").read_text())["resumed"]) == 1


def test_two_devices_write_the_same(done, settings, teacher, tmp_path):
    mesh = parallel.make_mesh(data=2, devices=jax.devices()[:2])
    generate.write(settings, teacher, tmp_path / "run", note=lambda line: None, mesh=mesh)
    written = (tmp_path / "run" / "responses.jsonl").read_bytes()
    assert written == (done / "responses.jsonl").read_bytes()


def test_torn_and_missing_shards_are_made_again(done, settings, teacher, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for path in done.iterdir():
        (workdir / path.name).write_bytes(path.read_bytes())
    (workdir / "responses.jsonl").unlink()
    (workdir / "responses-00003.jsonl").unlink()
    torn = workdir / "responses-00001.jsonl"
    torn.write_bytes(torn.read_bytes()[:-40])
    (workdir / ".responses-00002.jsonl.abc").write_text("half")
    notes = []
    write(settings, teacher, workdir, notes)
    damaged = [note for note in notes if "is damaged or missing" in note]
    assert len(damaged) == 2 and len(notes) == 5  # with the hint about raw prompts
    assert sorted(p.name for p in workdir.iterdir()) == sorted(p.name for p in done.iterdir())
    for path in done.glob("responses*"):
        assert (workdir / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(top_p=0.5), r"holds responses with generate.top_p=0.98, not 0.5; expected the same"),
        (dict(seed=4), "generate.seed=3, not 4"),
        (dict(samples=1), "generate.samples=2, not 1"),
        (dict(licence="mit"), "teacher={.*apache-2.0.*}, not {.*mit.*}|generate.licence='', not"),
    ],
)
def test_a_workdir_of_another_config_is_refused(done, settings, teacher, changes, message):
    before = (done / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=f"--workdir=.*: .*{message}"):
        write(dataclasses.replace(settings, **changes), teacher, done)
    assert (done / "manifest.json").read_bytes() == before


def test_other_prompts_and_teachers_are_refused(done, settings, teacher, tmp_path):
    other = reference.small_teacher(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="holds responses with teacher="):
        write(settings, other, done)
    (tmp_path / "p.jsonl").write_text('{"prompt": "another"}\n')
    with pytest.raises(UsageError, match="holds responses with prompts="):
        write(dataclasses.replace(settings, prompts=str(tmp_path / "p.jsonl")), teacher, done)
    # The same prompts and teacher elsewhere are the same.
    again = settings_for(tmp_path)
    write(again, teacher, done)


def test_folders_of_something_else_are_refused(settings, teacher, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds 'notes.txt' but no manifest.json; expected"):
        write(settings, teacher, tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="manifest.json is damaged; expected"):
        write(settings, teacher, tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 7}')
    with pytest.raises(UsageError, match="has format 7; this version reads 1"):
        write(settings, teacher, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_what_does_not_fit_is_refused_before_anything_is_written(teacher, tmp_path):
    settings = settings_for(tmp_path)
    workdir = tmp_path / "run"

    def refused(message, settings=settings, path=teacher):
        with pytest.raises(UsageError, match=message):
            write(settings, path, workdir)
        assert not workdir.exists()

    refused("teacher.path='.*none': ", path=tmp_path / "none")
    refused("generate.stops=.*: expected ids in", dataclasses.replace(settings, stops=(339,)))
    missing = dataclasses.replace(settings, tokenizer=str(tmp_path / "none"))
    refused("generate.tokenizer='.*none': no such file", missing)
    (tmp_path / "empty.jsonl").write_text('{"prompt": ""}\n')
    empty = dataclasses.replace(settings, prompts=str(tmp_path / "empty.jsonl"))
    refused("prompts='.*empty.jsonl': line 1: no token; expected text", empty)
    mesh = parallel.make_mesh(data=4, devices=jax.devices()[:4])
    with pytest.raises(UsageError, match="generate.batch_size=2: expected a multiple of 4"):
        generate.write(settings, teacher, workdir, mesh=mesh)


def test_prompts_beyond_the_context_are_skipped_where_it_is_wanted(teacher, tmp_path):
    """Counted, named by line; every other line is what it is without them."""
    for name, third in (("short", "x"), ("long", "word " * 2048)):
        rows = [{"prompt": "Hello"}, {"prompt": "é"}, {"prompt": third}, {"prompt": "last"}]
        content = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(content)
    settings = settings_for(tmp_path, shard=1, prompts=str(tmp_path / "short.jsonl"))
    long = dataclasses.replace(settings, prompts=str(tmp_path / "long.jsonl"))
    with pytest.raises(UsageError, match=r"long.jsonl': line 3: \d+ tokens and a response of up"):
        write(long, teacher, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    notes: list[str] = []
    summary = write(dataclasses.replace(long, long="skip"), teacher, tmp_path / "run", notes)
    (note,) = [note for note in notes if "left out" in note]
    assert "long.jsonl': 1 of 4 prompts are left out" in note and note.endswith(" 2048: line 3")
    assert (summary["skipped"], summary["responses"]) == (1, 6)
    write(settings, teacher, tmp_path / "short")
    kept = [line for line in lines_of(tmp_path / "short") if line["number"] != 2]
    assert lines_of(tmp_path / "run") == kept
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["data"]["left_out"] == [2]
    # The same command finds all of it done, the empty shard too.
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("responses*")}
    again = write(dataclasses.replace(long, long="skip"), teacher, tmp_path / "run")
    assert again == summary
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").glob("responses*")} == before
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "word " * 2048}) + "\n")
    with pytest.raises(UsageError, match="all 1 prompts with a response of up to 12 tokens exceed"):
        write(dataclasses.replace(long, long="skip"), teacher, tmp_path / "none")


def test_a_full_disk_is_one_line(done, settings, teacher, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    whole = sharded.write_atomically

    def full(path, content):
        if path.name == "responses-00001.jsonl":
            raise OSError(28, "No space left on device")
        whole(path, content)

    monkeypatch.setattr(sharded, "write_atomically", full)
    with pytest.raises(UsageError, match="No space left on device; 1 of 4 shards are whole"):
        write(settings, teacher, workdir)
    monkeypatch.undo()
    write(settings, teacher, workdir)
    assert (workdir / "responses.jsonl").read_bytes() == (done / "responses.jsonl").read_bytes()
