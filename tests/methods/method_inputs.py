"""Small outputs of two networks of unequal widths and sizes, and a context for methods."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import methods, models
from distill_jax.models import Outputs

BATCH, CLASSES = 6, 5
SHAPES = {
    "student": {"stem": (8, 8, 4), "stage1": (8, 8, 4), "stage2": (4, 4, 6), "stage3": (2, 2, 8)},
    "teacher": {"stem": (8, 8, 4), "stage1": (8, 8, 6), "stage2": (4, 4, 10), "stage3": (2, 2, 12)},
}
SPEC = models.Spec("mlp", {}, (8, 8, 3), CLASSES, (0.5,) * 3, (0.25,) * 3)
LABELS = np.arange(40) % CLASSES


def outputs(who: str, seed: int = 0, shapes: dict | None = None) -> Outputs:
    """Random logits, stages with their twins before the ReLU, and a pooled feature."""
    generator = np.random.default_rng([seed, len(who), ord(who[0])])
    taps = {}
    for name, shape in (shapes or SHAPES[who]).items():
        before = jnp.asarray(generator.normal(size=(BATCH, *shape)), jnp.float32)
        taps |= {f"{name}_pre": before, name: jax.nn.relu(before)}
    taps["pooled"] = jnp.mean(taps["stage3"], axis=(1, 2))
    return Outputs(jnp.asarray(generator.normal(size=(BATCH, CLASSES)) * 2, jnp.float32), taps)


def teacher_params(generator=None) -> dict[str, jax.Array]:
    """A classifier, and the normalisation that ends each stage, under the names of a resnet."""
    generator = generator or np.random.default_rng(3)
    params = {"classifier/kernel": (12, CLASSES), "classifier/bias": (CLASSES,)}
    for name, shape in SHAPES["teacher"].items():
        params[f"{name}/0/second/norm/scale"] = params[f"{name}/0/second/norm/bias"] = shape[-1:]
    return {k: jnp.asarray(generator.normal(size=v), jnp.float32) for k, v in params.items()}


def pair(student: Outputs, teacher: Outputs) -> methods.Pair:
    """Both as `Pair` has them: shapes of one example."""
    shapes = [
        jax.tree.map(lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype), o)
        for o in (student, teacher)
    ]
    return methods.Pair(*shapes, SPEC, {}, teacher_params(), LABELS)


def context(**changed) -> methods.Context:
    """A context of BATCH examples; `adapters` and `memory` as given."""
    labels = jnp.asarray(LABELS[:BATCH])
    whole = methods.Context(
        labels=labels,
        targets=jax.nn.one_hot(labels, CLASSES),
        ids=jnp.arange(BATCH),
        images=jnp.full((BATCH, 8, 8, 3), 0.5),
        adapters={},
        memory={},
        teacher_params=teacher_params(),
        temperature=jnp.float32(4),
        epoch=jnp.float32(0),
        key=jax.random.key(7),
        spec=SPEC,
    )
    return dataclasses.replace(whole, **changed)


def prepared(name: str, student: Outputs, teacher: Outputs, **options):
    """(method, context with its arrays)."""
    method = methods.create(name, **options)
    both = pair(student, teacher)
    adapters = method.adapters(both, jax.random.key(1))
    memory = method.memory(both, jax.random.key(2))
    return method, context(adapters=adapters, memory=memory)
