"""Methods: what a student is trained to match, beyond the labels.

A method says which outputs it reads, makes the trainable adapters that it needs, and gives one
value an example; the step multiplies it with `soft_weight`, adds the cross-entropy times
`hard_weight` and averages, in one place. One file a family; a new one registers its names here.

    method = create("soft_target")
    values = method(student_outputs, teacher_outputs, context)   # [B]
    both = create("crd+soft_target", **{"crd.weight": 0.8})
"""

from distill_jax.methods import (  # noqa: F401  (each registers its names)
    classifiers,
    contrastive,
    hints,
    logits,
    maps,
    overhaul,
    peers,
    phased,
    relations,
    states,
    tokens,
)
from distill_jax.methods.base import (
    Context,
    Method,
    Pair,
    Stage,
    names,
    names_for_text,
    register,
)
from distill_jax.methods.combined import (
    Term,
    check_options,
    create,
    options,
    published_weight,
    terms,
)

__all__ = [
    "Context",
    "Method",
    "Pair",
    "Stage",
    "Term",
    "check_options",
    "create",
    "names",
    "names_for_text",
    "options",
    "published_weight",
    "register",
    "terms",
]
