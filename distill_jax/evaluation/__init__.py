"""Metrics: `classification` of logits against labels, `text_metrics` of generated text.

Left out on purpose: networks and devices. The loops over a split are in `distill_jax.tasks`.
"""
