"""Grids of few bits for weights and activations, and recipes that name them by parameter path.

- `grids`: how a kernel becomes integers (or 8-bit floats) and scales, and back;
- `recipes`: which parameters are quantized, and on which grid;
- `packing`: codes in fewer bytes, in memory and in the files of compressed-tensors.

The room is pure: it knows arrays and names, and no model. See docs/after_training.md for what of
qwix is used and why the grids are our own.
"""
