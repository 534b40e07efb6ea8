"""Sampling the next token from its logits: greedy, or with a temperature, top-k and top-p.

The order is that of transformers: first the temperature, then top-k, then top-p, the smallest set
of the most likely tokens whose mass is at least p (nucleus sampling: Holtzman et al., 2020, section
3.1). Pure functions of arrays.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from distill_jax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a token is chosen. The defaults sample from the model's own distribution.

    Attributes:
      temperature: divides the logits; 0 is greedy, the most likely token.
      top_k: only the k most likely tokens, and those as likely as the k-th, can be sampled; 0 is
        off.
      top_p: only the fewest most likely tokens whose mass is at least p, and those as likely as the
        last of them, can be sampled; in (0, 1], 1 is off.
      key: the config section that errors name.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    key: dataclasses.InitVar[str] = "sampler"

    def __post_init__(self, key: str) -> None:
        def require(condition: bool, field: str, expected: str) -> None:
            if not condition:
                raise UsageError(f"{key}.{field}={getattr(self, field)!r}: expected {expected}")

        def is_number(value: float) -> bool:
            return type(value) in (int, float) and math.isfinite(value)

        valid = is_number(self.temperature) and self.temperature >= 0
        require(valid, "temperature", "a number of at least 0; 0 is greedy")
        valid = type(self.top_k) is int and self.top_k >= 0
        require(valid, "top_k", "an int of at least 0; 0 is off")
        valid = is_number(self.top_p) and 0 < self.top_p <= 1
        require(valid, "top_p", "a number in (0, 1]; 1 is off")


def filter_logits(logits: Array, sampler: Sampler, vocab_size: int) -> Array:
    """The logits divided by the temperature, -inf for tokens that top-k or top-p excludes.

    Where several tokens are equally likely at the threshold of top-k or top-p, all of them are
    kept. transformers does so for top-k; for top-p it keeps those that its sort puts first.

    Args:
      logits: float32 [B, V].
      sampler: with a temperature above 0.
      vocab_size: the number of real ids; an id at or above it is never sampled.

    Returns:
      float32 [B, V].
    """
    real = jnp.arange(logits.shape[-1]) < vocab_size
    logits = jnp.where(real, logits / sampler.temperature, -jnp.inf)
    if 0 < sampler.top_k < vocab_size:
        lowest = jax.lax.top_k(logits, sampler.top_k)[0][..., -1:]
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    if sampler.top_p < 1:
        descending = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(descending, axis=-1)
        # The mass of all more likely tokens; 0 for the most likely one, which is therefore kept.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        lowest = jnp.min(
            jnp.where(before < sampler.top_p, descending, jnp.inf), axis=-1, keepdims=True
        )
        logits = jnp.where(logits >= lowest, logits, -jnp.inf)
    return logits


def sample(logits: Array, keys: Array | None, sampler: Sampler, vocab_size: int) -> Array:
    """Samples one token for each row.

    Args:
      logits: float32 [B, V].
      keys: typed keys [B], each used once; None for greedy decoding, which uses none.
      sampler: how a token is chosen.
      vocab_size: the number of real ids.

    Returns:
      int32 [B], in [0, vocab_size). Greedy decoding takes the lowest id of equally likely tokens.
    """
    if sampler.temperature == 0:
        return jnp.argmax(logits[:, :vocab_size], axis=-1).astype(jnp.int32)
    assert keys is not None  # only greedy decoding needs none
    chosen = filter_logits(logits, sampler, vocab_size)
    return jax.vmap(jax.random.categorical)(keys, chosen).astype(jnp.int32)


def log_probability(logits: Array, tokens: Array, vocab_size: int) -> Array:
    """The model's log-probability of tokens, over the real ids and at temperature 1.

    Args:
      logits: float32 [B, V].
      tokens: int [B].
      vocab_size: the number of real ids.

    Returns:
      float32 [B], in nats.
    """
    logits = logits[:, :vocab_size]
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
