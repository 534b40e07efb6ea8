"""Keys of published config.json files that change no hidden state are read over."""

import json

import language_reference as reference
import pytest

from distill_jax.errors import UsageError
from distill_jax.models import language

LLAMA = reference.golden("llama")["config"]

# What files on the Hub were seen to hold, with values that generation or training would read.
SEEN = dict(
    _commit_hash="4e53f7",
    _model_name_or_path="x/y",
    _attn_implementation="sdpa",
    attn_implementation="flash_attention_2",
    base_model_pp_plan={"layers": [["hidden_states"], ["hidden_states"]]},
    base_model_tp_plan={"layers.*.self_attn.q_proj": "colwise"},
    classifier_dropout=0.1,
    decoder_start_token_id=1,
    diversity_penalty=0.0,
    gradient_checkpointing=True,
    hidden_dropout_prob=0.1,
    is_causal=True,
    is_decoder=True,
    language=["en"],
    license="apache-2.0",
    loss_type="ForCausalLM",
    max_sequence_length=2048,
    model_max_length=2048,
    no_repeat_ngram_size=0,
    num_beams=1,
    output_attentions=True,
    padding_side="left",
    repetition_penalty=1.0,
    some_new_switch=False,
    some_new_weight=0.0,
    tokenizer_name="x/y",
    typical_p=1.0,
    unk_token_id=0,
    unsloth_version="2026.1",
    use_flash_attention_2=True,
    z_loss_coef=1e-4,
)


@pytest.mark.parametrize("option", SEEN)
def test_a_key_without_effect_is_read_over(option):
    content = LLAMA | {option: SEEN[option]}
    assert language.from_huggingface(content) == language.from_huggingface(LLAMA)


def test_all_unknown_keys_are_named_in_one_error():
    unknown = dict(residual_multiplier=0.2, use_qk_norm=True, num_nextn_predict_layers=1)
    with pytest.raises(UsageError) as caught:
        language.from_huggingface(LLAMA | unknown | {"num_beams": 4})
    message = str(caught.value)
    assert all(f"{name}={value!r}" in message for name, value in unknown.items())
    assert "num_beams" not in message


@pytest.mark.parametrize(
    "option, value", [("is_causal", False), ("is_encoder_decoder", True), ("dropout_free", 1)]
)
def test_a_key_that_may_change_the_model_is_refused(option, value):
    with pytest.raises(UsageError, match=f"{option}={value!r}: not implemented for llama"):
        language.from_huggingface(json.loads(json.dumps(LLAMA | {option: value})))
