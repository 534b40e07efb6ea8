"""Float64 references of the losses, and the two tolerances against them.

The references work on probabilities, not in log space, and lean on scipy: they share no step with
the code they check. A loss agrees with its reference where |difference| <= ATOL + RTOL |reference|.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from scipy.special import rel_entr, softmax

from distill_jax import losses

RTOL = 1e-5
ATOL = 1e-6


def assert_close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=RTOL, atol=ATOL)


def kl(p, q):
    return rel_entr(p, q).sum(-1)


def generalised_jsd(p, q, beta):
    """beta KL(P || M) + (1 - beta) KL(Q || M) with P the teacher, as the GKD paper writes it."""
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A divergence with its options, and its reference on probabilities (teacher p, student q)."""

    name: str
    loss: Callable
    reference: Callable
    options: dict = dataclasses.field(default_factory=dict)

    def value(self, student, teacher, temperature=1.0):
        return self.loss(student, teacher, temperature=temperature, **self.options)

    @functools.cached_property
    def compiled(self):
        """`value` under jit with a traced temperature; kept, so that a shape compiles once."""
        return jax.jit(self.value)

    def gradient(self, student, teacher, temperature=1.0, argument=0):
        """Gradient of the summed values to the student (0), the teacher (1) or T (2), under jit."""
        arguments = (np.float32(x) for x in (student, teacher, temperature))
        return np.asarray(self._gradients(*arguments)[argument])

    @functools.cached_property
    def _gradients(self):
        return jax.jit(jax.grad(lambda *x: self.value(*x).sum(), argnums=(0, 1, 2)))

    def expected(self, student, teacher, temperature=1.0):
        student, teacher = (np.asarray(x, np.float64) / temperature for x in (student, teacher))
        return self.reference(softmax(teacher, -1), softmax(student, -1))


def _jsd(beta):
    return Case(
        f"jensen_shannon_{beta}",
        losses.jensen_shannon,
        lambda p, q: generalised_jsd(p, q, beta),
        {"beta": beta},
    )


def _skew(alpha):
    return Case(
        f"skew_kl_{alpha}",
        losses.skew_kl,
        lambda p, q: kl(p, alpha * p + (1 - alpha) * q),
        {"alpha": alpha},
    )


def _skew_reverse(alpha):
    return Case(
        f"skew_reverse_kl_{alpha}",
        losses.skew_reverse_kl,
        lambda p, q: kl(q, alpha * q + (1 - alpha) * p),
        {"alpha": alpha},
    )


DIVERGENCES = [
    Case("forward_kl", losses.forward_kl, kl),
    Case("reverse_kl", losses.reverse_kl, lambda p, q: kl(q, p)),
    *(_jsd(beta) for beta in (0.1, 0.5, 0.9)),
    *(_skew(alpha) for alpha in (0.1, 0.7)),
    *(_skew_reverse(alpha) for alpha in (0.1, 0.7)),
    Case("total_variation", losses.total_variation, lambda p, q: np.abs(p - q).sum(-1) / 2),
]


def numeric_gradient(function: Callable, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of sum(function(x)) in float64."""
    x = np.asarray(x, np.float64)
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (np.sum(function(up)) - np.sum(function(down))) / (2 * step)
    return gradient


def random_logits(*shape: int, scale: float = 2.0, seed: int = 0) -> np.ndarray:
    """Normal logits that float32 holds exactly, so that both sides see the same numbers."""
    values = scale * np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32).astype(np.float64)


def golden_logits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(student, teacher, labels) of the golden values, which other projects' code computed once."""
    index = np.arange(60).reshape(6, 10)
    student, teacher = 2 * np.sin(0.7 * index + 0.1), 4 * np.sin(1.3 * index + 0.5)
    return student, teacher, np.array([0, 3, 9, 4, 4, 7])
