"""Methods: what a student is trained to match, beyond the labels.

A method reads outputs of both networks, makes the trainable adapters that it needs, and returns one
value per example; the step multiplies the values with `soft_weight`, adds the cross-entropy times
`hard_weight` and averages, in one place. Each file has one family of methods and registers their
names; a new file is imported below.

    method = create("soft_target")
    values = method(student_outputs, teacher_outputs, context)   # [B]
    both = create("crd+soft_target", **{"crd.weight": 0.8})
"""

from distill_jax.methods import (  # noqa: F401  (import registers the names)
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
