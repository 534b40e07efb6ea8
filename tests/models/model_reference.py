"""What tests of the models share: drawn arrays, and a convolution in float64."""

import numpy as np


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolve(x, kernel, stride=1, groups=1):
    """Cross-correlation in float64, NHWC and HWIO, zero padding of (size - 1) / 2 on all sides."""
    size, outputs = kernel.shape[0], kernel.shape[-1] // groups
    margin = (size - 1) // 2
    padded = np.pad(np.float64(x), ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    parts = [
        np.einsum("bhwcij,ijco->bhwo", part, kernel[..., i * outputs : (i + 1) * outputs])
        for i, part in enumerate(np.split(windows[:, ::stride, ::stride], groups, axis=3))
    ]
    return np.concatenate(parts, -1)
