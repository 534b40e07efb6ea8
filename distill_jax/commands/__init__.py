"""What the verbs of `distill-jax` do, one file each; `distill_jax.cli` reads their flags."""
