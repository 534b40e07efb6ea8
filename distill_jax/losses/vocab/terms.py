"""Divergences of two distributions over a vocabulary: value and slope, from log Q and log P.

What `vocab_divergence` computes on a chunk of tokens. The same quantities as in divergences.py,
with the gradient written out, so that one pass over the chunk gives both and nothing is kept for a
backward pass. With g = dD/dQ, the slope with respect to the student's tempered logits is
Q (g - E_Q[g]).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.losses.divergences import kl_summands, log_mixture

#: The sum over the vocabulary, [N, V] -> [N], wherever the parts of it lie.
Total = Callable[[jax.Array], jax.Array]


class Terms(NamedTuple):
    """A divergence [N], and its slope [N, V] with respect to the student's tempered logits."""

    value: jax.Array
    slope: jax.Array


def _centred(q: jax.Array, g: jax.Array, total: Total) -> jax.Array:
    return q * (g - total(q * g)[..., None])


def forward_kl(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """KL(P || Q)."""
    del skew
    return Terms(total(kl_summands(log_p, log_q)), jnp.exp(log_q) - jnp.exp(log_p))


def reverse_kl(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """KL(Q || P)."""
    del skew
    return Terms(total(kl_summands(log_q, log_p)), _centred(jnp.exp(log_q), log_q - log_p, total))


def jensen_shannon(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q, beta = skew.

    The terms of g without a logarithm, 1 - beta P / M - (1 - beta) Q / M, cancel.
    """
    log_m = log_mixture(skew, log_p, log_q)
    value = skew * total(kl_summands(log_p, log_m)) + (1 - skew) * total(kl_summands(log_q, log_m))
    return Terms(value, (1 - skew) * _centred(jnp.exp(log_q), log_q - log_m, total))


def skew_kl(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """KL(P || alpha P + (1 - alpha) Q), alpha = skew."""
    log_m = log_mixture(skew, log_p, log_q)
    slope = (skew - 1) * _centred(jnp.exp(log_q), jnp.exp(log_p - log_m), total)
    return Terms(total(kl_summands(log_p, log_m)), slope)


def skew_reverse_kl(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """KL(Q || (1 - alpha) P + alpha Q), alpha = skew."""
    log_m = log_mixture(skew, log_q, log_p)
    ratio = log_q - log_m
    slope = _centred(jnp.exp(log_q), ratio - skew * jnp.exp(ratio), total)
    return Terms(total(kl_summands(log_q, log_m)), slope)


def total_variation(log_q: jax.Array, log_p: jax.Array, skew: float, total: Total) -> Terms:
    """(1 / 2) sum |P - Q|."""
    del skew
    q = jnp.exp(log_q)
    gap = q - jnp.exp(log_p)
    return Terms(0.5 * total(jnp.abs(gap)), 0.5 * _centred(q, jnp.sign(gap), total))


class Divergence(NamedTuple):
    """A divergence that can be asked for.

    Attributes:
      terms: (log Q [N, V], log P [N, V], skew, total) -> its value and slope.
      skew: the default; None where it has none.
      power: of the temperature that keeps the size of the gradient: 2 where it is quadratic in the
        difference of the logits, 1 where it is linear.
    """

    terms: Callable[[jax.Array, jax.Array, float, Total], Terms]
    skew: float | None
    power: int


DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": Divergence(forward_kl, None, 2),
    "reverse_kl": Divergence(reverse_kl, None, 2),
    "jensen_shannon": Divergence(jensen_shannon, 0.5, 2),
    "skew_kl": Divergence(skew_kl, 0.1, 2),
    "skew_reverse_kl": Divergence(skew_reverse_kl, 0.1, 2),
    "total_variation": Divergence(total_variation, None, 1),
}
