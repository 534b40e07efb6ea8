"""The ids of a vocabulary that one device holds, and the sums over all ids.

Devices that share a vocabulary exchange [C] statistics of a chunk of C tokens, such as the
normaliser of a softmax; logits [C, W] stay where they are.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

#: The logit of an id that does not exist: finite, so that 0 times it is 0 and not NaN.
IMPOSSIBLE = -1e30


@dataclasses.dataclass(frozen=True)
class VocabShard:
    """W ids of a vocabulary of which `real` exist; the rest is padding.

    Attributes:
      real: how many ids exist over all shards.
      axis: of the mesh, over which the vocabulary is split into equal shards; None for one shard.
    """

    real: int
    axis: str | None = None

    def drop_padding(self, logits: Float[Array, "tokens padded"]) -> Float[Array, "tokens width"]:
        """Without padding: cut off on a single shard, masked on several, which stay as wide."""
        if self.axis is None:
            return logits[:, : self.real]
        width = logits.shape[1]
        if self.real == width * jax.lax.axis_size(self.axis):
            return logits
        return jnp.where(self.ids(width)[None] < self.real, logits, IMPOSSIBLE)

    def ids(self, width: int) -> Int[Array, " width"]:
        """The ids of this shard, int32."""
        local = jnp.arange(width, dtype=jnp.int32)
        return local if self.axis is None else local + width * jax.lax.axis_index(self.axis)

    def total(self, values: Float[Array, "*rows width"]) -> Float[Array, "*rows"]:
        """The sum over the whole vocabulary."""
        own = jnp.sum(values, axis=-1)
        return own if self.axis is None else jax.lax.psum(own, self.axis)

    def logsumexp(self, logits: Float[Array, "tokens width"]) -> Float[Array, " tokens"]:
        """log of the sum of exponentials over the whole vocabulary."""
        if self.axis is None:
            return jax.nn.logsumexp(logits, axis=-1)
        highest = jax.lax.pmax(jnp.max(logits, axis=-1), self.axis)
        return highest + jnp.log(self.total(jnp.exp(logits - highest[:, None])))

    def log_softmax(self, logits: Float[Array, "tokens width"]) -> Float[Array, "tokens width"]:
        """Log-probabilities, normalised over the whole vocabulary."""
        if self.axis is None:
            return jax.nn.log_softmax(logits, axis=-1)
        shifted = logits - jax.lax.pmax(jnp.max(logits, axis=-1), self.axis)[:, None]
        return shifted - jnp.log(self.total(jnp.exp(shifted)))[:, None]

    def argmax(self, logits: Float[Array, "tokens width"]) -> Int[Array, " tokens"]:
        """The id of the highest logit, int32; the first of equals."""
        # Two reductions of one value each, where a CPU computes argmax, of a pair, without vectors.
        height = jnp.max(logits, axis=-1)
        if self.axis is not None:
            height = jax.lax.pmax(height, self.axis)
        ids = self.ids(logits.shape[1])[None]
        none = jnp.iinfo(jnp.int32).max
        best = jnp.min(jnp.where(logits == height[:, None], ids, none), axis=-1)
        return best if self.axis is None else jax.lax.pmin(best, self.axis)

    def scatter(
        self,
        ids: Int[Array, "tokens named"],
        values: Float[Array, "tokens named"],
        width: int,
        absent: float,
    ) -> Float[Array, "tokens {width}"]:
        """The values at their ids, `absent` elsewhere; a negative id names nothing."""
        local = ids if self.axis is None else ids - width * jax.lax.axis_index(self.axis)
        # A negative index would wrap; one of `width` is dropped.
        local = jnp.where((ids < 0) | (local < 0), width, local)
        empty = jnp.full((ids.shape[0], width), absent, values.dtype)
        rows = jnp.arange(ids.shape[0])[:, None]
        return empty.at[rows, local].set(values, mode="drop")
