"""distill_jax: a small model trained to match a large one, in one compiled step, on any chips.

Nothing is imported here but the version, so that `import distill_jax` costs nothing; the rooms are
`distill_jax.losses`, `.models`, `.data`, `.methods`, `.teachers`, `.training`, `.reports` and
`distill_jax.runs.experiment`, which wires them together.
"""

__version__ = "0.1.0"
