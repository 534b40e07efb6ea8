"""The config of a run: its keys, how it is read, and how it is checked.

`keys` has the kinds of keys, `schema` the table of all keys, `files` reads a config file,
`resolver` fills in defaults and checks every value, `checks` checks keys together, and `describe`
prints the keys.
"""

from distill_jax.config.files import apply_overrides, literal, load, read
from distill_jax.config.resolver import (
    changed_values,
    check,
    differences,
    digest,
    flatten,
    method_options,
    resolve,
    resolve_saved,
    student_options,
    to_json,
    unflatten,
)
from distill_jax.config.user_modules import trusting_workdirs

__all__ = [
    "apply_overrides",
    "changed_values",
    "check",
    "differences",
    "digest",
    "flatten",
    "literal",
    "load",
    "method_options",
    "read",
    "resolve",
    "resolve_saved",
    "student_options",
    "to_json",
    "trusting_workdirs",
    "unflatten",
]
