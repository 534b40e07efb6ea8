"""Contrastive representation distillation with a memory bank on the device (CRD)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods import networks
from distill_jax.methods.base import (
    Arrays,
    Context,
    Pair,
    Values,
    add_up,
    integer_option,
    number_option,
    register,
)
from distill_jax.methods.relations import OnPooled
from distill_jax.models import Outputs
from distill_jax.models.initializers import initial

_STRIDES = 1024  # different ways through the examples of other classes
_LARGEST = 2**24  # examples; beyond, the modular product below would not fit 32 bits


@dataclasses.dataclass(frozen=True)
class ContrastiveRepresentation(OnPooled):
    """Embeddings of one image are close, those of other classes far apart (Tian et al. 2020, CRD).

    Both pooled features are embedded and normalised. Two memory banks [N, D] hold the embeddings of
    every training image; each step reads its rows and then updates them. Negatives are drawn from
    all classes but the anchor's, without repetition ("mode exact" of the authors' code). That code
    shuffles on the host; here a random stride runs through the examples, sorted by class: all are
    equally likely, and none is drawn twice.

    Attributes:
      dimension: D, width of the embeddings.
      negatives: K, per anchor.
      tau: temperature of the scores.
      momentum: of the memory banks' moving average.
    """

    published_weight = 0.8

    dimension: int = 128
    negatives: int = 16384
    tau: float = 0.07
    momentum: float = 0.5

    def __post_init__(self):
        integer_option("crd", "dimension", self.dimension, 1)
        integer_option("crd", "negatives", self.negatives, 1)
        number_option("crd", "tau", self.tau, 1e-3, float("inf"))
        number_option("crd", "momentum", self.momentum, 0.0, 0.999)

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        ours, theirs = self.vectors(*pair.outputs)
        keys = jax.random.split(key)
        return networks.conv_arrays(
            "student", keys[0], 0, ours.shape[-1], self.dimension
        ) | networks.conv_arrays("teacher", keys[1], 0, theirs.shape[-1], self.dimension)

    def memory(self, pair: Pair, key: jax.Array) -> Arrays:
        count = len(pair.labels)
        by_class, starts, sizes, strides = _classes(pair.labels)
        others = count - int(sizes.max())
        if self.negatives > others:
            raise UsageError(
                f"method.negatives={self.negatives}: crd expects at most {others}, the examples "
                "outside of the largest class"
            )
        draw = initial("uniform", 1 / math.sqrt(self.dimension / 3))
        keys = jax.random.split(key)
        bank = (count, self.dimension)
        return {
            "student_bank": draw(keys[0], bank),
            "teacher_bank": draw(keys[1], bank),
            "student_z": jnp.float32(-1),
            "teacher_z": jnp.float32(-1),
            "by_class": jnp.asarray(by_class),
            "starts": jnp.asarray(starts),
            "sizes": jnp.asarray(sizes),
            "strides": jnp.asarray(strides),
        }

    def __call__(
        self, student: Outputs, teacher: Outputs, context: Context
    ) -> tuple[Values, Arrays]:
        memory, ids = context.memory, context.ids
        features = dict(zip(("student", "teacher"), self.vectors(student, teacher), strict=True))
        embedded = {
            name: _normalised(networks.conv(context.adapters, name, feature))
            for name, feature in features.items()
        }
        drawn = draw_negatives(context.key, context.labels, self.negatives, memory)
        contrasted = jnp.concatenate([ids[:, None], drawn], axis=1)
        count = memory["by_class"].shape[0]
        values: list[Values] = []
        updated = dict(memory)
        for anchor, bank in (("student", "teacher"), ("teacher", "student")):
            rows = memory[f"{bank}_bank"][contrasted]
            scores = jnp.exp(jnp.einsum("bkd,bd->bk", rows, embedded[anchor]) / self.tau)
            # The scores are normalised by a constant that is estimated from the first batch.
            mean = jax.lax.stop_gradient(jnp.mean(scores)) * count
            z = jnp.where(memory[f"{anchor}_z"] < 0, mean, memory[f"{anchor}_z"])
            updated[f"{anchor}_z"] = z
            values.append(losses.contrastive_nce(scores[:, 0] / z, scores[:, 1:] / z, count=count))
        for name, embedding in embedded.items():
            old = memory[f"{name}_bank"]
            new = self.momentum * old[ids] + (1 - self.momentum) * embedding
            updated[f"{name}_bank"] = old.at[ids].set(jax.lax.stop_gradient(_normalised(new)))
        return add_up(values), updated


def _normalised(x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-24))


def _classes(labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Ids sorted by class, the start and size of each class among them, and prime strides."""
    labels = np.asarray(labels)
    count = len(labels)
    if count > _LARGEST:
        raise UsageError(f"method.name='crd': {count} examples; expected at most {_LARGEST}")
    classes = np.arange(labels.max() + 1)
    by_class = np.argsort(labels, kind="stable").astype(np.int32)
    starts = np.searchsorted(labels[by_class], classes).astype(np.int32)
    sizes = np.bincount(labels, minlength=len(classes)).astype(np.int32)
    # A prime above N divides no number up to N, so its multiples pass through all of them.
    limit = count + 40 * _STRIDES + 1000
    sieve = np.ones(limit, bool)
    for factor in range(2, int(limit**0.5) + 1):
        if sieve[factor]:
            sieve[factor * factor :: factor] = False
    primes = np.flatnonzero(sieve[count + 1 :])[:_STRIDES] + count + 1
    return by_class, starts, sizes, primes.astype(np.int32)


def draw_negatives(
    key: jax.Array, labels: Int[Array, " batch"], negatives: int, memory: Arrays
) -> Int[Array, "batch {negatives}"]:
    """Ids [B, K] of examples of other classes, without repetition in a row.

    Args:
      key: random key.
      labels: classes of the anchors [B].
      negatives: K.
      memory: "by_class" [N], "starts" and "sizes" [classes], "strides" [S], as
        `ContrastiveRepresentation.memory` makes them.
    """
    count = memory["by_class"].shape[0]
    begin_key, stride_key = jax.random.split(key)
    outside = (count - memory["sizes"][labels])[:, None].astype(jnp.uint32)  # [B, 1]
    first = (memory["starts"] + memory["sizes"])[labels][:, None].astype(jnp.uint32)
    begin = jax.random.randint(begin_key, labels.shape, 0, 2**31 - 1)[:, None].astype(jnp.uint32)
    chosen = jax.random.randint(stride_key, labels.shape, 0, memory["strides"].shape[0])
    stride = memory["strides"][chosen][:, None].astype(jnp.uint32) % outside
    index = jnp.arange(negatives, dtype=jnp.uint32)[None, :]
    # (stride * index + begin) mod outside, a byte of the index at a time to stay within 32 bits.
    high = (stride * (index >> 8 & 255)) % outside
    higher = (((stride * (index >> 16)) % outside) * 256) % outside
    low = (stride * (index & 255)) % outside
    offset = (((high + higher) % outside * 256) % outside + low) % outside
    offset = (offset + begin % outside) % outside
    return memory["by_class"][((first + offset) % count).astype(jnp.int32)]


register("crd", ContrastiveRepresentation)
