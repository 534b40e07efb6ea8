"""Batch normalisation, and the three conventions of it that every network takes as options."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.kernels import batch_norm as kernels

#: The options and their defaults; see `set_batch_norm`.
BATCH_NORM = {"bn_momentum": 0.9, "bn_epsilon": 1e-5, "bn_unbiased": False}


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy, 2015), in float32 whatever the dtype of its input.

    `nnx.BatchNorm` at dtype bfloat16 would round the running statistics to 8 bits on every use.
    Here only the result is rounded, and XLA fuses the two conversions into the arithmetic.

    Attributes:
      unbiased: whether the running variance is that of a sample, n / (n - 1) times the one that
        normalises the batch, for n values a channel in the global batch. PyTorch's is.
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(features, momentum=0.9, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)
        self.unbiased = False

    # The mode is an argument of every call: NNX's own signature leaves it to a flag of the module.
    def __call__(  # type: ignore[override]
        self, x: Array, *, train: bool, residual: Array | None = None, relu: bool = False
    ) -> Array:
        """Normalises, adds the residual, if any, and applies the ReLU, if asked to.

        Args:
          x: [..., C].
          train: whether the batch's statistics normalise and update the running ones, or the
            running ones normalise.
          residual: like x.
          relu: whether a ReLU follows.
        """
        if train and kernels.has_form(x):
            scale, bias = self._affine()
            y, mean, var = kernels.normalize(
                x, scale, bias, residual, epsilon=self.epsilon, relu=relu
            )
            kept = self.momentum
            self.mean[...] = kept * self.mean[...] + (1 - kept) * mean
            self.var[...] = kept * self.var[...] + (1 - kept) * var * self._correction(x)
            return y
        y = self._by_nnx(x, train=train).astype(x.dtype)
        y = y if residual is None else y + residual
        return nnx.relu(y) if relu else y

    def frozen(self) -> tuple[Array, Array]:
        """The factor and the offset, float32 [C], by which the running statistics normalise."""
        scale, bias = self._affine()
        factor = scale * jax.lax.rsqrt(self.var[...] + self.epsilon)
        return factor, bias - self.mean[...] * factor

    def _affine(self) -> tuple[Array, Array]:
        assert self.scale is not None and self.bias is not None  # as `__init__` makes them
        return self.scale[...], self.bias[...]

    def _correction(self, x: Array) -> float:
        """What the running variance's new part is multiplied by."""
        values = x.size // self.num_features
        return values / (values - 1) if self.unbiased and values > 1 else 1.0

    def _by_nnx(self, x: Array, *, train: bool) -> Array:
        correction = self._correction(x) if train else 1.0
        if correction == 1.0:
            return super().__call__(x, use_running_average=not train)
        # NNX computes old * kept + new * (1 - kept) in place. Only the new part is to be scaled, so
        # the old one is divided by the factor first and the sum multiplied by it.
        self.var[...] = self.var[...] / correction
        y = super().__call__(x, use_running_average=False)
        self.var[...] = self.var[...] * correction
        return y


def set_batch_norm(
    module: nnx.Module, *, bn_momentum: float, bn_epsilon: float, bn_unbiased: bool
) -> None:
    """Sets the conventions of every `BatchNorm` in a network, which become part of its graph.

    Args:
      module: the network, changed in place.
      bn_momentum: the part of the running statistics that a step keeps, in [0, 1]. PyTorch calls
        1 - that momentum.
      bn_epsilon: added to the variance, positive.
      bn_unbiased: see `BatchNorm`.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, BatchNorm):
            part.momentum = bn_momentum
            part.epsilon = bn_epsilon
            part.unbiased = bn_unbiased
