"""DeiT, the data-efficient vision transformers (Touvron et al., 2021).

A vision transformer (Dosovitskiy et al., 2021) with, by default, a distillation token next to the
class token and a head for each: the first learns from the labels, the second from the teacher.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.initializers import initial
from distill_jax.models.outputs import Outputs
from distill_jax.models.registry import register, require
from distill_jax.models.vision import layers
from distill_jax.models.vision.image_classifier import ImageClassifier

# The reference implementation truncates this distribution at +-2, a hundred deviations away.
INITIAL = initial("normal", 0.02)


class LayerNorm(nnx.LayerNorm):
    """Layer normalisation (Ba et al., 2016), in float32 whatever dtype goes through."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        super().__init__(
            features, epsilon=1e-6, dtype=jnp.float32, use_fast_variance=False, rngs=rngs
        )

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return super().__call__(x, mask=mask).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention (Vaswani et al., 2017) of tokens [B, T, D]; its softmax is float32."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, kernel_init=INITIAL, rngs=rngs)
        self.projection = nnx.Linear(width, width, dtype=dtype, kernel_init=INITIAL, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(qkv, 2, 0)
        mixed = jax.nn.dot_product_attention(query, key, value, implementation="xla")
        return self.projection(mixed.reshape(x.shape))


class Block(nnx.Module):
    """Attention, then two dense layers with the exact GELU between; each normalised first."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(width, rngs=rngs)
        self.dense1 = nnx.Linear(width, 4 * width, dtype=dtype, kernel_init=INITIAL, rngs=rngs)
        self.dense2 = nnx.Linear(4 * width, width, dtype=dtype, kernel_init=INITIAL, rngs=rngs)

    def attend(self, x: Array) -> Array:
        """The first residual branch; the caller adds it to x."""
        return self.attention(self.norm1(x))

    def transform(self, x: Array) -> Array:
        """The second residual branch; the caller adds it to x."""
        return self.dense2(nnx.gelu(self.dense1(self.norm2(x)), approximate=False))


class DeiT(ImageClassifier):
    """Class token, distillation token and patches as tokens; blocks; a head for either token.

    The logits are the mean of both heads, the inference rule of Touvron et al. (sec. 4); a method
    that trains each head on a target of its own reads them from the taps.

    Taps: "block1" .. "block12" [B, T, D], the tokens after each block; "pooled" [B, D], the class
    token after the last normalisation; with a distillation token also "class_logits" and
    "distillation_logits", float32 [B, K].

    Args:
      width: D.
      heads: of the attention.
      depth: number of blocks.
      distillation_token: whether there is one.
      patch: side of a patch in pixels; divides H and W.
      drop_path: rate of stochastic depth in the last block, in [0, 1); it rises linearly from 0 in
        the first.
      input_shape, num_classes, dtype, rngs: as of `ImageClassifier`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        input_shape: tuple[int, int, int],
        num_classes: int,
        *,
        distillation_token: bool = True,
        patch: int = 16,
        drop_path: float = 0.0,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        height, breadth, channels = input_shape
        divides = patch > 0 and height % patch == 0 and breadth % patch == 0
        require(divides, "patch", patch, f"a divisor of the sides of the image, {height}x{breadth}")
        require(0 <= drop_path < 1, "drop_path", drop_path, "a rate in [0, 1)")

        def token(count: int) -> nnx.Param:
            return nnx.Param(INITIAL(rngs.params(), (count, width)))

        def head() -> nnx.Linear:
            return layers.classifier(
                width,
                num_classes,
                kernel_init=INITIAL,
                bias_init=nnx.initializers.zeros,
                rngs=rngs,
            )

        super().__init__(input_shape, dtype)
        self.rates = tuple(drop_path * i / max(depth - 1, 1) for i in range(depth))
        within = initial("uniform", (patch * patch * channels) ** -0.5)
        self.stem = nnx.Conv(
            channels,
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=dtype,
            kernel_init=within,
            bias_init=within,
            rngs=rngs,
        )
        self.class_token = token(1)
        self.distillation_token = token(1) if distillation_token else None
        patches = (height // patch) * (breadth // patch)
        self.position_embedding = token(1 + distillation_token + patches)
        self.blocks = nnx.List(Block(width, heads, dtype=dtype, rngs=rngs) for _ in range(depth))
        self.norm = LayerNorm(width, rngs=rngs)
        self.classifier = head()
        self.distillation_classifier = head() if distillation_token else None

    def outputs(self, x: Array, *, train: bool, key: Array | None) -> Outputs:
        x = self.stem(x)
        batch, _, _, width = x.shape
        parts = [
            jnp.broadcast_to(token[...], (batch, 1, width)).astype(x.dtype)
            for token in (self.class_token, self.distillation_token)
            if token is not None
        ]
        x = jnp.concatenate([*parts, x.reshape(batch, -1, width)], axis=1)
        x = x + self.position_embedding[...].astype(x.dtype)[None]
        taps = {}
        for i, (block, rate) in enumerate(zip(self.blocks, self.rates, strict=True)):
            for j, branch in enumerate((block.attend, block.transform)):
                x = x + layers.drop_path(branch(x), rate, train=train, key=key, layer=2 * i + j)
            taps[f"block{i + 1}"] = x
        x = self.norm(x)
        taps["pooled"] = x[:, 0]
        logits = self.classifier(taps["pooled"])
        if self.distillation_classifier is not None:
            taps["class_logits"] = logits
            taps["distillation_logits"] = self.distillation_classifier(x[:, 1])
            logits = (logits + taps["distillation_logits"]) / 2
        return Outputs(logits, taps)


register("deit_tiny", DeiT, 192, 3, 12)
register("deit_small", DeiT, 384, 6, 12)
