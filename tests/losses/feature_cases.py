"""Losses on features and relations: their references, and the shapes that they are tried on."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from feature_reference import (
    angles,
    attention_code,
    attention_paper,
    boundary,
    class_gram_distance,
    correlation_distance,
    decoupled,
    distances,
    factor_code,
    factor_paper,
    flow,
    gaussian,
    gram_distance,
    neighbour_divergence,
    neighbours,
    partial_distance,
    pyramid,
    selectivity,
    similarity,
    split_layers,
    square_mean,
    taylor,
    value_and_gradient,
)
from loss_reference import random_logits

from distill_jax import losses


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureCase:
    """A loss with its options, its reference, and the pairs of shapes that it is tried on.

    `rows`: an example's value does not depend on the others. `zero`: it is 0 where student and
    teacher are equal; `smooth`: with zero gradient. `scale`: of the absolute tolerance, for a loss
    that multiplies its rounding.
    """

    name: str
    loss: Callable
    reference: Callable
    shapes: tuple
    rows: bool = True
    zero: bool = True
    smooth: bool = True
    scale: float = 1.0

    @functools.cached_property
    def compiled(self):
        """(student, teacher, weights) -> values, and the gradients of their weighted sum."""

        def weighted(student, teacher, weights):
            values = self.loss(student, teacher)
            return (values * weights).sum(), values

        both = value_and_gradient(weighted, argnums=(0, 1), has_aux=True)

        def evaluate(student, teacher, weights=None):
            weights = np.ones(len(student)) if weights is None else weights
            (_, values), gradients = both(*(np.float32(x) for x in (student, teacher, weights)))
            return tuple(np.asarray(x) for x in (values, *gradients))

        return evaluate

    def inputs(self, shape=0, seed=0, scale=1.0):
        student, teacher = self.shapes[shape]
        return (
            random_logits(*student, scale=scale, seed=seed),
            random_logits(*teacher, scale=scale, seed=seed + 1000),
        )


MARGINS = np.array([-0.5, -1.25, 0.0])
RAW_SCALES = np.array([0.5, -2.0, 3.0])
# The first pair has a batch of 4; with it each loss is tried most.
LOGITS = (((4, 5), (4, 5)), ((3, 2), (3, 2)), ((1, 3), (1, 3)))
UNEQUAL = (
    ((4, 4, 3, 3), (4, 3, 4, 2)),
    ((2, 2, 2, 2), (2, 2, 2, 2)),
    ((1, 1, 1, 1), (1, 3, 2, 2)),
)
EQUAL = (((4, 3, 3, 3), (4, 3, 3, 3)), ((1, 5, 2, 3), (1, 5, 2, 3)))
VECTORS = (((4, 4), (4, 6)), ((3, 3), (3, 3)), ((2, 1), (2, 2)), ((1, 2), (1, 2)))


def labels_for(logits):
    return np.arange(3, 3 + len(logits)) % logits.shape[-1]


def _decoupled(temperature, alpha, beta):
    options = {"temperature": temperature, "alpha": alpha, "beta": beta}

    def reference(student, teacher):
        target, rest = decoupled(student, teacher, labels_for(student), temperature)
        return alpha * target + beta * rest

    return FeatureCase(
        f"decoupled_kd_{temperature}_{alpha}_{beta}",
        lambda s, t: losses.decoupled_kd(s, t, labels_for(s), **options),
        reference,
        LOGITS,
        scale=temperature**2 * max(alpha, beta) / 4,
    )


def _dist(temperature, beta, gamma):
    options = {"temperature": temperature, "beta": beta, "gamma": gamma}
    return FeatureCase(
        f"dist_{temperature}",
        lambda s, t: losses.dist(s, t, **options),
        lambda s, t: correlation_distance(s, t, **options),
        LOGITS,
        rows=False,
        zero=False,  # in a batch of one, no column correlates
    )


def _option(loss, **option):
    return lambda student, teacher: loss(student, teacher, **option)


LOGIT_CASES = [
    _decoupled(4.0, 1.0, 8.0),
    _decoupled(1.0, 2.0, 0.5),
    _dist(1.0, 1.0, 1.0),
    _dist(4.0, 0.5, 2.0),
    FeatureCase(
        "batch_correlation",
        _option(losses.batch_correlation, temperature=2.0),
        lambda s, t: gram_distance(s, t, 2.0),
        LOGITS,
        rows=False,
    ),
    FeatureCase(
        "class_correlation",
        _option(losses.class_correlation, temperature=2.0),
        lambda s, t: class_gram_distance(s, t, 2.0),
        LOGITS,
        rows=False,
    ),
]

MAP_CASES = [
    FeatureCase("attention_code", losses.attention_transfer, attention_code, UNEQUAL),
    FeatureCase(
        "attention_paper",
        _option(losses.attention_transfer, variant="paper"),
        attention_paper,
        UNEQUAL,
        smooth=False,
    ),
    FeatureCase("neuron_selectivity", losses.neuron_selectivity, selectivity, UNEQUAL),
    FeatureCase("factor_code", losses.factor_transfer, factor_code, UNEQUAL, smooth=False),
    FeatureCase(
        "factor_paper",
        _option(losses.factor_transfer, variant="paper"),
        factor_paper,
        (((4, 4, 2, 2), (4, 3, 3, 2)), EQUAL[1]),
        smooth=False,
    ),
    FeatureCase(
        "flow_of_solution",
        lambda s, t: losses.flow_of_solution(*split_layers(s), *split_layers(t)),
        flow,
        (((4, 2, 3, 4), (4, 3, 2, 4)), ((1, 3, 2, 3), (1, 3, 2, 3))),
    ),
    FeatureCase("feature_mse", losses.feature_mse, square_mean, EQUAL),
    FeatureCase(
        "activation_boundary",
        _option(losses.activation_boundary, margin=1.5),
        lambda s, t: boundary(s, t, 1.5),
        EQUAL,
        zero=False,  # a unit that is on by less than the margin
    ),
    FeatureCase(
        "overhaul",
        lambda s, t: losses.overhaul(s, t, np.float32(MARGINS)),
        lambda s, t: partial_distance(s, t, MARGINS),
        EQUAL,
        zero=False,  # a student below the margin, whose target is the margin
    ),
    FeatureCase(
        "hierarchical_context",
        losses.hierarchical_context,
        pyramid,
        (((4, 3, 3, 2), (4, 3, 3, 2)), ((1, 5, 6, 1), (1, 5, 6, 1)), ((1, 1, 1, 3), (1, 1, 1, 3))),
    ),
    FeatureCase(
        "variational_information",
        lambda s, t: losses.variational_information(s, t, np.float32(RAW_SCALES)),
        lambda s, t: gaussian(s, t, RAW_SCALES),
        (*EQUAL, ((2, 3), (2, 3))),
        zero=False,  # the logarithm of the variance
    ),
]

RELATION_CASES = [
    FeatureCase(
        "similarity_preserving",
        losses.similarity_preserving,
        similarity,
        (((4, 2, 2, 2), (4, 3, 1, 1)), *VECTORS[1:]),
        rows=False,
    ),
    FeatureCase(
        "correlation_code",
        losses.correlation_congruence,
        neighbours,
        (((4, 3), (4, 3)), ((1, 2), (1, 2))),
        rows=False,
    ),
    FeatureCase(
        "correlation_paper",
        _option(losses.correlation_congruence, variant="paper"),
        taylor,
        VECTORS,
        rows=False,
    ),
    FeatureCase("distance", losses.relational_distance, distances, VECTORS, rows=False),
    FeatureCase("angle", losses.relational_angle, angles, VECTORS, rows=False, scale=4.0),
    FeatureCase(
        "probabilistic", losses.probabilistic_transfer, neighbour_divergence, VECTORS, rows=False
    ),
]

CASES = LOGIT_CASES + MAP_CASES + RELATION_CASES
