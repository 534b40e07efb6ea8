"""Logits against those that transformers computed, for a small checkpoint of every family."""

import dataclasses

import language_reference as reference
import numpy as np
import pytest
import safetensors.numpy

from distill_jax.models import language


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, language.Decoder]:
    """Every golden checkpoint, loaded."""
    root = tmp_path_factory.mktemp("golden")
    return {name: language.load(reference.write(root / name, name)) for name in reference.NAMES}


@pytest.mark.parametrize("name", reference.NAMES)
def test_the_logits_are_those_of_transformers(models, name):
    expected = np.asarray(reference.golden(name)["logits"])
    # The same numbers by another order of operations; transformers itself is 3e-5 off float64.
    np.testing.assert_allclose(
        reference.logits(models[name], reference.TOKENS), expected, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    "name, changes",
    [
        ("llama3", dict(rope_scaling=None)),
        ("mistral", dict(window=5)),
        ("qwen2", dict(sliding=(True,))),
        ("gemma2", dict(attention_cap=None)),
        ("gemma3", dict(rope_local_theta=None)),
        ("mixtral", dict(window=5)),
        ("mixtral", dict(gates_normalised=False)),
        ("qwen3_moe", dict(gates_normalised=True)),
        ("qwen3_moe", dict(experts_per_token=2)),
        ("smollm3_windows", dict(no_rope=(False, True))),
        ("olmo3", dict(rope_local_theta=None)),
        ("granite", dict(residual_scale=1.0)),
        ("glm4", dict(rope_interleaved=False)),
        ("glm", dict(rotary_dim=None)),
        ("llama_yarn", dict(rope_scaling=None)),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_each_option_of_the_golden_checkpoints_changes_their_logits(models, name, changes):
    model = models[name]
    params = dict(reference.parameters(model))
    for key in [key for key in params if key.startswith("runs/1/") and "sliding" in changes]:
        # One run for the two that there were.
        first = key.replace("runs/1/", "runs/0/")
        params[first] = np.concatenate([params[first], params.pop(key)])
    other = language.from_params(model.config.replace(**changes), params)
    expected = np.asarray(reference.golden(name)["logits"])
    assert np.abs(reference.logits(other, reference.TOKENS) - expected).max() > 1e-2


@pytest.mark.parametrize("name", reference.NAMES)
def test_saving_writes_the_tensors_that_were_loaded(models, name, tmp_path):
    language.save(tmp_path / "out", models[name])
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    original = reference.tensors(name)
    assert saved.keys() == original.keys()
    for own, value in original.items():
        np.testing.assert_array_equal(saved[own], value, err_msg=own)


@pytest.mark.parametrize("name", reference.NAMES)
def test_the_config_survives_being_written(models, name):
    config = models[name].config
    content = language.to_huggingface(config)
    back = language.from_huggingface(content)
    assert dataclasses.asdict(back) == dataclasses.asdict(config)
    # Whatever transformers wrote, and we write too, is the same; but for what it leaves open.
    original = reference.golden(name)["config"]
    ours = content.keys() & original.keys() - {
        *("n_inner", "max_window_layers", "eos_token_id"),
        "mlp_only_layers",  # which has those that decoder_sparse_step names too
    }
    assert {key: content[key] for key in ours} == {key: original[key] for key in ours}
