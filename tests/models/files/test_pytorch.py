"""Networks of PyTorch under our names: the same answers, and a refusal that says what differs."""

import functools
import json
import os
import re

import compiling
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from golden.torch.make import fill
from packs import unpacked
from torch_files import GOLDEN

from distill_jax import models
from distill_jax.errors import UsageError

NETWORKS = sorted(path.stem for path in GOLDEN.glob("*.json"))

# ---------------------------------------------------------------- names and layouts


def fault(state, spec):
    with pytest.raises(UsageError) as error:
        models.from_pytorch(state, spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def golden(name):
    """(spec, state, images, logits) of a public network, see golden/torch/make.py."""
    known = json.loads((GOLDEN / f"{name}.json").read_text())
    side = known["side"]
    spec = models.Spec(known["name"], known["options"], (side, side, 3), 5, (0,) * 3, (1,) * 3)
    state = {
        key: np.int64(7) if key.endswith("num_batches_tracked") else fill(key, tuple(shape))
        for key, shape in known["state"].items()
    }
    images = fill("images", (2, 3, side, side)).transpose(0, 2, 3, 1)
    return spec, state, images, np.array(known["logits"])


def graphdef(spec):
    module = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    return models.split(module)[0]


@pytest.mark.parametrize(
    "name",
    [
        name if name.startswith("resnet8") else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_public_networks_answer_as_in_pytorch(name):
    spec, state, images, expected = golden(name)
    params, stats = models.from_pytorch(state, spec)
    forward = jax.jit(models.apply, static_argnums=0)
    logits = forward(graphdef(spec), params, stats, jnp.asarray(images))[0].logits
    scale = np.abs(expected).max()
    # Any one array reversed changes this by 2e-3 or more.
    np.testing.assert_allclose(logits / scale, expected / scale, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_array_of_public_networks_has_its_place(name):
    spec, state, _, _ = golden(name)
    groups = models.from_pytorch(state, spec)
    module = models.abstract(
        spec.name, input_shape=spec.input_shape, num_classes=spec.num_classes, **spec.options
    )
    for found, expected in zip(groups, models.split(module)[1:], strict=True):
        assert list(found) == list(expected)
        for key, value in found.items():
            assert (value.shape, value.dtype) == (expected[key].shape, jnp.float32)
    sizes = sum(value.size for value in state.values() if value.ndim)
    assert sum(value.size for group in groups for value in group.values()) == sizes


LARGEST = (
    "resnet110",
    "resnet32x4",
    "resnet50",
    "imagenet_resnet152",
    "wrn_40_2",
    "vgg19",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2_1.5x",
    "deit_small",
)


@pytest.mark.parametrize("name", LARGEST)
def test_every_depth_has_names(name):
    spec = models.Spec(name, {}, (64, 64, 3), 5, (0,) * 3, (1,) * 3)
    assert f"not the arrays of {name}. Missing in the file: " in fault({}, spec)


def test_a_network_without_a_counterpart_says_so():
    spec = models.Spec("cnn", {}, (8, 8, 3), 5, (0,) * 3, (1,) * 3)
    assert fault({}, spec) == "cnn has no counterpart in PyTorch that is known here"


def test_layouts():
    spec, state, _, _ = golden("shufflenet_v1")
    params, stats = models.from_pytorch(state, spec)
    grouped = state["layer1.0.conv3.weight"]  # [out, in / groups, 1, 1]
    np.testing.assert_array_equal(params["stage1/0/third/conv/kernel"][0, 0], grouped[:, :, 0, 0].T)
    depthwise = state["layer1.0.conv2.weight"]
    assert depthwise.shape == (54, 1, 3, 3)
    for i, j in np.ndindex(3, 3):
        kernel = params["stage1/0/second/conv/kernel"]
        np.testing.assert_array_equal(kernel[i, j, 0], depthwise[:, 0, i, j])
    np.testing.assert_array_equal(params["classifier/kernel"], state["linear.weight"].T)
    for ours, theirs in (("mean", "running_mean"), ("var", "running_var")):
        np.testing.assert_array_equal(stats[f"stem/norm/{ours}"], state[f"bn1.{theirs}"])


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_floats_become_float32(dtype):
    spec, state, _, _ = golden("resnet8")
    params, _ = models.from_pytorch({k: v.astype(dtype) for k, v in state.items()}, spec)
    assert params["classifier/bias"].dtype == jnp.float32
    expected = np.float32(state["fc.bias"].astype(dtype))
    np.testing.assert_array_equal(params["classifier/bias"], expected)


def test_the_refusal_lists_what_is_missing_unused_and_misshapen():
    spec, state, _, _ = golden("resnet8")
    renamed = {re.sub("^layer3", "stage3", key): value for key, value in state.items()}
    renamed["fc.weight"] = np.zeros((100, 64), np.float32)
    renamed["fc.bias"] = np.zeros(5, np.int64)
    assert fault(renamed, spec) == (
        "these are not the arrays of resnet8. Missing in the file: "
        "stage3/0/first/conv/kernel (as layer3.0.conv1.weight); "
        "stage3/0/first/norm/bias (as layer3.0.bn1.bias); "
        "stage3/0/first/norm/scale (as layer3.0.bn1.weight) and 12 more. "
        "Unused in the file: stage3.0.conv1.weight; stage3.0.bn1.weight; stage3.0.bn1.bias and 12 "
        "more. Of another shape: fc.bias is int64 [5], not float [5]; "
        "fc.weight is float32 [100, 64], not float [5, 64]"
    )
    one = {key: value for key, value in state.items() if key != "bn1.running_var"}
    assert fault(one, spec) == (
        "these are not the arrays of resnet8. Missing in the file: "
        "stem/norm/var (as bn1.running_var)"
    )
    spec, state, _, _ = golden("deit_tiny")
    state["pos_embed"] = state["pos_embed"][:, 1:]
    message = "Of another shape: pos_embed is float32 [1, 5, 192], not float [1, 6, 192]"
    assert message in fault(state, spec)


def test_shortcuts_without_parameters_get_a_hint():
    _, state, _, _ = golden("resnet8_pad")
    spec, with_projection, _, _ = golden("resnet8")
    assert fault(state, spec).endswith("Shortcuts without parameters are shortcut='pad'")
    pad = models.Spec.from_json({**spec.to_json(), "options": {"shortcut": "pad"}})
    message = fault(with_projection, pad)
    assert "Unused in the file: layer2.0.downsample.0.weight; " in message and "pad" not in message


# ---------------------------------------------------------------- models.load


@pytest.fixture
def weights(tmp_path):
    spec, state, _, _ = golden("resnet8")
    plain = {key: np.asarray(value) for key, value in state.items()}
    np.savez(tmp_path / "resnet8.npz", **plain)
    safetensors.numpy.save_file(plain, tmp_path / "resnet8.safetensors")
    return spec, state, tmp_path


@pytest.mark.parametrize("end", ["npz", "safetensors"])
def test_a_loaded_file_is_a_model_like_any_other(weights, end):
    spec, state, folder = weights
    saved = models.load(folder / f"resnet8.{end}", spec=spec)
    params, stats = models.from_pytorch(state, spec)
    assert saved.spec == spec
    assert saved.fingerprint == models.fingerprint(spec, params, stats)
    assert models.save(folder / "model", saved.spec, saved.params, saved.stats) == saved.fingerprint
    again = models.load(folder / "model", spec=spec)
    assert again.fingerprint == saved.fingerprint
    assert again.params.keys() == params.keys() and again.stats.keys() == stats.keys()


def prefixed(state, prefix):
    return {prefix + name: np.asarray(value) for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "module.net.", "state_dict.model.", "a.b._orig_mod.encoder."]
)
def test_a_network_is_found_behind_any_prefix(weights, prefix):
    spec, state, folder = weights
    # What else the prefix of the program holds is not read: a loss, a counter, a frozen teacher.
    others = {"n_averaged": np.array(5), "criterion.weight": np.ones(3, np.float32)}
    np.savez(folder / "wrapped.npz", **prefixed(state, prefix), **others)
    plain = models.load(folder / "resnet8.npz", spec=spec)
    assert models.load(folder / "wrapped.npz", spec=spec).fingerprint == plain.fingerprint


def test_of_two_networks_one_is_chosen_and_equal_ones_are_one(weights):
    spec, state, folder = weights
    other = {name: value + 1 for name, value in state.items()}
    both = prefixed(state, "state_dict.") | prefixed(other, "state_dict_ema.")
    np.savez(folder / "both.npz", **both)
    message = load_fault(folder / "both.npz", spec=spec)
    assert "holds 2 networks resnet8, with other numbers: 'state_dict', 'state_dict_ema'" in message
    assert "chosen by --part" in message
    chosen = models.load(folder / "both.npz", spec=spec, part="state_dict_ema")
    params, stats = models.from_pytorch(other, spec)
    assert chosen.fingerprint == models.fingerprint(spec, params, stats)
    message = load_fault(folder / "both.npz", spec=spec, part="model")
    assert "no array of resnet8 is under part='model'; it has 'state_dict'" in message
    np.savez(folder / "same.npz", **prefixed(state, "a."), **prefixed(state, "b."))
    plain = models.load(folder / "resnet8.npz", spec=spec)
    assert models.load(folder / "same.npz", spec=spec).fingerprint == plain.fingerprint


def test_of_a_student_and_its_teacher_the_one_that_fits_is_read(weights):
    spec, state, folder = weights
    larger = {f"layer1.{i}.{end}": value for i in (1, 2) for end, value in _block(state).items()}
    both = prefixed(state, "module.student.") | prefixed(state | larger, "module.teacher.")
    np.savez(folder / "both.npz", **both)
    plain = models.load(folder / "resnet8.npz", spec=spec)
    assert models.load(folder / "both.npz", spec=spec).fingerprint == plain.fingerprint


def _block(state):
    start = "layer1.0."
    return {name.removeprefix(start): v for name, v in state.items() if name.startswith(start)}


def load_fault(path, **named):
    with pytest.raises(UsageError) as error:
        models.load(path, **named)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_without_a_spec_is_refused_with_the_way_out(weights):
    *_, folder = weights
    path = folder / "resnet8.npz"
    assert load_fault(path) == (
        f"teacher.path={str(path)!r}: a file; expected a folder with model.json or a workdir. "
        f"PyTorch weights become one by: distill-jax import {path} --model=resnet56 --classes=100 "
        "--mean=.5070,.4865,.4409 --std=.2673,.2564,.2761 --workdir=DIR"
    )


def test_a_file_that_does_not_fit_its_spec_is_named(weights):
    spec, _, folder = weights
    path = folder / "resnet8.npz"
    other = models.Spec.from_json({**spec.to_json(), "num_classes": 10})
    message = load_fault(path, spec=other, key="--model")
    assert message.startswith(f"--model={str(path)!r}: these are not the arrays of resnet8. ")
    unknown = models.Spec.from_json({**spec.to_json(), "name": "resnet9"})
    assert "unknown model; did you mean 'resnet" in load_fault(path, spec=unknown)
    assert "no such folder" in load_fault(folder / "resnet8.pth", spec=spec)
    os.truncate(path, 1000)
    assert "damaged or truncated" in load_fault(path, spec=spec)


def test_a_folder_says_itself_what_it_is(weights):
    spec, state, folder = weights
    models.save(folder / "model", spec, *models.from_pytorch(state, spec))
    other = models.Spec.from_json({**spec.to_json(), "mean": [0.5] * 3})
    message = load_fault(folder / "model", spec=other)
    assert "the model in this folder is {'name': 'resnet8'" in message and "[0.5, 0.5" in message


# ---------------------------------------------------------------- published teachers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "classes", "options", "mean", "std", "right"),
    [
        ("cifar100", 100, {}, (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761), 7263),
        pytest.param(
            *("cifar10", 10, {"shortcut": "pad"}, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            9339,
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_published_teachers_keep_their_accuracy(
    shared_data, data, classes, options, mean, std, right
):
    # A minute each on two cores. The counts are the published accuracies. CIFAR-100's needs
    # float32 throughout: image 7888 is right by 1.5e-5 in its logits, the others differ by more.
    spec = models.Spec("resnet56", options, (32, 32, 3), classes, mean, std)
    saved = models.load(shared_data / "teachers" / f"{data}_resnet56.npz", spec=spec)
    images, labels = unpacked(shared_data / "vision" / f"{data}_test.npz")
    definition = graphdef(spec)

    @functools.partial(jax.jit, compiler_options=compiling.FULL)
    def answers(params, stats, pixels):
        x = models.normalise(pixels.astype(jnp.float32) / 255, mean, std)
        return jnp.argmax(models.apply(definition, params, stats, x)[0].logits, -1)

    found = [
        answers(saved.params, saved.stats, images[i : i + 500]) for i in range(0, len(images), 500)
    ]
    assert len(labels) == 10_000
    assert int((np.concatenate(found) == labels).sum()) == right
