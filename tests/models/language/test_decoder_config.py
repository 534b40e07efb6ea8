"""What a decoder is, and what config.json of transformers says it is."""

import math

import language_reference as reference
import pytest

from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import DecoderConfig, RopeScaling
from distill_jax.models.language.config import LayerKind, LayerRun, layer_runs
from distill_jax.models.language.huggingface import not_implemented
from distill_jax.models.language.huggingface.family_table import FAMILIES

SIZES = dict(vocab_size=31, dim=16, layers=5, heads=4, kv_heads=2, head_dim=4, mlp_dim=24)

# As transformers 4 wrote them for published models, but for keys that change nothing.
LLAMA_32_1B = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=dict(
        factor=32.0,
        high_freq_factor=4.0,
        low_freq_factor=1.0,
        original_max_position_embeddings=8192,
        rope_type="llama3",
    ),
    max_position_embeddings=131072,
    tie_word_embeddings=True,
    pretraining_tp=1,
    torch_dtype="bfloat16",
)
GPT2 = dict(
    architectures=["GPT2LMHeadModel"],
    model_type="gpt2",
    vocab_size=50257,
    n_embd=768,
    n_layer=12,
    n_head=12,
    n_positions=1024,
    n_ctx=1024,
    attn_pdrop=0.1,
    summary_use_proj=True,
)
QWEN25_05B = dict(
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    max_window_layers=24,
    sliding_window=32768,
    use_sliding_window=False,
    rope_theta=1000000.0,
    tie_word_embeddings=True,
)
GEMMA2_2B = dict(
    model_type="gemma2",
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    hidden_act="gelu_pytorch_tanh",
    hidden_activation="gelu_pytorch_tanh",
)
MIXTRAL_8X7B = dict(
    architectures=["MixtralForCausalLM"],
    model_type="mixtral",
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    num_experts_per_tok=2,
    num_local_experts=8,
    output_router_logits=False,
    rms_norm_eps=1e-5,
    rope_theta=1e6,
    router_aux_loss_coef=0.02,
    sliding_window=None,
)
QWEN3_30B_A3B = dict(
    architectures=["Qwen3MoeForCausalLM"],
    model_type="qwen3_moe",
    vocab_size=151936,
    decoder_sparse_step=1,
    head_dim=128,
    hidden_size=2048,
    intermediate_size=6144,
    max_window_layers=48,
    mlp_only_layers=[],
    moe_intermediate_size=768,
    norm_topk_prob=True,
    num_attention_heads=32,
    num_experts=128,
    num_experts_per_tok=8,
    num_hidden_layers=48,
    num_key_value_heads=4,
    rope_theta=1e6,
    router_aux_loss_coef=0.001,
    sliding_window=None,
    use_sliding_window=False,
)


@pytest.mark.parametrize(
    "content, count",
    [
        (LLAMA_32_1B, 1_235_814_400),
        (GPT2, 124_439_808),
        (QWEN25_05B, 494_032_768),
        (GEMMA2_2B, 2_614_341_888),
        (MIXTRAL_8X7B, 46_702_792_704),
        (QWEN3_30B_A3B, 30_532_122_624),
    ],
    ids=["llama-3.2-1b", "gpt2", "qwen2.5-0.5b", "gemma-2-2b", "mixtral-8x7b", "qwen3-30b-a3b"],
)
def test_published_models_have_their_published_number_of_parameters(content, count):
    model = language.abstract(language.from_huggingface(content))
    assert sum(math.prod(p.shape) for p in reference.parameters(model).values()) == count


def test_configs_of_transformers_4_and_5_read_the_same():
    four = language.from_huggingface(LLAMA_32_1B)
    scaling = LLAMA_32_1B["rope_scaling"]
    five = {k: v for k, v in LLAMA_32_1B.items() if k not in ("rope_theta", "rope_scaling")}
    five |= dict(dtype="bfloat16", rope_parameters=scaling | dict(rope_theta=500000.0))
    assert language.from_huggingface(five) == four
    assert four.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    gemma3 = reference.golden("gemma3")["config"]
    older = {k: v for k, v in gemma3.items() if k not in ("rope_parameters", "layer_types")}
    older |= dict(
        rope_theta=2000.0,
        rope_local_base_freq=100.0,
        rope_scaling=dict(factor=8.0, rope_type="linear"),
        sliding_window_pattern=3,
    )
    assert language.from_huggingface(older) == language.from_huggingface(gemma3)


def test_layers_come_in_few_runs():
    def of(layers, *sliding):
        window = 4 if any(kind.sliding for kind in sliding) else None
        sizes = SIZES | dict(layers=layers)
        sliding = tuple(kind.sliding for kind in sliding)
        return layer_runs(DecoderConfig(**sizes, window=window, sliding=sliding))

    near, far = LayerKind(True), LayerKind(False)
    assert of(32, far) == (LayerRun((far,), 32),)
    assert of(26, near, far) == (LayerRun((near, far), 13),)
    assert of(26, *[near] * 5, far) == (LayerRun((near,) * 5 + (far,), 4), LayerRun((near,), 2))
    assert of(32, *[far] * 28, *[near] * 4) == (LayerRun((far,), 28), LayerRun((near,), 4))
    assert of(3, near, far, far) == (LayerRun((near,), 1), LayerRun((far,), 2))


def test_layers_without_rotary_positions_are_a_pattern_of_their_own():
    config = DecoderConfig(**SIZES | dict(layers=6), no_rope=(False, False, True))
    plain, bare = LayerKind(False), LayerKind(False, no_rope=True)
    assert layer_runs(config) == (LayerRun((plain, plain, bare), 2),)


def test_what_came_later_is_in_no_fingerprint_of_a_model_without_it():
    old = DecoderConfig(**SIZES, rope_scaling=RopeScaling("linear", 2.0)).definition()
    later = {"rotary_dim", "rope_interleaved", "no_rope", "residual_scale"}
    assert not later & old.keys() and len(old["rope_scaling"]) == 5
    assert DecoderConfig(**SIZES, residual_scale=0.5).definition()["residual_scale"] == 0.5


def test_patterns_of_windows_are_compared_by_what_they_say():
    long = DecoderConfig(**SIZES, window=4, sliding=(True, False, True, False, True))
    assert long == DecoderConfig(**SIZES, window=4, sliding=(True, False))
    assert long.sliding_layers() == (True, False, True, False, True)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(dim=0), "decoder.dim=0: expected a positive int"),
        (dict(layers=True), "decoder.layers=True: expected a positive int"),
        (dict(kv_heads=3), "decoder.kv_heads=3: expected a divisor of heads=4"),
        (dict(head_dim=5), "decoder.head_dim=5: expected an even int, for rotary positions"),
        (dict(norm="batch"), "decoder.norm='batch': expected 'rms' or 'layer'"),
        (dict(norm_eps=-1.0), "decoder.norm_eps=-1.0: expected a positive number"),
        (dict(logit_cap=0.0), "decoder.logit_cap=0.0: expected a positive number or None"),
        (dict(tied=1), "decoder.tied=1: expected True or False"),
        (dict(window=4), "decoder.sliding=(False,): expected a layer with a window if and only"),
        (dict(sliding=(True,)), "decoder.sliding=(True,): expected a layer with a window if and"),
        (dict(window=0, sliding=(True,)), "decoder.window=0: expected a positive int, in tokens"),
        (dict(sliding=[True]), "decoder.sliding=[True]: expected a tuple of bools"),
        (dict(rope_scaling="linear"), "decoder.rope_scaling='linear': expected a RopeScaling"),
        (dict(experts=-1), "decoder.experts=-1: expected a positive int, or 0"),
        (dict(experts=4), "decoder.experts_per_token=0: expected an int from 1 to experts=4"),
        (dict(experts_per_token=2), "decoder.experts_per_token=2: expected 0 where experts=0"),
        (dict(gates_normalised=False), "decoder.gates_normalised=False: expected True where"),
        (
            dict(experts=4, experts_per_token=2, mlp_bias=True),
            "decoder.mlp_bias=True: expected False, for experts have no bias",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_values_that_make_no_decoder_are_refused(fields, message):
    with pytest.raises(UsageError) as caught:
        DecoderConfig(**SIZES | fields)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(kind="dynamic", factor=2.0), "rope_scaling.kind='dynamic': expected 'linear' or"),
        (dict(kind="yarn", factor=2.0, beta_slow=40.0), "rope_scaling.beta_fast=32.0: expected a"),
        (dict(kind="longrope", factor=1.0), "rope_scaling.short_factors=(): expected positive"),
        (
            dict(kind="linear", factor=1.0, long_factors=(1.0,)),
            "rope_scaling.long_factors=(1.0,): expected none",
        ),
        (dict(kind="linear", factor=0.5), "rope_scaling.factor=0.5: expected a number of at least"),
        (
            dict(kind="llama3", factor=8.0, high_frequency_factor=1.0),
            "rope_scaling.high_frequency_factor=1.0: expected a number above",
        ),
    ],
    ids=["kind", "betas", "longrope", "factors", "factor", "order"],
)
def test_values_that_make_no_scaling_are_refused(values, message):
    with pytest.raises(UsageError) as caught:
        RopeScaling(**values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="dbrx"), "config.json: model_type='dbrx': unknown architecture;"),
        # Names that resemble each other are other architectures.
        (dict(model_type="olmo4"), "config.json: model_type='olmo4': unknown architecture; known:"),
        (dict(model_type="gemma3"), "config.json: text_config is missing; expected it for gemma3"),
        (dict(model_type=None), "config.json: model_type=None: unknown architecture;"),
        (
            dict(architectures=["LlamaForSequenceClassification"]),
            "config.json: architectures=['LlamaForSequenceClassification']: not implemented;",
        ),
        (dict(use_qk_norm=True), "config.json: use_qk_norm=True: not implemented for llama;"),
        (
            dict(quantization_config={"bits": 4}),
            "config.json: quantization_config={'bits': 4}: not implemented for llama;",
        ),
        (dict(hidden_act="relu"), "config.json: hidden_act='relu': unknown activation;"),
        (dict(hidden_size=None), "config.json: hidden_size is missing; expected it for llama"),
        (dict(hidden_size="64"), "config.json: decoder.dim='64': expected a positive int"),
        (dict(rms_norm_eps="x"), "config.json: decoder.norm_eps='x': expected a positive number"),
        (
            dict(rope_scaling={"type": "dynamic", "factor": 2.0}),
            "config.json: rope_scaling.rope_type='dynamic': not implemented; expected one of",
        ),
        (
            dict(rope_scaling={"type": "linear"}),
            "config.json: rope_scaling.factor is missing; expected it for rope_type='linear'",
        ),
        (
            dict(rope_scaling={"type": "linear", "factor": 2.0, "mscale": 1.0}),
            "config.json: rope_scaling.mscale=1.0: not implemented for rope_type='linear';",
        ),
        (
            dict(partial_rotary_factor=0.5),
            "config.json: partial_rotary_factor=0.5: not implemented; expected 1.0",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_not_implemented_is_refused_by_name(changes, message):
    with pytest.raises(UsageError) as caught:
        language.from_huggingface(LLAMA_32_1B | changes)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("gemma2", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True: not"),
        (
            "gemma2",
            dict(layer_types=["full_attention"]),
            "layer_types=['full_attention']: expected",
        ),
        ("gemma2", dict(hidden_act="gelu"), "hidden_act='gelu': not implemented for gemma2;"),
        ("gemma2", dict(query_pre_attn_scalar=0), "a value has a wrong type: "),
        ("gemma3", dict(attn_logit_softcapping=50.0), "attn_logit_softcapping=50.0: not"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx="),
        ("qwen2", dict(use_sliding_window=False), "layer_types: expected full_attention alone"),
        ("phi3", dict(rope_parameters={"rope_type": "longrope"}), "rope_parameters.short_factor"),
        ("smollm3", dict(no_rope_layers=[1, 0]), "no_rope_layers=[1, 0]: expected 5 of 0 and 1"),
        ("granite", dict(residual_multiplier=0), "decoder.residual_scale=0"),
        ("mixtral", dict(num_experts_per_tok=5), "decoder.experts_per_token=5: expected an int"),
        ("qwen3_moe", dict(num_experts=4), "num_local_experts=8: expected num_experts alone"),
        ("qwen3_moe", dict(mlp_only_layers=0.5), "mlp_only_layers=0.5: expected a list of numbers"),
        ("qwen3_moe", dict(mlp_only_layers=["1"]), "mlp_only_layers=['1']: expected a list of"),
        (
            "qwen3_moe",
            dict(decoder_sparse_step=0),
            "decoder_sparse_step=0: expected a positive int",
        ),
        ("qwen3_moe", dict(decoder_sparse_step=9), "decoder.dense=(True,): expected a layer with"),
        (
            "qwen3_moe",
            dict(mlp_only_layers=[0], intermediate_size=0),
            "decoder.dense_mlp_dim=0: expected a positive int",
        ),
        ("qwen3_moe", dict(n_shared_experts=1), "n_shared_experts=1: not implemented for qwen3_"),
        (
            "qwen3_moe",
            dict(use_sliding_window=True, sliding_window=4),
            "use_sliding_window=True: not implemented for qwen3_moe;",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value[:12],
)
def test_options_that_a_family_does_not_have_are_refused(name, changes, message):
    with pytest.raises(UsageError) as caught:
        language.from_huggingface(reference.golden(name)["config"] | changes)
    assert str(caught.value).startswith(f"config.json: {message}")


@pytest.mark.parametrize("name", sorted(not_implemented.REASONS))
def test_an_architecture_that_is_not_implemented_says_why(name):
    content = reference.golden("llama")["config"] | dict(model_type=name)
    with pytest.raises(UsageError) as caught:
        language.from_huggingface(content)
    line = str(caught.value)
    reason = not_implemented.REASONS[name]
    assert line.startswith(
        f"config.json: model_type={name!r}: not implemented, for it has {reason}"
    )
    assert "did you mean" not in line and "\n" not in line and name not in FAMILIES


def test_the_published_names_of_the_page_are_refused_by_reason():
    asked = ("gpt_oss", "qwen3_next", "deepseek_v2", "deepseek_v3", "llama4", "llama4_text")
    assert {*asked, "falcon_h1", "ministral3"} <= not_implemented.REASONS.keys()


def test_what_a_converted_gguf_file_adds_changes_nothing():
    config = reference.golden("llama")["config"]
    added = dict(_model_name_or_path="Smollm2 135M", unk_token_id=0, cls_token_id=1)
    assert language.from_huggingface(config | added) == language.from_huggingface(config)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(norm_placement="post"), "decoder.norm_placement='post': cannot be written as llama;"),
        (dict(window=4, sliding=(True, False)), "decoder.window=4: cannot be written as llama;"),
        (dict(logit_scale=0.5), "decoder.logit_scale=0.5: cannot be written as llama;"),
        (dict(family="dbrx"), "decoder.family='dbrx': unknown architecture;"),
        (
            dict(experts=4, experts_per_token=2),
            "decoder.experts=4: cannot be written as llama; expected 0, or another family",
        ),
        (
            dict(family="mixtral", experts=4, experts_per_token=2, gates_normalised=False),
            "decoder.gates_normalised=False: cannot be written as mixtral; expected True,",
        ),
        (
            dict(family="mistral", window=4, sliding=(True, False)),
            "decoder.sliding=(True, False): cannot be written as mistral; expected (True,)",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_config_that_its_family_cannot_express_is_not_written(fields, message):
    with pytest.raises(UsageError) as caught:
        language.to_huggingface(DecoderConfig(**SIZES | fields))
    assert str(caught.value).startswith(message)
