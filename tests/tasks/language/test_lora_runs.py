"""Runs on text with adapters on a frozen student, and with a teacher of 8-bit weights."""

import json
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_texts
from scipy.special import log_softmax
from small_runs import changed

from distill_jax import cli, models
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop, step
from distill_jax.training.state import copy_to

RANK, ALPHA = 2, 4.0


def write_base(folder, seed):
    """A random student to start from: the teacher's embedding, another layer, a wide MLP."""
    wide = small_texts.TEACHER.replace(layers=1, mlp_dim=4096)
    params = models.split(language.create(wide, seed=seed))[1]
    params = {name: v if "norm" in name else 8 * v for name, v in params.items()}
    params["runs/0/mlp/down/kernel"] *= (small_texts.TEACHER.mlp_dim / wide.mlp_dim) ** 0.5
    teacher = models.split(language.create(small_texts.TEACHER, seed=3))[1]
    params["embedding"] = 8 * teacher["embedding"]
    language.save(folder, language.from_params(wide, params))
    small_texts.write_tokenizer(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    small_texts.write_records(folder / "records.jsonl")
    write_base(folder / "base", seed=7)
    small_texts.make_teacher(folder / "teacher")
    return folder


@pytest.fixture(scope="module")
def config(folders):
    plain = small_texts.config(folders / "teacher", folders / "records.jsonl")
    student = {"name": "decoder", "path": str(folders / "base")}
    student |= {"lora_rank": RANK, "lora_alpha": ALPHA}
    return changed({**plain, "student": student}, teacher__quantize="int8")


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The workdir of a run that `distill-jax train` made."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "config.py"
    file.write_text(f"def get_config():\n    return {config!r}\n")
    assert cli.main(["train", f"--config={file}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def bytes_of(folder: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_run_learns_and_keeps_the_adapters_alone(undisturbed, config, folders):
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["soft_loss"] < 0.95 * train[0]["soft_loss"]
    assert train[-1]["hard_loss"] < 0.95 * train[0]["hard_loss"]
    result = json.loads((undisturbed / "result.json").read_text())
    inputs, narrow, mlp = 16, 8, 4096
    sides = 2 * (inputs + inputs) + 2 * (inputs + narrow) + 3 * (inputs + mlp)
    assert result["trained_parameters"] == RANK * sides
    base = bytes_of(folders / "base")
    assert 4 * result["parameters"] == pytest.approx(base, rel=0.05)
    parts = experiment.prepare(configs.resolve(config))
    # Adapters, their average, and the two moments of the optimizer.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts.initial))
    assert size == pytest.approx(4 * 4 * RANK * sides, rel=0.01)
    for checkpoint in (undisturbed / "checkpoints").iterdir():
        assert bytes_of(checkpoint) < 1.5 * size + 100_000 < base
    weights = safetensors.numpy.load_file(undisturbed / "model" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {np.dtype(np.float32)}


def test_what_is_saved_and_exported_is_the_base_with_the_product_added(
    undisturbed, folders, config, tmp_path
):
    assert cli.main(["export", f"--workdir={undisturbed}", f"--out={tmp_path / 'out'}"]) == 0
    before, after, exported = (
        safetensors.numpy.load_file(path / "model.safetensors")
        for path in (folders / "base", undisturbed / "model", tmp_path / "out")
    )
    assert before.keys() == after.keys() == exported.keys()
    for name, value in after.items():
        np.testing.assert_array_equal(exported[name], value)
        added = np.float64(value) - before[name]
        if "proj" not in name:
            assert not added.any()
            continue
        sizes = np.linalg.svd(added, compute_uv=False)
        assert sizes[RANK - 1] > 1e-4 and sizes[RANK:].max(initial=0) < 1e-5
    result = json.loads((undisturbed / "result.json").read_text())["final"]
    again = experiment.evaluate(undisturbed, "test", "final", {})
    for name, value in result["test"].items():
        # The run measured the adapters beside the base, this the merged matrices.
        np.testing.assert_allclose(
            again[name], value, rtol=1e-4, atol=1e-6
        ) if name != "unit" else 0
    dense = changed(config, teacher__path=(str(undisturbed),), teacher__quantize="none")
    parts = experiment.prepare(configs.resolve(dense))
    assert parts.description["teachers"][0]["fingerprint"] == result["parameters_sha256"]


def test_a_stopped_run_resumes_to_the_same_bits(config, undisturbed, tmp_path, monkeypatch):
    log = Session.log

    def log_and_interrupt(self, at, sums):
        log(self, at, sums)
        if at == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "log", log_and_interrupt)
        with pytest.raises(loop.Preempted):
            experiment.run(config, tmp_path / "run")
    base = pathlib.Path(config["student"]["path"])
    try:
        write_base(base, seed=8)
        with pytest.raises(UsageError, match="student.path=.*: another base of the adapters"):
            experiment.run(config, tmp_path / "run")
    finally:
        write_base(base, seed=7)
    experiment.run(config, tmp_path / "run")
    ours, theirs = (
        json.loads((w / "result.json").read_text()) for w in (tmp_path / "run", undisturbed)
    )
    assert ours["parameters_sha256"] == theirs["parameters_sha256"]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == (
        undisturbed / "metrics.jsonl"
    ).read_bytes()


def after_steps(config, count):
    parts = experiment.prepare(configs.resolve(config))
    compiled = step.compile_steps(parts.recipe, parts.mesh)
    whole = jax.sharding.NamedSharding(parts.mesh, jax.sharding.PartitionSpec())
    now, batches = copy_to(parts.initial, whole), parts.feed.at(0)
    held = jax.tree.map(lambda a: np.array(a, copy=True), parts.frozen)
    for _ in range(count):
        now = compiled(now, parts.frozen, {}, step.put_batches([next(batches)], parts.mesh))
    jax.tree.map(np.testing.assert_array_equal, parts.frozen, held)
    return now


@pytest.mark.slow
def test_eight_devices_train_the_adapters_of_one_and_the_base_stays(config):
    # Adam would make much of the rounding in gradients near 0.
    optimizer = {"name": "sgd", "learning_rate": 0.5}
    base = changed({**config, "optimizer": optimizer}, data__validation=4)
    one, eight = (after_steps(changed(base, mesh__data=n), 3) for n in (1, 8))
    assert all("/low_rank/" in name for name in one.params)
    for name, value in one.params.items():
        assert np.abs(value).max() > 1e-3
        np.testing.assert_allclose(eight.params[name], value, atol=2e-5, err_msg=name)


def test_a_base_is_held_in_the_dtype_of_the_computation(config):
    half = changed(config, training__compute_dtype="bfloat16")
    parts = experiment.prepare(configs.resolve(half))
    base = parts.frozen.student
    assert {value.dtype for value in base.values()} == {jnp.dtype("bfloat16")}
    assert {value.dtype for value in parts.initial.params.values()} == {jnp.dtype("float32")}


def test_a_teacher_of_8_bits_is_scored_as_its_rounded_weights_say(config, folders):
    parts = experiment.prepare(configs.resolve(config))
    said = parts.description["teachers"][0]
    exact = experiment.prepare(configs.resolve(changed(config, teacher__quantize="none")))
    plain = exact.description["teachers"][0]
    assert (said["quantize"], plain["quantize"]) == ("int8", "none")
    assert said["fingerprint"] != plain["fingerprint"]
    assert said["parameters"] == plain["parameters"]
    dense = dict(models.split(language.load(folders / "teacher"))[1])
    for name, value in dense.items():
        if name.endswith("/kernel"):
            scale = np.abs(np.float64(value)).max(1, keepdims=True) / 127
            dense[name] = jnp.asarray(np.rint(value / scale) * scale, jnp.float32)
    rounded = language.from_params(small_texts.TEACHER, dense)
    student = language.load(folders / "base")
    total = count = 0.0
    for batch in parts.evaluators["test"]._batches:
        z_s, z_t = (
            np.float64(
                model.logits(
                    model(
                        batch["tokens"], segments=batch["segments"], positions=batch["positions"]
                    ).hidden
                )
            )[..., :300]
            for model in (student, rounded)
        )
        q, p = log_softmax(z_s, axis=-1), log_softmax(z_t, axis=-1)
        total += np.sum(np.sum(np.exp(p) * (p - q), axis=-1)[batch["mask"]])
        count += batch["mask"].sum()
    found = parts.evaluators["test"](parts.initial.params, {})
    np.testing.assert_allclose(found["kl"], total / count, rtol=2e-5)
    other = exact.evaluators["test"](exact.initial.params, {})
    assert abs(other["kl"] - found["kl"]) > 1e-4 * found["kl"]


@pytest.mark.slow
def test_an_adapted_student_answers_prompts_and_shows_its_states(config, folders, tmp_path):
    lines = (folders / "records.jsonl").read_text().splitlines()[:3]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    asked = {"test_prompts": str(tmp_path / "prompts.jsonl"), "max_new_tokens": 4}
    asked |= {"metrics": ("rouge_l",), "prompt_batch_size": 3}
    adapted = {**config, "evaluation": {**config["evaluation"], **asked}}
    adapted["method"] = {"name": "soft_target+hidden_states"}
    plain = changed(adapted, student__lora_rank=0, student__lora_alpha=16.0)
    ours, theirs = (experiment.prepare(configs.resolve(c)) for c in (adapted, plain))
    found, expected = (
        parts.evaluators["test"](jax.device_put(parts.initial.params), {})
        for parts in (ours, theirs)
    )
    # Nothing is trained yet, and nothing added.
    assert [s["student"] for s in found["samples"]] == [s["student"] for s in expected["samples"]]
    assert any(s["student"] for s in found["samples"])
    assert [s["teacher"] for s in found["samples"]] == [s["teacher"] for s in expected["samples"]]
    np.testing.assert_allclose(found["kl"], expected["kl"], rtol=1e-5)
    now = after_steps(adapted, 1)
    assert np.isfinite(now.sums["loss"]) and now.sums["hidden_states"] > 0


def test_layers_of_a_bfloat16_teacher_are_trained_in_float32(config, folders):
    student = {"name": "decoder", "layers": (1,)}
    values = {"teacher__compute_dtype": "bfloat16", "teacher__quantize": "none"}
    parts = experiment.prepare(configs.resolve(changed({**config, "student": student}, **values)))
    assert {value.dtype for value in parts.initial.params.values()} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student__lora_rank": -1}, "student.lora_rank=-1: expected a positive int"),
        ({"student__lora_rank": 9}, "student.lora_rank=9: expected at most 8"),
        ({"student__lora_rank": 0}, "student.lora_alpha=4.0: has no meaning with student.lora_ra"),
        ({"student__lora_alpha": 0.0}, "student.lora_alpha=0.0: expected a number above 0"),
        ({"student__lora_targets": ("kye",)}, "student.lora_targets='kye': unknown matrix; did yo"),
        ({"student__lora_targets": ()}, "student.lora_targets=(): expected some of query, key"),
        ({"student__lora_targets": ("up", "up")}, "student.lora_targets=('up', 'up')"),
        ({"student__dim": 8}, "student.dim=8: student.path="),
        ({"teacher__quantize": "int4"}, "teacher.quantize='int4': expected one of none, int8"),
        (
            {"student__path": "", "student__layers": (0,)},
            "student.layers=(0,): teacher.quantize='int8' rounds the teacher's; expected",
        ),
        (
            {
                "student__path": "",
                "student__dim": 8,
                "student__heads": 2,
                "student__depth": 1,
                "student__mlp_dim": 8,
            },
            "student.lora_rank=2: a new model has nothing to adapt; expected student.path or",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, values, words):
    with pytest.raises(UsageError) as caught:
        experiment.prepare(configs.resolve(changed(config, **values)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_images_have_no_teacher_of_8_bits():
    with pytest.raises(UsageError, match="teacher.quantize='int8': has no meaning for data.name"):
        configs.resolve({"data": {"name": "digits"}, "teacher": {"quantize": "int8"}})
