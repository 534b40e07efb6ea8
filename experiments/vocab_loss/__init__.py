"""Divergences over a vocabulary: time, memory and numbers of this library and of PyTorch."""
