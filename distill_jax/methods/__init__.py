"""Methods: what a student is trained to match, beyond the labels.

A method says which outputs it reads, makes the trainable adapters that it needs, and gives one
value an example; the step multiplies it with `soft_weight`, adds the cross-entropy times
`hard_weight` and averages, in one place. One file a family; a new one registers its names here.

    method = create("soft_target")
    values = method(student_outputs, teacher_outputs, labels, adapters, temperature)   # [B]
"""

from distill_jax.methods import features, logits  # noqa: E402,F401  (they register their names)
from distill_jax.methods.base import Method, check_options, create, names, options, register

__all__ = ["Method", "check_options", "create", "names", "options", "register"]
