"""A decoder family is a row of the family table: no other code has to know it."""

import json

import language_reference as reference
import numpy as np
import pytest

from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language.huggingface import names
from distill_jax.models.language.huggingface.family_table import FAMILIES, Family, Key

# The first Gemma: Llama's layers and tensors, with Gemma's norms, activation and embeddings.
GEMMA = Family(
    "GemmaForCausalLM",
    names.LLAMA,
    FAMILIES["llama"].keys
    | {
        "head_dim": Key("head_dim", 256),
        "rms_norm_eps": Key("norm_eps", 1e-6),
        "tie_word_embeddings": Key("tied", True),
    },
    dict(norm_offset=True),
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    scaled_embedding=True,
)
CONFIG = dict(
    model_type="gemma",
    vocab_size=31,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=8,
)


def test_every_family_has_a_golden_checkpoint():
    covered = {reference.golden(name)["config"]["model_type"] for name in reference.NAMES}
    assert covered == FAMILIES.keys()


def test_a_row_is_all_that_a_new_family_needs(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="model_type='gemma': unknown architecture; .*known: gem"):
        language.from_huggingface(CONFIG)
    monkeypatch.setitem(FAMILIES, "gemma", GEMMA)
    config = language.from_huggingface(CONFIG)
    assert (config.embedding_scale, config.norm_offset, config.tied) == (4.0, True, True)
    model = language.create(config, seed=1)
    language.save(tmp_path / "model", model)
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written["architectures"] == ["GemmaForCausalLM"]
    loaded = language.load(tmp_path / "model")
    assert loaded.config == config
    expected = reference.parameters(model)
    assert reference.parameters(loaded).keys() == expected.keys()
    for name, value in reference.parameters(loaded).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
    with pytest.raises(UsageError, match="model_type='dbrx': unknown architecture; .*gemma, "):
        language.from_huggingface(CONFIG | {"model_type": "dbrx"})
