"""Configs: `keys` says what a key accepts, `schema` lists every key, `load` reads and resolves."""

from distill_jax.config.load import (
    apply_overrides,
    check,
    differences,
    digest,
    flatten,
    from_json,
    literal,
    load,
    method_options,
    read,
    resolve,
    student_options,
    to_json,
    unflatten,
)

__all__ = [
    "apply_overrides",
    "check",
    "differences",
    "digest",
    "flatten",
    "from_json",
    "literal",
    "load",
    "method_options",
    "read",
    "resolve",
    "student_options",
    "to_json",
    "unflatten",
]
