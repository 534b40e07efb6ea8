"""A layer of a decoder: attention and MLP or experts, each beside the stream of activations."""

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.attention import Attention
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.experts import Experts
from distill_jax.models.language.layers import MLP, Norm
from distill_jax.models.language.layout import Layout


class Block(nnx.Module):
    """Attention and MLP with their norms; its parameters are those of `count` layers."""

    def __init__(
        self,
        config: DecoderConfig,
        count: int,
        *,
        layout: Layout | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        lead = (count,)
        shared = dict(lead=lead, param_dtype=param_dtype, rngs=rngs)

        def norm(placements: tuple[str, ...]) -> Norm | None:
            if config.norm_placement not in placements:
                return None
            return Norm(config, config.dim, lead=lead, param_dtype=param_dtype)

        self.attention_norm = norm(("pre", "sandwich"))
        self.attention = Attention(config, **shared)
        self.attention_post_norm = norm(("post", "sandwich"))
        self.mlp_norm = norm(("pre", "sandwich"))
        self.mlp = (
            Experts(config, layout=layout, **shared) if config.experts else MLP(config, **shared)
        )
        self.mlp_post_norm = norm(("post", "sandwich"))

    def start(self, x: Array, turns: tuple[Array, Array] | None) -> tuple[Array, Array, Array]:
        """What the attention of x mixes: queries, keys and values."""
        entering = x if self.attention_norm is None else self.attention_norm(x)
        return self.attention.project(entering, turns)

    def finish(self, x: Array, mixed: Array) -> Array:
        """The stream after this layer, from the one before it and the mixed values."""
        x = x + _optional(self.attention_post_norm, self.attention.merge(mixed))
        entering = _optional(self.mlp_norm, x)
        return x + _optional(self.mlp_post_norm, self.mlp(entering))


def _optional(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
