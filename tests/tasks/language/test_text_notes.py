"""Text that would be learned wrongly: ids that are not shared, rows without a label, two ends."""

import json

import numpy as np
import pytest
import small_texts
import tokenizers
from small_runs import changed

from distill_jax import config as configs
from distill_jax import generation
from distill_jax.data import text
from distill_jax.errors import UsageError
from distill_jax.runs import experiment
from distill_jax.tasks import precompute


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return small_texts.make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def larger(teacher, tmp_path_factory):
    """The teacher's tokenizer with one more token, 300."""
    folder = tmp_path_factory.mktemp("larger")
    tokenizer = tokenizers.Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_bytes((teacher / "tokenizer_config.json").read_bytes())
    return folder


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def plain(count):
    return [{"prompt": "the small", "response": f" token {i} learns slowly"} for i in range(count)]


@pytest.mark.parametrize("method", ["soft_target", "supervised"])
def test_an_id_that_is_not_shared_is_refused(teacher, larger, tmp_path, method):
    path = write(tmp_path / "t.jsonl", [*plain(20), {"prompt": "a", "response": " <tool> b"}])
    config = changed(
        small_texts.config(teacher, path), data__tokenizer=str(larger), method__name=method
    )
    if method == "supervised":
        del config["method"]["temperature"]
    refusing = [experiment.prepare]
    if method == "soft_target":
        refusing.append(lambda resolved: precompute(resolved, tmp_path / "store"))
    for refused in refusing:
        with pytest.raises(
            UsageError, match=r"1 of 21 documents .* 300 \('<tool>'\) in document 21"
        ):
            refused(configs.resolve(config))
    assert not (tmp_path / "store").exists()
    fine = write(tmp_path / "fine.jsonl", plain(24))
    experiment.prepare(configs.resolve(changed(config, data__path=str(fine))))
    prompts = write(tmp_path / "p.jsonl", [{"prompt": "<tool> a", "response": "b"}])
    asked = changed(config, data__path=str(fine), evaluation__test_prompts=str(prompts))
    asked = changed(asked, evaluation__max_new_tokens=4)
    with pytest.raises(UsageError, match=r"test_prompts.*line 1: has id 300 \('<tool>'\)"):
        experiment.prepare(configs.resolve(asked))


def test_rows_without_a_label_are_left_out_and_said(teacher, tmp_path):
    long = {"prompt": "the small large student " * 12, "response": " learns"}
    path = write(tmp_path / "t.jsonl", [*plain(24), *[long] * 8])
    config = changed(
        small_texts.config(teacher, path), data__packing="single", data__length=16, data__long="cut"
    )
    parts = experiment.prepare(configs.resolve(config))
    rows = parts.feed.rows
    masks = rows.batch(np.arange(len(rows)))["mask"]
    assert masks.any(axis=1).all() and rows.left_out[0] > 0
    counted = text.summary(rows)
    assert counted["unlearned_documents"] == counted["left_out_rows"] == rows.left_out[0]
    notes = " ".join(parts.notes)
    assert f"{rows.left_out[0]} of {counted['documents']} train documents have nothing" in notes
    assert f"{rows.left_out[0]} train rows without a token to learn" in notes
    # Where nothing is masked throughout, nothing changes.
    fine = changed(config, data__path=str(write(tmp_path / "f.jsonl", plain(24))))
    fine = changed(fine, teacher__saw_validation="no")
    assert experiment.prepare(configs.resolve(fine)).notes == ()


def test_whether_a_teacher_has_seen_the_validation_documents(teacher, tmp_path):
    path = write(tmp_path / "t.jsonl", plain(40))
    config = changed(small_texts.config(teacher, path), training__steps=1)
    (note,) = experiment.prepare(configs.resolve(config)).notes
    assert "nothing tells whether" in note and "8 validation documents" in note
    (note,) = experiment.prepare(
        configs.resolve(changed(config, teacher__saw_validation="yes"))
    ).notes
    assert "was trained on 8 of the 8 validation documents" in note
    # A teacher that a run on the same rows has trained left out the same documents.
    experiment.run(config, tmp_path / "run")
    ours = changed(config, teacher__path=(str(tmp_path / "run"),), data__tokenizer=str(teacher))
    assert experiment.prepare(configs.resolve(ours)).notes == ()
    other = changed(ours, data__split_seed=5)
    assert "nothing tells whether" in experiment.prepare(configs.resolve(other)).notes[0]


def test_a_split_document_keeps_the_rows_that_have_a_label(teacher, tmp_path):
    tokenizer = text.load_tokenizer(teacher)
    record = {"prompt": "the small large student " * 12, "response": " learns"}
    documents = text.tokenize(text.read(write(tmp_path / "t.jsonl", [record])), tokenizer)
    rows = text.pack(documents, 16, strategy="single")
    kept = text.without_unlearned(rows)
    assert len(kept) == 1 < len(rows) and kept.left_out == (len(rows) - 1, 16 * (len(rows) - 1))
    before, after = (text.summary(r) for r in (rows, kept))
    assert before["learned_tokens"] == after["learned_tokens"] > 0
    assert after["cut_tokens"] == before["cut_tokens"] == 0
    last = rows.batch(np.array([len(rows) - 1]))
    for name, value in kept.batch(np.array([0])).items():
        np.testing.assert_array_equal(value, last[name])


def test_a_text_that_has_its_special_tokens_gets_no_second_ones(teacher, tmp_path):
    # As real files have it, with a decoder that gives "\n" back.
    whole = tokenizers.Tokenizer.from_file(str(teacher / "tokenizer.json"))
    whole.decoder = tokenizers.decoders.ByteLevel()
    whole.save(str(tmp_path / "tokenizer.json"))
    settings = (teacher / "tokenizer_config.json").read_bytes()
    (tmp_path / "tokenizer_config.json").write_bytes(settings)
    tokenizer = text.load_tokenizer(tmp_path)
    bos, eos = tokenizer.bos, tokenizer.eos

    def ids(**record):
        documents = text.tokenize(text.read(write(tmp_path / "t.jsonl", [record])), tokenizer)
        return documents.tokens.tolist(), documents.loss_mask.tolist()

    bare = ids(text="the lamp")[0]
    assert bare[0] == bos and bare[-1] == eos
    for marked in ("<s>the lamp", "the lamp</s>", "<s>the lamp</s>"):
        assert ids(text=marked)[0] == bare
    found = ids(text="<s>the lamp</s>\n")[0]
    assert found.count(eos) == 1 and found[: len(bare)] == bare
    assert ids(text="the</s> lamp")[0].count(eos) == 2  # an end in the middle is none of the text
    pair = ids(prompt="the lamp", response=" is warm")
    assert ids(prompt="<s>the lamp", response=" is warm</s>") == pair
    assert pair[0].count(bos) == pair[0].count(eos) == 1

    prompts = write(tmp_path / "p.jsonl", [{"prompt": "the lamp"}, {"prompt": "<s>the lamp"}])
    _, (plainly, rendered) = generation.encode_prompts(generation.read_prompts(prompts), tokenizer)
    assert plainly == rendered == bare[:-1]


def test_a_moving_average_that_has_not_caught_up_is_said(teacher, tmp_path, capsys):
    path = write(tmp_path / "t.jsonl", plain(40))
    config = changed(
        small_texts.config(teacher, path), training__ema_decay=0.9999, training__steps=2,
        logging__progress="plain",
    )  # fmt: skip
    result = experiment.run(config, tmp_path / "run").values
    shown = capsys.readouterr().err
    assert "the moving average of the student is evaluated and saved" in shown
    assert "after 2 steps 100% of the average are still the initial parameters" in shown
    assert result["evaluated"] == "moving average"
