"""Runs on images whose student computes with quantized kernels."""

import json

import jax
import numpy as np
import pytest
from small_runs import STUDENT, TEACHER, changed

from distill_jax import config as configs
from distill_jax import models
from distill_jax.errors import UsageError
from distill_jax.models.files import quantized_arrays
from distill_jax.quantization.grids import GRIDS
from distill_jax.runs import experiment
from distill_jax.training import step
from distill_jax.training.state import copy_to


def one_step(config):
    """The parts of a run, its first batch as (images, labels), and the state after one step."""
    parts = experiment.prepare(configs.resolve(config))
    batch = next(parts.feed.at(0))
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    placed = step.put_batches([batch], parts.mesh)
    now = compiled(copy_to(parts.initial, parts.layout), parts.frozen, parts.resident, placed)
    ids = np.asarray(batch["id"])
    images, labels = (np.asarray(parts.resident[name])[ids] for name in ("image", "label"))
    return parts, (images, labels), now


def rounded(kernel):
    """int4 in groups of 32 inputs; codes in float32, in which the largest weight is at a tie."""
    groups = np.float32(kernel).reshape(-1, 32, kernel.shape[-1])
    scale = np.abs(groups).max(1, keepdims=True) / np.float32(7.5)
    codes = np.clip(np.rint(groups / scale), -8, 7)
    return (np.float64(codes) * scale).reshape(kernel.shape)


def test_the_gradient_is_that_of_a_float64_straight_through_reference():
    rate = 0.1
    config = changed(
        TEACHER,
        student__quantize=".*/kernel=int4-g32",
        optimizer__name="sgd",
        optimizer__learning_rate=rate,
        optimizer__momentum=0.0,
        data__augment__crop_padding=0,
    )
    config["schedule"] = {"name": "constant"}
    parts, (images, labels), now = one_step(config)
    before = {name: np.float64(value) for name, value in parts.initial.params.items()}
    first, last = sorted(name.removesuffix("/kernel") for name in before if "kernel" in name)[::-1]
    spec = parts.recipe.spec
    x = (images.reshape(len(labels), -1) / 255.0 - spec.mean[0]) / spec.std[0]
    kernels = {name: rounded(value) for name, value in before.items() if "kernel" in name}
    inner = x @ kernels[f"{first}/kernel"] + before[f"{first}/bias"]
    hidden = np.maximum(inner, 0)
    logits = hidden @ kernels[f"{last}/kernel"] + before[f"{last}/bias"]
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    of_logits = (p - np.eye(10)[labels]) / len(labels)
    of_inner = (of_logits @ kernels[f"{last}/kernel"].T) * (inner > 0)
    gradient = {
        f"{first}/kernel": x.T @ of_inner,
        f"{first}/bias": of_inner.sum(0),
        f"{last}/kernel": hidden.T @ of_logits,
        f"{last}/bias": of_logits.sum(0),
    }
    for name, value in gradient.items():
        moved = (before[name] - np.float64(now.params[name])) / rate
        np.testing.assert_allclose(moved, value, atol=5e-6, err_msg=name)
        assert np.abs(value).max() > 1e-3


# Convolutions, batch statistics, adapters, dropout, an average, and a teacher's features.
@pytest.fixture(scope="module")
def config(digits_teacher):
    return changed(
        STUDENT,
        teacher__path=str(digits_teacher),
        student__quantize=".*/kernel=int8",
        training__steps=12,
    )


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quantized") / "run"
    return workdir, experiment.run(config, workdir).values


def test_the_codes_of_the_average_are_written_and_evaluate_to_what_was_measured(config, finished):
    workdir, result = finished
    manifest = json.loads((workdir / "manifest.json").read_text())
    assert result["quantized"] == manifest["quantized"] and result["evaluated"] == "moving average"
    parts = experiment.prepare(configs.resolve(config))
    quantizer = parts.recipe.quantize
    assert result["quantized"]["kernels"] == len(quantizer.grids) > 2
    size = (workdir / "model" / "weights.safetensors").stat().st_size
    assert size < 0.5 * 4 * result["parameters"]
    again = experiment.evaluate(workdir, "test", "final", {})
    assert again == result["final"]["test"]


def test_the_codes_of_a_forward_pass_are_those_that_are_written(config, tmp_path):
    parts, _, now = one_step(changed(config, training__ema_decay=0.0))
    used = jax.jit(lambda params: parts.recipe.quantize(params))(now.params)
    parts.files.save(tmp_path / "model", *now.evaluated)
    written = models.load(tmp_path / "model").params
    for name, value in used.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_a_name_leaves_the_first_convolution_and_the_classifier(config):
    plan = experiment.prepare(configs.resolve(changed(config, student__quantize="int8")))
    kernels = quantized_arrays.kernels({n: v.shape for n, v in plan.initial.params.items()})
    left = set(kernels) - set(plan.recipe.quantize.grids)
    assert plan.recipe.quantize.grids and len(left) == 2
    assert set(plan.recipe.quantize.grids.values()) == {GRIDS["int8"]}


def test_activations_are_refused(config):
    with pytest.raises(UsageError, match="student.quantize='w8a8': w8a8 rounds activations, which"):
        experiment.prepare(configs.resolve(changed(config, student__quantize="w8a8")))
