"""Runs on text with stored answers: the steps of the run without, and what is refused."""

import itertools
import json

import jax
import numpy as np
import pytest
import small_texts
from small_runs import changed
from test_text_shards import assert_close, trained

from distill_jax import cli, parallel, tasks
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.planning import memory, step_flops
from distill_jax.runs import experiment
from distill_jax.runs import manifest as run_manifest
from distill_jax.storage import sharded
from distill_jax.tasks.language import parts as text_parts
from distill_jax.tasks.language import precompute as text_answers
from distill_jax.teachers import ANSWER_PREFIX
from distill_jax.teachers.answers import manifest as manifests
from distill_jax.teachers.answers import text

REAL = 300


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    small_texts.write_records(folder / "records.jsonl", count=40)
    teacher = small_texts.make_teacher(folder / "teacher")
    base = small_texts.config(teacher, folder / "records.jsonl")
    return changed(base, data__validation=4, method__hard_weight=0.3, data__length=32)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """All ids of every token, in float32."""
    folder = tmp_path_factory.mktemp("whole") / "answers"
    tasks.precompute(config, folder, answers=f"top_k:{REAL}", dtype="float32")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def arrays(folder):
    """The arrays of all rows, in the order of the rows."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return {
        name: np.concatenate([np.load(folder / f"{name}-{part}.npy") for part in manifest["parts"]])
        for name in manifest["arrays"]
    }


def test_a_run_with_all_ids_takes_the_steps_of_the_run_online(config, whole):
    _, online = trained(config, steps=3)
    parts, stored = trained(changed(config, teacher__store=str(whole)), steps=3)
    assert set(parts.recipe.metrics) == {
        "loss", "hard_loss", "soft_loss", "accuracy", "student_entropy", "agreement",
    }  # fmt: skip
    for name in parts.recipe.metrics:
        np.testing.assert_allclose(stored.sums[name], online.sums[name], rtol=1e-4, err_msg=name)
    sums = {name: online.sums[name] for name in stored.sums}
    assert_close(stored, type(online)(**{**vars(online), "sums": sums}))
    (entry,) = parts.description["teachers"]
    assert entry["path"] == str(whole) and entry["answers"]["scheme"] == "top_k"
    figures = parts.evaluators["test"](parts.initial.params, {})
    assert figures["kl"] > 0  # teacher.path stands beside the store


def test_a_run_without_the_teacher_shows_the_figures_that_its_store_has(config, whole):
    """Those of the run that has the teacher itself; of other documents it shows none."""
    with_teacher = experiment.prepare(configs.resolve(config))
    tokenizer = config["teacher"]["path"][0]
    alone = changed(config, teacher__store=str(whole), teacher__path=(), data__tokenizer=tokenizer)
    without = experiment.prepare(configs.resolve(alone))
    for split in ("validation", "test"):
        expected = with_teacher.evaluators[split](with_teacher.initial.params, {})
        found = without.evaluators[split](without.initial.params, {})
        for name in ("teacher_nll", "teacher_perplexity", "teacher_entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), (split, name)
        assert 0 <= found["teacher_accuracy"] <= 1 and "kl" not in found
        stored = json.loads((whole / "manifest.json").read_text())["figures"][split]
        assert found["teacher_accuracy"] == stored["accuracy"]
        assert stored["count"] == found["count"] and len(stored["fingerprint"]) == 64
    # The figures of the test rows are not shown for others, nor those of a store that has none.
    manifest, rows = {"figures": {"test": stored}}, with_teacher.feed.rows

    def plain(params, stats):
        return {"nll": 1.0}

    for content in (manifest, {}):
        found = text_parts._with_stored_figures(plain, content, rows)
        assert found({}, {}) == {"nll": 1.0}


def test_a_finished_store_without_figures_gets_them_from_the_same_command(config, tmp_path):
    resolved, folder = configs.resolve(config), tmp_path / "answers"
    text_answers.precompute(resolved, folder, answers="sampled:3")
    whole = contents(folder)
    manifest = manifests.read_manifest(folder)
    del manifest["figures"]  # as an earlier version wrote it
    (folder / "manifest.json").write_bytes(manifests.render(manifest))
    text_answers.precompute(resolved, folder, answers="sampled:3")
    assert contents(folder) == whole


def test_a_store_is_the_same_however_it_was_cut_or_resumed(config, tmp_path, monkeypatch):
    config = configs.resolve(changed(config, seed=5))
    text_answers.precompute(config, tmp_path / "whole", answers="sampled:7", part_size=5)

    class Killed(Exception):
        pass

    def kill(count):
        written, write = itertools.count(), sharded.write_atomically

        def dying(path, content):
            if next(written) == count:
                raise Killed
            write(path, content)

        return dying

    for count in (2, 4):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(sharded, "write_atomically", kill(count))
            text_answers.precompute(config, tmp_path / "killed", answers="sampled:7", part_size=5)
    text_answers.precompute(config, tmp_path / "killed", answers="sampled:7")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    text_answers.precompute(config, tmp_path / "other", answers="sampled:7")
    found, same = arrays(tmp_path / "other"), arrays(tmp_path / "whole")
    for name, array in found.items():
        np.testing.assert_array_equal(array, same[name])
    assert (found["counts"].sum(-1) == 7).all() and found["counts"].dtype == np.uint8
    with pytest.raises(UsageError, match="made for seed=5; this run has 6"):
        text_answers.precompute(
            configs.resolve(changed(config, seed=6)), tmp_path / "whole", answers="sampled:7"
        )


def test_each_process_reads_the_answers_of_its_own_rows(config, whole, monkeypatch):
    stored, size = arrays(whole), config["training"]["batch_size"]
    for process in (0, 1):
        monkeypatch.setattr(parallel, "process_share", lambda mesh, process=process: (process, 2))
        parts = experiment.prepare(configs.resolve(changed(config, teacher__store=str(whole))))
        rows, batch = parts.ids(3), next(parts.feed.at(3 * size))
        own = rows[process * size // 2 : (process + 1) * size // 2]
        np.testing.assert_array_equal(batch["id"], own)
        for name, array in stored.items():
            np.testing.assert_array_equal(batch[ANSWER_PREFIX + name], array[own])


@pytest.mark.parametrize("kept", ["sampled:50", "store"])
def test_a_plan_has_the_answers_in_place_of_the_teacher(config, whole, kept):
    settings = changed(config, teacher__store=str(whole) if kept == "store" else kept)
    run = tasks.abstract_step(configs.resolve(settings), jax.devices()[:1])
    held = memory.argument_bytes(run.state, run.frozen, run.resident, run.batches)
    done = step_flops.count_step(run)
    assert held["teacher"] == 0 and "teacher" not in run.parameters
    online = step_flops.count_step(tasks.abstract_step(configs.resolve(config), jax.devices()[:1]))
    assert done.teacher_forward == 0 < online.teacher_forward
    assert (done.student_forward, done.student_backward) == (
        online.student_forward, online.student_backward,
    )  # fmt: skip
    if kept == "store":
        batch = next(experiment.prepare(configs.resolve(settings)).feed.at(0))
        for name, planned in run.batches.items():
            assert (planned.shape[1:], planned.dtype) == (batch[name].shape, batch[name].dtype)
    else:
        answers = {name: a for name, a in run.batches.items() if name.startswith(ANSWER_PREFIX)}
        assert memory.bytes_per_device(answers) == 8 * 32 * 50 * (2 + 1)  # 320 ids are of two bytes


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method__temperature": 1.0}, "made for temperature=2.0; this run has 1.0"),
        ({"data__length": 48}, "made for training data='"),
        ({"data__packing": "concatenate"}, "made for training data='"),
        ({"teacher__compute_dtype": "bfloat16"}, "made for teacher='"),
        (
            {"method__name": "reverse_kl"},
            "answers serve the forward KL; method.name='reverse",
        ),
        ({"method__name": "soft_target+hidden_states"}, "precomputed answers serve the forward KL"),
        ({"method__temperature": "linear(2, 1)"}, "method.temperature='linear"),
        ({"rollout__probability": 0.5, "data__packing": "single"}, "rollout.probability=0.5"),
        ({"teacher__store": "sampled:50"}, "teacher.store='sampled:50': manifest.json"),
    ],
)
def test_a_store_is_used_for_what_it_was_made_for(config, whole, values, words):
    config = changed({**config, "method": {"name": "soft_target", "temperature": 2.0}})
    config = changed(config, **{"teacher__store": str(whole), **values})
    with pytest.raises(UsageError) as caught:
        experiment.prepare(configs.resolve(config))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ({"method__temperature": "linear(2, 1)"}, {}, "stored answers are of one temperature"),
        ({"method__name": "reverse_kl"}, {}, "stored answers are for the forward KL"),
        ({}, {"answers": "top_k:301"}, "--answers='top_k:301': expected a number from 1 to 300"),
        ({}, {"dtype": "bfloat16"}, "dtype='bfloat16': expected float16 or float32"),
        ({}, {"taps": ("pooled",)}, "--taps=('pooled',): has no meaning for data.name='text'"),
    ],
)
def test_what_cannot_be_stored_is_said_before_anything_is_written(
    config, tmp_path, values, options, words
):
    config = changed({**config, "method": {"name": "soft_target", "temperature": 2.0}}, **values)
    with pytest.raises(UsageError) as caught:
        tasks.precompute(config, tmp_path / "answers", **options)
    assert words in str(caught.value) and not (tmp_path / "answers").exists()


def test_other_vocabularies_and_tokenizers_are_refused(whole, config):
    sparse, manifest = text.describe_text_store(whole)
    data = manifest["data"]
    given = {
        "rows": data["train"]["fingerprint"], "tokenizer": data["tokenizer"], "vocab_size": REAL,
        "temperature": 2.0,
    }  # fmt: skip
    assert text.open_text_store(whole, **given)[0] == sparse
    for name, value in (("tokenizer", "0" * 64), ("vocab_size", 299)):
        with pytest.raises(UsageError, match="made for (tokenizer|vocabulary)="):
            text.open_text_store(whole, **{**given, name: value})


def test_a_store_of_images_is_none_of_text(tmp_path):
    (tmp_path / "manifest.json").write_bytes(manifests.render({"format": 1, "data": {}}))
    with pytest.raises(UsageError, match="holds answers to images; expected a store of text"):
        text.describe_text_store(tmp_path)


def test_a_run_goes_on_with_the_answers_that_it_began_with():
    data, teacher = {"fingerprint": "d"}, {"path": "p", "fingerprint": "t"}
    drawn = {**teacher, "answers": {"scheme": "sampled", "draws": 50}}
    run_manifest.check_same_inputs({"teachers": [drawn], "data": data}, [drawn], data)
    views = {**teacher, "stored": "float16"}  # of images
    run_manifest.check_same_inputs({"teachers": [views], "data": data}, [views], data)
    half = {**teacher, "stored": "bfloat16"}
    for before, now in (
        *((drawn, teacher), (teacher, drawn)),
        *((views, teacher), (teacher, views), (views, half)),
    ):
        with pytest.raises(UsageError, match="other answers than the run began with"):
            run_manifest.check_same_inputs({"teachers": [before], "data": data}, [now], data)


@pytest.mark.slow
def test_the_verbs_store_from_a_sharded_int8_teacher_and_train_without_it(config, tmp_path, capsys):
    teacher = config["teacher"]["path"][0]
    config = changed(
        config, student__dim=32, student__heads=8, student__kv_heads=2, training__steps=8,
        data__tokenizer=str(teacher), mesh__data=2, mesh__fsdp=2, mesh__tensor=2,
    )  # fmt: skip
    content = configs.to_json(configs.resolve(config))
    file = tmp_path / "run.py"
    file.write_text(f"import json\n\ndef get_config():\n    return json.loads({content!r})\n")
    where = tmp_path / "answers"
    flags = [f"--config={file}", f"--workdir={where}", "--config.teacher.quantize=int8"]
    assert cli.main(["store", *flags, "--answers=sampled:20"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes_a_token"] == 60 and said["scheme"] == "sampled:20"
    flags = [f"--config={file}", f"--workdir={tmp_path / 'run'}", "--config.teacher.path=()"]
    assert cli.main(["train", *flags, f"--config.teacher.store={where}"]) == 0
    final = json.loads((tmp_path / "run" / "result.json").read_text())["final"]["test"]
    assert final["nll"] > 0 and "kl" not in final
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    train = [line for line in map(json.loads, lines) if line["split"] == "train"]
    assert "kl" not in train[0] and train[-1]["loss"] < train[0]["loss"]
    assert cli.main(["eval", f"--workdir={tmp_path / 'run'}"]) == 0
