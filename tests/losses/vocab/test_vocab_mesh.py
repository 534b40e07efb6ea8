"""The fused divergence over a mesh: the same numbers, and no logits or heads between devices."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from vocab_reference import check, draw, every_divergence

from distill_jax import losses
from distill_jax.losses.vocab import VocabSettings


def mesh_of(*shape):
    devices = np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, ("data", "fsdp", "tensor"))


@every_divergence
@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2), (1, 1, 8)])
def test_value_measures_and_gradients(name, shape):
    # 11 ids divide by no axis, and neither do the widths 3 and 4 by all of them.
    arrays, labels, weights = draw(tokens=16)
    labels[1] = -100
    check(
        arrays, labels, weights, divergence=name, chunk=3, temperature=1.5, hard_weight=0.4,
        mesh=mesh_of(*shape),
    )  # fmt: skip


def test_vocabularies_padded_to_different_sizes():
    arrays, labels, weights = draw(tokens=16, widths=(4, 4), vocab=(16, 13))
    labels %= 11
    check(
        arrays, labels, weights, divergence="jensen_shannon", chunk=None, vocab_size=11,
        student_cap=2.0, mesh=mesh_of(1, 2, 4), hard_weight=0.1,
    )  # fmt: skip


def test_the_likeliest_of_equals_is_the_first():
    hidden, head = jnp.ones((8, 1)), jnp.ones((1, 16))
    _, measures = losses.vocab_cross_entropy(
        hidden,
        head,
        labels=jnp.arange(8) % 2,
        weights=jnp.ones(8),
        settings=VocabSettings(mesh=mesh_of(1, 1, 8)),
    )
    assert measures["accuracy"] == 4  # where the label is id 0, on the first device


def _compiled(shape, tokens=64, dim=16, vocab=4096, chunk=4):
    """The optimized program of value and gradients with heads in shards of both sides."""
    mesh = mesh_of(*shape)

    def of(spec, *dims):
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))

    rows, head = PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp", "tensor")

    def step(hidden, head, teacher_hidden, teacher_head, weights):
        def loss(hidden, head):
            return losses.vocab_divergence(
                hidden, head, teacher_hidden, teacher_head, weights=weights,
                settings=VocabSettings(chunk=chunk, mesh=mesh),
            )[0]  # fmt: skip

        return jax.value_and_grad(loss, argnums=(0, 1))(hidden, head)

    given = (
        of(rows, tokens, dim), of(head, dim, vocab), of(rows, tokens, dim), of(head, dim, vocab),
        of(rows, tokens),
    )  # fmt: skip
    return jax.jit(step).lower(*given).compile().as_text()


def collectives(text):
    """(kind, elements of a result, whether inside a loop) of every collective."""
    found = []
    pattern = r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)\("
    for block in re.split(r"\n(?=\S)", text):
        inside = not block.startswith("ENTRY")
        for results, kind in re.findall(pattern, block):
            for dims in re.findall(r"\w\d+\[([\d,]*)\]", results):
                found.append((kind, math.prod(map(int, filter(None, dims.split(",")))), inside))
    return found


def test_over_tensor_no_logits_and_no_heads_are_gathered():
    found = collectives(_compiled((1, 1, 8)))
    assert found
    # Statistics of a chunk, its gradient of hidden states; nothing as wide as a part of the ids.
    assert max(size for _, size, _ in found) <= 64 * 16
    assert not [kind for kind, _, _ in found if kind == "all-gather"]


def test_over_data_the_gradient_of_a_head_is_summed_once():
    found = collectives(_compiled((8, 1, 1)))
    large = [(kind, inside) for kind, size, inside in found if size >= 16 * 4096]
    assert large == [("all-reduce", False)]
    assert not [kind for kind, _, inside in found if inside]  # nothing is said chunk by chunk


def test_over_fsdp_heads_are_put_together_and_their_gradient_comes_in_shards():
    found = collectives(_compiled((1, 8, 1)))
    gathered = [size for kind, size, _ in found if kind == "all-gather"]
    assert gathered == [16 * 4096] * 2  # each head, once
    assert ("reduce-scatter", 2 * 4096, False) in found
