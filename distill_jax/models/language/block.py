"""One layer of a decoder: attention, then an MLP or experts, each added to the residual stream."""

from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.models.language.attention import Attention
from distill_jax.models.language.config import DecoderConfig, LayerRun
from distill_jax.models.language.experts import Experts
from distill_jax.models.language.layers import MLP, Norm
from distill_jax.models.language.rope import Rope
from distill_jax.models.language.sharding import DecoderSharding


class Block(nnx.Module):
    """Attention and MLP with their norms; the parameters of the layers of a run are stacked.

    A layer is two calls, `attention_inputs` and `finish`; the decoder computes the attention in
    between, because it updates the key/value cache of the whole run of layers there.
    """

    def __init__(
        self,
        config: DecoderConfig,
        run: LayerRun,
        *,
        sharding: DecoderSharding | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        lead = (run.layers,)

        def norm(placements: tuple[str, ...]) -> Norm | None:
            if config.norm_placement not in placements:
                return None
            return Norm(config, config.dim, lead=lead, param_dtype=param_dtype)

        def mlp() -> MLP | Experts:
            if run.dense or not config.experts:
                width = config.dense_mlp_dim if run.dense else config.mlp_dim
                return MLP(config, width=width, lead=lead, param_dtype=param_dtype, rngs=rngs)
            return Experts(config, lead=lead, sharding=sharding, param_dtype=param_dtype, rngs=rngs)

        self.residual_scale = config.residual_scale
        self.attention_norm = norm(("pre", "sandwich"))
        self.attention = Attention(config, lead=lead, param_dtype=param_dtype, rngs=rngs)
        self.attention_post_norm = norm(("post", "sandwich"))
        self.mlp_norm = norm(("pre", "sandwich"))
        self.mlp = mlp()
        self.mlp_post_norm = norm(("post", "sandwich"))

    def attention_inputs(self, x: Array, rope: Rope | None) -> tuple[Array, Array, Array]:
        """Queries, keys and values of the residual stream x, see `Attention.project`."""
        return self.attention.project(_optional(self.attention_norm, x), rope)

    def finish(self, x: Array, attended: Array) -> Array:
        """The residual stream after this layer.

        Args:
          x: the stream before this layer, [B, T, D].
          attended: the attention of its `attention_inputs`, [B, T, N, H].

        Returns:
          [B, T, D].
        """
        x = self._add(
            x, _optional(self.attention_post_norm, self.attention.project_output(attended))
        )
        return self._add(x, _optional(self.mlp_post_norm, self.mlp(_optional(self.mlp_norm, x))))

    def _add(self, x: Array, more: Array) -> Array:
        return x + (more if self.residual_scale == 1.0 else more * self.residual_scale)


def _optional(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
