"""The next token from its logits: greedy, or drawn with a temperature, top-k and top-p.

The order is that of transformers: temperature, then the k most likely, then the smallest set of
them that has the mass p (Holtzman et al., 2020, section 3.1). Pure functions of arrays.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is chosen. The defaults draw from the model's own distribution.

    Attributes:
      temperature: what the logits are divided by; 0 takes the most likely token.
      top_k: only the k most likely tokens are drawn, and those as likely as the k-th; 0 is off.
      top_p: only the most likely tokens that together have this mass are drawn, and those as
        likely as the last of them; 1 is off. In (0, 1].
      key: what an error calls the group of these values.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    key: dataclasses.InitVar[str] = "sampler"

    def __post_init__(self, key: str) -> None:
        def require(condition: bool, field: str, expected: str) -> None:
            if not condition:
                raise UsageError(f"{key}.{field}={getattr(self, field)!r}: expected {expected}")

        def number(value: object) -> bool:
            return type(value) in (int, float) and math.isfinite(value)

        hot = number(self.temperature) and self.temperature >= 0
        require(hot, "temperature", "a number of at least 0; 0 is greedy")
        few = type(self.top_k) is int and self.top_k >= 0
        require(few, "top_k", "an int of at least 0; 0 is off")
        mass = number(self.top_p) and 0 < self.top_p <= 1
        require(mass, "top_p", "a number in (0, 1]; 1 is off")


def filter_logits(logits: Array, sampler: Sampler, vocab_size: int) -> Array:
    """The logits, at the temperature, of the tokens that may be drawn; -inf for the others.

    Where several tokens are equally likely at the border of top-k or top-p, all of them stay:
    transformers does so for top-k, and for top-p keeps those that its sort happens to put first.

    Args:
      logits: float32 [B, V].
      sampler: with a temperature above 0.
      vocab_size: how many ids are real; an id at or above it is never drawn.

    Returns:
      float32 [B, V].
    """
    real = jnp.arange(logits.shape[-1]) < vocab_size
    logits = jnp.where(real, logits / sampler.temperature, -jnp.inf)
    if 0 < sampler.top_k < vocab_size:
        lowest = jax.lax.top_k(logits, sampler.top_k)[0][..., -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if sampler.top_p < 1:
        falling = jnp.sort(logits, axis=-1, descending=True)
        chances = jax.nn.softmax(falling, axis=-1)
        # The mass of the more likely ones; 0 for the first, which therefore always stays.
        before = jnp.cumsum(chances, axis=-1) - chances
        lowest = jnp.min(
            jnp.where(before < sampler.top_p, falling, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits


def sample(logits: Array, keys: Array, sampler: Sampler, vocab_size: int) -> Array:
    """One token a row.

    Args:
      logits: float32 [B, V].
      keys: typed keys [B], one for each row and never used again; greedy reads none.
      sampler: how.
      vocab_size: how many ids are real.

    Returns:
      int32 [B], in [0, vocab_size). Greedy takes the first of equally likely tokens.
    """
    if sampler.temperature == 0:
        return jnp.argmax(logits[:, :vocab_size], axis=-1).astype(jnp.int32)
    chosen = filter_logits(logits, sampler, vocab_size)
    return jax.vmap(jax.random.categorical)(keys, chosen).astype(jnp.int32)


def log_probability(logits: Array, tokens: Array, vocab_size: int) -> Array:
    """The model's own log-probability of tokens, among the real ids and at temperature 1.

    Args:
      logits: float32 [B, V].
      tokens: int [B].
      vocab_size: how many ids are real.

    Returns:
      float32 [B], in nats.
    """
    logits = logits[:, :vocab_size]
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
