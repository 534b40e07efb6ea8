"""FLOPs counted in a jaxpr, against XLA's count of programs without loops and against formulas."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas
from jax.sharding import PartitionSpec
from small_plans import LLAMA, STUDENT, config, folder

from distill_jax import config as configs
from distill_jax import models, parallel, tasks
from distill_jax.models import language
from distill_jax.planning import flops, step_flops


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def xla(function, *given) -> float:
    """XLA's own count, elementwise functions and all."""
    return jax.jit(function).lower(*given).compile().cost_analysis()["flops"]


def test_a_product_and_its_gradients():
    given = shape(32, 48), shape(48, 20)

    def function(x, w):
        return x @ w

    def loss(x, w):
        return jnp.sum(function(x, w) ** 2)

    assert flops.count(function, *given) == 2 * 32 * 48 * 20 == xla(function, *given)
    assert flops.count(jax.grad(loss, (0, 1)), *given) == 3 * 2 * 32 * 48 * 20


def test_rows_in_groups_each_meet_the_matrix_of_their_group():
    rows, matrices, sizes = shape(32, 48), shape(5, 48, 20), shape(5, dtype=jnp.int32)

    def loss(rows, matrices, sizes):
        return jnp.sum(jax.lax.ragged_dot(rows, matrices, sizes) ** 2)

    once = 2 * 32 * 48 * 20
    assert flops.count(loss, rows, matrices, sizes) == once
    assert flops.count(jax.grad(loss, 0), rows, matrices, sizes) == 2 * once
    assert flops.count(jax.grad(loss, (0, 1)), rows, matrices, sizes) == 3 * once


def test_what_does_not_reach_the_result_counts_nothing():
    def function(x):
        return x, (lambda y: y @ y)(x)

    assert flops.count(lambda x: function(x)[0], shape(8, 8)) == 0


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID", [(3, 1), (0, 2)]])
@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_counts_what_meets_the_image(stride, padding, groups):
    images, kernel = shape(2, 13, 11, 8), shape(3, 5, 8 // groups, 12)

    def function(images, kernel):
        return jax.lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    assert flops.count(function, images, kernel) == xla(function, images, kernel)


def test_the_gradients_of_a_strided_convolution_cost_what_it_costs_each():
    images, kernel = shape(2, 12, 12, 6), shape(3, 3, 6, 10)

    def loss(images, kernel):
        out = jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(out)

    once = flops.count(loss, images, kernel)
    assert once > 0
    assert flops.count(jax.grad(loss, 0), images, kernel) == once
    assert flops.count(jax.grad(loss, 1), images, kernel) == once


def test_scans_conditions_and_shards_multiply():
    mesh = parallel.make_mesh(2, 2, 2)

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=7)[0]

    def chosen(x):
        return jax.lax.cond(jnp.sum(x) > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def sharded(x):
        return jax.shard_map(
            lambda x: x @ x.T,
            mesh=mesh,
            in_specs=PartitionSpec(("data", "fsdp", "tensor")),
            out_specs=PartitionSpec(("data", "fsdp", "tensor")),
            check_vma=False,
        )(x)

    x = shape(16, 16)
    assert flops.count(scanned, x) == 7 * 2 * 16**3
    assert flops.count(chosen, x) == 2 * 2 * 16**3
    assert flops.count(sharded, x) == 8 * (2 * 2 * 16 * 2)
    assert flops.count(jax.checkpoint(scanned), x) == flops.count(scanned, x)


FAMILIES = {
    "llama": LLAMA,
    "qwen3": LLAMA | {"model_type": "qwen3", "head_dim": 24},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 8},
    "mixtral": LLAMA | {"model_type": "mixtral", "num_local_experts": 4},
    "qwen3_moe": LLAMA
    | {
        "model_type": "qwen3_moe",
        "head_dim": 24,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 3,
    },
    "gemma2": LLAMA
    | {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "tie_word_embeddings": True,
        "num_hidden_layers": 4,
        "sliding_window": 8,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 512,
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
    },
}


def by_formula(sizes: language.DecoderConfig, rows: int, length: int) -> tuple[int, int]:
    """FLOPs of a decoder's layers, and of its head, of [rows, length] tokens."""
    tokens, width = rows * length, sizes.heads * sizes.head_dim
    narrow = sizes.kv_heads * sizes.head_dim
    mlp = (3 if sizes.gated else 2) * sizes.mlp_dim
    if sizes.experts:
        mlp = sizes.experts_per_token * mlp + sizes.experts
    matrices = sizes.dim * (2 * width + 2 * narrow + mlp)
    attention = 2 * tokens * length * width  # the logits and the mixing, with what is masked
    layers = sizes.layers * (2 * tokens * matrices + 2 * attention)
    return layers, 2 * tokens * sizes.dim * sizes.vocab_size


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoder_costs_what_its_formula_says(family):
    sizes = language.from_huggingface(FAMILIES[family])
    graphdef, params, _ = models.split(language.abstract(sizes))

    def forward(params, tokens):
        decoder = models.merge(graphdef, params)
        return decoder.logits(decoder(tokens).hidden)

    found = flops.count(forward, params, shape(2, 32, dtype=jnp.int32))
    assert found == sum(by_formula(sizes, 2, 32))


def test_a_decoder_of_one_layer_costs_what_xla_says():
    sizes = language.from_huggingface(LLAMA | {"num_hidden_layers": 1})
    graphdef, params, _ = models.split(language.abstract(sizes))

    def forward(params, tokens):
        decoder = models.merge(graphdef, params)
        return decoder.logits(decoder(tokens).hidden)

    given = params, shape(2, 32, dtype=jnp.int32)
    found = flops.count(forward, *given)
    # XLA counts elementwise functions too.
    assert found <= xla(forward, *given) <= 1.15 * found


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "deit_tiny"])
def test_a_vision_model_costs_what_xla_says(name):
    size = 32 if name != "deit_tiny" else 64
    made = models.abstract(name, input_shape=(size, size, 3), num_classes=10)
    graphdef, params, stats = models.split(made)

    def forward(params, stats, images):
        return models.apply(graphdef, params, stats, images)[0].logits

    given = params, stats, shape(2, size, size, 3)
    found = flops.count(forward, *given)
    assert found <= xla(forward, *given) <= 1.25 * found


@pytest.mark.parametrize("mesh", [{}, {"mesh__fsdp": 2, "mesh__tensor": 2}])
def test_a_step_is_split_into_teacher_student_and_backward(tmp_path, mesh):
    run = tasks.abstract_step(config(tmp_path, training__remat="full", **mesh), jax.devices())
    found = step_flops.count_step(run)
    teacher, student = (
        by_formula(language.from_huggingface(content), 8, 32) for content in (LLAMA, STUDENT)
    )
    assert found.teacher_forward == sum(teacher)
    assert found.student_forward == sum(student)
    assert found.student_backward == 2 * sum(student)
    assert found.rollout == 0
    # With remat=full each layer is computed once more, but for its last product, which no
    # gradient needs; the head is not.
    last = STUDENT["num_hidden_layers"] * 2 * (8 * 32) * 96 * 32
    assert found.program - found.model == student[0] - last


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_splash_kernel_counts_as_the_attention_that_it_stands_for(tmp_path, remat):
    small = {"num_hidden_layers": 2, "head_dim": 64, "num_key_value_heads": 2}
    paths = {
        f"{part}__path": folder(tmp_path, f"{part}_of_64", content | small)
        for part, content in (("teacher", LLAMA), ("student", STUDENT))
    }
    changes = {"data__length": 256, "training__remat": remat, "mesh__tensor": 2, **paths}
    settings = config(tmp_path, **changes)

    def found(attention):
        chosen = configs.apply_overrides(settings, {"training.attention": attention})
        return step_flops.count_step(tasks.abstract_step(configs.resolve(chosen), jax.devices()))

    plain, kernel = found("xla"), found("splash")
    assert kernel.teacher_forward == plain.teacher_forward
    assert kernel.student_forward == plain.student_forward
    # Its gradient begins with the products, row by row, of the result and the result's gradient.
    rows = 2 * (2 * 8 * 256 * 4 * 64)  # layers, tokens, heads
    assert kernel.student_backward - plain.student_backward == rows
    assert kernel.program - plain.program == rows


def test_a_kernel_of_another_kind_counts_what_its_body_does_in_each_turn():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def product(x, y):
        return pallas.pallas_call(
            kernel,
            grid=(4, 2),
            in_specs=[
                pallas.BlockSpec((8, 32), lambda i, j: (i, 0)),
                pallas.BlockSpec((32, 16), lambda i, j: (0, j)),
            ],
            out_specs=pallas.BlockSpec((8, 16), lambda i, j: (i, j)),
            out_shape=shape(32, 32),
        )(x, y)

    assert flops.count(product, shape(32, 32), shape(32, 32)) == 2 * 32**3


def test_adapters_save_the_gradients_of_what_is_frozen(tmp_path):
    run = tasks.abstract_step(config(tmp_path, student__lora_rank=2), jax.devices())
    found = step_flops.count_step(run)
    assert found.student_forward < found.student_backward < 1.7 * found.student_forward


def test_shapes_that_configs_plan_with_are_those_of_the_models():
    folder = pathlib.Path(__file__).parents[2] / "configs" / "shapes"
    billions = {
        "gemma-3-27b": 27.009,
        "gemma-3-4b": 3.880,
        "llama-3.1-70b": 70.554,
        "llama-3.1-8b": 8.030,
        "qwen3-32b": 32.762,
        "qwen3-4b": 4.022,
    }
    for name, expected in billions.items():
        sizes = language.from_huggingface(json.loads((folder / name / "config.json").read_text()))
        count = models.parameter_count(models.split(language.abstract(sizes))[1])
        assert round(count / 1e9, 3) == expected, name
