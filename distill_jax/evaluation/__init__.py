"""What is measured: `classification` on labels and logits, `answers` on written text.

Left out on purpose: networks and devices. The loops over a split are in `distill_jax.tasks`.
"""
