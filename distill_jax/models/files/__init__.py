"""Weights on disk: our own model folders, PyTorch files, safetensors, on a disk or in a bucket.

Nothing that is read here is executed.
"""
