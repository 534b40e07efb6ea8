"""Runs on text whose student computes with quantized matrices."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import small_texts
from small_runs import changed

from distill_jax import cli, models
from distill_jax import config as configs
from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import quantized
from distill_jax.models.language.layers import quantized_tokens
from distill_jax.quantization.grids import encode_tokens
from distill_jax.runs import experiment
from distill_jax.runs.session import Session
from distill_jax.training import loop, step
from distill_jax.training.state import copy_to

TEACHER = small_texts.TEACHER.replace(dim=32, mlp_dim=64, head_dim=16)
GPT2 = {"norm": "layer", "positions": "learned", "max_positions": 64, "activation": "gelu_tanh"}
GPT2 |= {"gated": False, "qkv_bias": True, "output_bias": True, "mlp_bias": True, "tied": True}
GPT2 |= {"kv_heads": 2, "family": "gpt2"}
SIZES = {"name": "decoder", "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    small_texts.write_records(folder / "records.jsonl")
    small_texts.make_teacher(folder / "teacher", TEACHER)
    plain = small_texts.config(folder / "teacher", folder / "records.jsonl")
    return changed({**plain, "student": SIZES}, student__quantize="int4-g32")


def rounded(kernel: np.ndarray) -> np.ndarray:
    """int4 in groups of 32 inputs, in numpy alone."""
    layers, inputs, outputs = kernel.shape
    grouped = np.float32(kernel).reshape(layers, inputs // 32, 32, outputs)
    scale = np.abs(grouped).max(2, keepdims=True) / np.float32(7.5)
    codes = np.clip(np.rint(grouped / scale), -8, 7)
    return (codes * scale).reshape(kernel.shape).astype(np.float32)


def after_steps(config, count):
    parts = experiment.prepare(configs.resolve(config))
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    now, batches = copy_to(parts.initial, parts.layout), parts.feed.at(0)
    for _ in range(count):
        now = compiled(now, parts.frozen, {}, step.put_batches([next(batches)], parts.mesh))
    return parts, now


def test_a_step_takes_the_gradient_at_the_quantized_values(config):
    sgd = {"name": "sgd", "learning_rate": 0.5, "momentum": 0.0}
    straight = changed({**config, "optimizer": sgd}, training__ema_decay=0.0)
    straight["schedule"] = {"name": "constant"}
    parts, now = after_steps(straight, 1)
    before = jax.device_get(parts.initial.params)
    values = {n: rounded(v) if n.endswith("/kernel") else v for n, v in before.items()}
    assert sum(np.any(values[n] != before[n]) for n in before) == 7
    batch = step.put_batches([next(parts.feed.at(0))], parts.mesh)
    plain = experiment.prepare(configs.resolve(changed(straight, student__quantize="none")))
    one = jax.tree.map(lambda a: a[0], batch)
    inputs = plain.recipe.inputs(plain.initial, plain.frozen, {}, one, None)
    gradient = jax.grad(
        lambda params: plain.recipe.loss(
            plain.recipe.moment(jnp.int32(0)),
            plain.frozen,
            {"student": params, "adapters": {}},
            None,
            inputs,
            jax.random.key(0),
        )[0]
    )(jax.tree.map(jnp.asarray, values))
    for name, value in before.items():
        expected = np.float64(value) - 0.5 * np.float64(gradient[name])
        np.testing.assert_allclose(now.params[name], expected, atol=2e-6, err_msg=name)
        assert np.any(np.asarray(now.params[name]) != value)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    """The workdir of a run that `distill-jax train` made."""
    folder = tmp_path_factory.mktemp("undisturbed")
    file = folder / "config.py"
    file.write_text(f"def get_config():\n    return {config!r}\n")
    assert cli.main(["train", f"--config={file}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_a_run_learns_and_records_what_is_quantized(undisturbed):
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    assert train[-1]["hard_loss"] < 0.95 * train[0]["hard_loss"]
    assert train[-1]["soft_loss"] < train[0]["soft_loss"]
    recorded = json.loads((undisturbed / "manifest.json").read_text())["quantized"]
    kernels = 2 * (4 * 32 * 32 + 3 * 32 * 32)
    assert recorded["recipe"] == "int4-g32" and recorded["grids"] == ["int4-g32"]
    assert recorded["parameters"] == kernels and recorded["bits_per_weight"] == 5.0
    assert recorded["bytes"] == kernels * 5 // 8
    result = json.loads((undisturbed / "result.json").read_text())
    assert result["quantized"] == recorded and result["evaluated"] == "moving average"
    assert recorded["parameters"] + recorded["parameters_left"] == result["parameters"]


def test_what_is_evaluated_again_is_what_the_run_measured(undisturbed):
    """Bit for bit: the codes are those of the run, and nothing rounds them a second time."""
    measured = json.loads((undisturbed / "result.json").read_text())["final"]["test"]
    assert experiment.evaluate(undisturbed, "test", "final", {}) == measured


def test_the_codes_of_a_forward_pass_are_those_that_are_written(config, tmp_path):
    parts, now = after_steps(changed(config, training__ema_decay=0.0), 3)
    quantizer, seen = parts.recipe.quantize, []

    def watched(params):
        encoded = quantizer.encode(params)
        jax.debug.callback(lambda codes: seen.append(jax.device_get(codes)), encoded)
        return quantizer(params)

    recipe = dataclasses.replace(parts.recipe, quantize=watched)
    fourth = step.put_batches([next(parts.feed.at(24))], parts.mesh)
    parts.files.save(tmp_path / "model", *now.evaluated)
    compiled = step.compile_steps(recipe, parts.mesh, parts.layout)
    jax.block_until_ready(compiled(copy_to(now, parts.layout), parts.frozen, {}, fourth))
    (used,) = seen
    written = models.split(language.load(tmp_path / "model"))[1]
    for name, (codes, scales) in used.items():
        grid = quantizer.grids[name]
        own = written[name], written[quantized.scale_name(name)]
        found = quantized.plain(*own, grid)
        np.testing.assert_array_equal(found[0], codes, err_msg=name)
        np.testing.assert_array_equal(found[1], scales, err_msg=name)
    # Another update, another rounding: had it been forgotten, the test above would not see it.
    after = quantizer.encode(after_steps(changed(config, training__ema_decay=0.0), 4)[1].params)
    assert any(np.any(after[name][0] != used[name][0]) for name in used)


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
    with pytest.raises(UsageError, match="student.quantize: 'int4-g32' there, 'int8' now"):
        experiment.run(changed(config, student__quantize="int8"), tmp_path / "run")
    experiment.run(config, tmp_path / "run")
    ours, theirs = (
        json.loads((w / "result.json").read_text()) for w in (tmp_path / "run", undisturbed)
    )
    assert ours["parameters_sha256"] == theirs["parameters_sha256"]
    for file in ("metrics.jsonl", "model/model.safetensors", "model/config.json"):
        assert (tmp_path / "run" / file).read_bytes() == (undisturbed / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_train_what_one_does(config, shape):
    sgd = {"name": "sgd", "learning_rate": 0.1}
    base = changed({**config, "optimizer": sgd}, data__validation=4)
    axes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), shape, strict=True))
    (_, one), (parts, eight) = (after_steps(changed(base, **given), 3) for given in ({}, axes))
    assert parts.mesh.size == 8
    for name, value in one.params.items():
        np.testing.assert_allclose(eight.params[name], value, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"student__quantize": "int3"}, "student.quantize='int3': unknown recipe; did you mean"),
        ({"student__quantize": "int4"}, "student.quantize='int4': groups of 128 do not divide the"),
        ({"student__quantize": ".*/conv=int8"}, "'.*/conv' matches no parameter that can be quan"),
        ({"student__quantize": 4}, "student.quantize=4: expected a text"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(config, values, words):
    with pytest.raises(UsageError) as caught:
        experiment.prepare(configs.resolve(changed(config, **values)))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_adapters_are_refused(config):
    student = {"name": "decoder", "layers": (0,), "lora_rank": 2, "quantize": "int8"}
    with pytest.raises(UsageError, match="student.quantize='int8': student.lora_rank=2 trains ad"):
        configs.resolve({**config, "student": student})


def test_families_that_no_quantized_folder_holds_are_refused_before_training(config, tmp_path):
    gpt2 = TEACHER.replace(**GPT2)
    small_texts.make_teacher(tmp_path / "gpt2", gpt2)
    student = {"name": "decoder", "path": str(tmp_path / "gpt2"), "quantize": "int4-g32"}
    with pytest.raises(UsageError, match="student.quantize='int4-g32': model_type=gpt2: its matri"):
        experiment.prepare(configs.resolve({**config, "student": student}))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_gradient_of_rounded_activations_is_that_of_activations(kind):
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    kernel = jax.random.normal(jax.random.key(1), (16, 4))
    seed = jax.random.normal(jax.random.key(2), (3, 5, 4))

    def product(x, kernel):
        codes, scales = quantized_tokens(x, kind)
        return (codes @ kernel) * scales

    value, pull = jax.vjp(product, x, kernel)
    own = encode_tokens(np.asarray(x), kind)
    rounded = np.float64(own[0]) * np.float64(own[1])
    np.testing.assert_allclose(value, rounded @ np.float64(kernel), atol=2e-5)
    of_x, of_kernel = pull(seed)
    np.testing.assert_allclose(of_x, np.float64(seed) @ np.float64(kernel).T, atol=1e-5)
    expected = np.einsum("bti,bto->io", rounded, np.float64(seed))
    np.testing.assert_allclose(of_kernel, expected, atol=2e-5)


def test_activations_are_rounded_in_training_too(config):
    plain, acting = (
        after_steps(changed(config, student__quantize=recipe), 1)[1] for recipe in ("int8", "w8a8")
    )
    assert float(plain.sums["loss"]) != float(acting.sums["loss"])
    np.testing.assert_allclose(plain.sums["loss"], acting.sums["loss"], rtol=0.02)


def test_what_is_exported_has_the_codes_of_the_run_each_time(undisturbed, tmp_path):
    for name in ("one", "two"):
        flags = [f"--workdir={undisturbed}", f"--out={tmp_path / name}"]
        assert cli.main(["export", *flags, "--format=compressed-tensors"]) == 0
    one, two, own = (
        (folder / "model.safetensors").read_bytes()
        for folder in (tmp_path / "one", tmp_path / "two", undisturbed / "model")
    )
    assert one == two
    mine, theirs = (safetensors.numpy.load(content) for content in (own, one))
    assert mine.keys() == theirs.keys() and any("weight_packed" in name for name in mine)
    for name, value in mine.items():
        np.testing.assert_array_equal(theirs[name], value, err_msg=name)


def test_a_quantized_run_teaches_as_it_is(config, undisturbed):
    tokenizer = config["teacher"]["path"][0]
    taught = changed(config, teacher__path=(str(undisturbed),), student__quantize="none")
    taught = changed(taught, data__tokenizer=tokenizer)
    (teacher,) = experiment.prepare(configs.resolve(taught)).description["teachers"]
    result = json.loads((undisturbed / "result.json").read_text())
    assert teacher["fingerprint"] == result["parameters_sha256"]


@pytest.mark.parametrize("recipe", ["none", "int8"])
def test_codes_are_not_trained(config, undisturbed, tmp_path, recipe):
    student = {"name": "decoder", "path": str(undisturbed / "model"), "quantize": recipe}
    with pytest.raises(UsageError, match=r"student.path=.*: is quantized \(int4-g32\), and codes"):
        experiment.run({**config, "student": student}, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
