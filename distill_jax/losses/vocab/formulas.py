"""Divergences of two distributions over a vocabulary: value and slope, from log Q and log P.

`vocab_divergence` applies them to a chunk of tokens. They are the divergences of divergences.py
with the gradient written out, so that one pass over the chunk gives both and nothing is kept for a
backward pass. With g = dD/dQ, the slope with respect to the student's tempered logits is
Q (g - E_Q[g]).

A new divergence is a function here, a row of `FORMULAS`, its plain form in divergences.py, and a
method (a `methods.logits.Divergence`) that has both.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.errors import UsageError, unknown
from distill_jax.losses.divergences import kl_summands, log_mixture
from distill_jax.losses.logits import check_fraction

#: Log-probabilities of the ids on this device.
Logs = Float[Array, "tokens width"]
#: Sums over the vocabulary, [N, V] -> [N], on one device or across the devices that share it.
Total = Callable[[Array], Array]


class ValueAndSlope(NamedTuple):
    """A divergence [N], and its slope [N, V] with respect to the student's tempered logits."""

    value: Float[Array, " tokens"]
    slope: Float[Array, "tokens width"]


def _through_softmax(q: Logs, g: Logs, total: Total) -> Logs:
    """The slope with respect to the logits of Q, from g = dD/dQ: Q (g - E_Q[g])."""
    return q * (g - total(q * g)[..., None])


def forward_kl(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """KL(P || Q)."""
    del skew
    return ValueAndSlope(total(kl_summands(log_p, log_q)), jnp.exp(log_q) - jnp.exp(log_p))


def reverse_kl(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """KL(Q || P)."""
    del skew
    return ValueAndSlope(
        total(kl_summands(log_q, log_p)), _through_softmax(jnp.exp(log_q), log_q - log_p, total)
    )


def jensen_shannon(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """beta KL(P || M) + (1 - beta) KL(Q || M), M = beta P + (1 - beta) Q, beta = skew.

    The terms of g without a logarithm, 1 - beta P / M - (1 - beta) Q / M, cancel.
    """
    log_m = log_mixture(skew, log_p, log_q)
    value = skew * total(kl_summands(log_p, log_m)) + (1 - skew) * total(kl_summands(log_q, log_m))
    return ValueAndSlope(value, (1 - skew) * _through_softmax(jnp.exp(log_q), log_q - log_m, total))


def skew_kl(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """KL(P || alpha P + (1 - alpha) Q), alpha = skew."""
    log_m = log_mixture(skew, log_p, log_q)
    slope = (skew - 1) * _through_softmax(jnp.exp(log_q), jnp.exp(log_p - log_m), total)
    return ValueAndSlope(total(kl_summands(log_p, log_m)), slope)


def skew_reverse_kl(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """KL(Q || (1 - alpha) P + alpha Q), alpha = skew."""
    log_m = log_mixture(skew, log_q, log_p)
    ratio = log_q - log_m
    slope = _through_softmax(jnp.exp(log_q), ratio - skew * jnp.exp(ratio), total)
    return ValueAndSlope(total(kl_summands(log_q, log_m)), slope)


def total_variation(log_q: Logs, log_p: Logs, skew: float, total: Total) -> ValueAndSlope:
    """(1 / 2) sum |P - Q|."""
    del skew
    q = jnp.exp(log_q)
    gap = q - jnp.exp(log_p)
    return ValueAndSlope(0.5 * total(jnp.abs(gap)), 0.5 * _through_softmax(q, jnp.sign(gap), total))


class Formula(NamedTuple):
    """How a divergence over the vocabulary is computed.

    Attributes:
      value_and_slope: (log Q [N, V], log P [N, V], skew, total) -> its value and slope.
      skew: the default; None for a divergence that has no skew.
      power: of the temperature that keeps the gradient's size as T grows: 2 where the divergence
        is quadratic in the difference of the logits, 1 where it is linear.
    """

    value_and_slope: Callable[[Logs, Logs, float, Total], ValueAndSlope]
    skew: float | None
    power: int


#: Every divergence over the vocabulary by name. A method names the one it minimises, see
#: `methods.Method.vocab_divergence`.
FORMULAS: dict[str, Formula] = {
    "forward_kl": Formula(forward_kl, None, 2),
    "reverse_kl": Formula(reverse_kl, None, 2),
    "jensen_shannon": Formula(jensen_shannon, 0.5, 2),
    "skew_kl": Formula(skew_kl, 0.1, 2),
    "skew_reverse_kl": Formula(skew_reverse_kl, 0.1, 2),
    "total_variation": Formula(total_variation, None, 1),
}


@dataclasses.dataclass(frozen=True)
class VocabDivergence:
    """A divergence over the vocabulary, and its skew.

    Attributes:
      name: one of `FORMULAS`.
      skew: from 0 to 1; None for the formula's default. Always None if the formula has no skew.

    Raises:
      UsageError: the name is unknown, or the formula does not take this skew.
    """

    name: str = "forward_kl"
    skew: float | None = None

    def __post_init__(self):
        if self.name not in FORMULAS:
            raise unknown("divergence", self.name, FORMULAS, "divergence")
        skew, default = self.skew, self.formula.skew
        if skew is not None and default is None:
            raise UsageError(f"skew={skew}: {self.name} has none; expected None")
        skew = default if skew is None else skew
        check_fraction("skew", skew)
        object.__setattr__(self, "skew", None if skew is None else float(skew))

    @property
    def formula(self) -> Formula:
        return FORMULAS[self.name]
