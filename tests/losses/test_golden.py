"""Golden values: what other projects' own code gave for inputs that a formula defines.

Inputs are s sin(a i + b) over the flat index i of an array in row-major order, images as
[B, C, H, W]; turned to [B, H, W, C] they are what the losses here take. The values were computed in
float64; here they must be met in float32.
"""

import jax
import numpy as np
import pytest

from distill_jax import losses

RTOL = 1e-6


def wave(shape, a, b, s=1.0):
    return (s * np.sin(a * np.arange(np.prod(shape)) + b)).reshape(shape)


def maps(shape, a, b):
    return wave(shape, a, b).transpose(0, 2, 3, 1)


STUDENT, TEACHER = wave((6, 10), 0.7, 0.1, 2.0), wave((6, 10), 1.3, 0.5, 4.0)
LABELS = np.array([0, 3, 9, 4, 4, 7])
MAPS_S, MAPS_T = maps((6, 8, 6, 6), 0.37, 0.2), maps((6, 8, 6, 6), 0.53, 0.9)
SMALL_S, SMALL_T = maps((6, 12, 3, 3), 0.37, 0.2), maps((6, 12, 3, 3), 0.53, 0.9)
VECTORS_S, VECTORS_T = wave((6, 16), 0.91, 0.3), wave((6, 16), 1.17, 0.7)
SCORES = (np.abs(wave((6, 5), 0.8, 0.2)) + 0.01) * 1e-3


def standardised(temperature):
    student, teacher = losses.standardise(STUDENT), losses.standardise(TEACHER)
    return losses.soft_target(student, teacher, temperature=temperature)


def relational(distance, angle):
    return distance * losses.relational_distance(
        VECTORS_S, VECTORS_T
    ) + angle * losses.relational_angle(VECTORS_S, VECTORS_T)


def variational():
    """The student's map through three bias-free 1x1 convolutions with a ReLU between them."""
    mean = MAPS_S
    for layer in range(3):
        kernel = 0.5 * np.sin(0.6 * np.arange(64) + 0.1 * layer).reshape(8, 8)  # [out, in]
        mean = np.einsum("bhwi,oi->bhwo", np.maximum(mean, 0) if layer else mean, kernel)
    raw = np.full(8, np.log(np.expm1(5 - 1e-5)))
    return losses.variational_information(mean, MAPS_T, raw)


GOLDEN = {
    "cross_entropy": (lambda: losses.cross_entropy(STUDENT, LABELS), 2.952768238),
    "soft_target_1": (
        lambda: losses.soft_target(STUDENT, TEACHER, temperature=1.0),
        1.852423311,
    ),
    "soft_target_4": (
        lambda: losses.soft_target(STUDENT, TEACHER, temperature=4.0),
        4.399916405,
    ),
    "decoupled_kd": (
        lambda: losses.decoupled_kd(STUDENT, TEACHER, LABELS, temperature=4.0),
        34.71997833,
    ),
    "tckd": (
        lambda: losses.decoupled_parts(STUDENT, TEACHER, LABELS, temperature=4.0)[0],
        0.6121359296,
    ),
    "nckd": (
        lambda: losses.decoupled_parts(STUDENT, TEACHER, LABELS, temperature=4.0)[1],
        4.2634803,
    ),
    "standardised_2": (lambda: standardised(2.0), 0.8776233361),
    "dist_1": (lambda: losses.dist(STUDENT, TEACHER), 2.027258491),
    # The code's value has the factor T^2.
    "dist_4": (lambda: 16 * losses.dist(STUDENT, TEACHER, temperature=4.0), 33.29282721),
    "class_correlation": (
        lambda: losses.class_correlation(STUDENT, TEACHER, temperature=4.0),
        0.02034256644,
    ),
    "batch_correlation": (
        lambda: losses.batch_correlation(STUDENT, TEACHER, temperature=4.0),
        0.003230383514,
    ),
    "feature_mse": (lambda: losses.feature_mse(MAPS_S, MAPS_T), 0.9996963005),
    "attention": (lambda: losses.attention_transfer(MAPS_S, MAPS_T), 0.003518918122),
    "attention_pooled": (lambda: losses.attention_transfer(MAPS_S, SMALL_T), 0.000279143613),
    "similarity_preserving": (
        lambda: losses.similarity_preserving(MAPS_S, MAPS_T),
        0.3158842057,
    ),
    "correlation_congruence": (
        lambda: losses.correlation_congruence(VECTORS_S, VECTORS_T),
        8.70713019,
    ),
    "relational_distance": (lambda: relational(1, 0), 0.2317302912),
    "relational_angle": (lambda: relational(0, 1), 0.3075780321),
    "relational": (lambda: relational(25, 50), 21.17215888),
    "probabilistic_transfer": (
        lambda: losses.probabilistic_transfer(VECTORS_S, VECTORS_T),
        0.0480084492,
    ),
    "neuron_selectivity": (lambda: losses.neuron_selectivity(MAPS_S, MAPS_T), 1.132331092),
    "factor_transfer": (lambda: losses.factor_transfer(MAPS_S, MAPS_T), 0.05287483658),
    "flow_of_solution": (
        lambda: losses.flow_of_solution(MAPS_S, SMALL_S, MAPS_T, SMALL_T),
        0.008482278402,
    ),
    # The code's value has the factor 3 / 1000.
    "activation_boundary": (
        lambda: 3e-3 * losses.activation_boundary(MAPS_S, MAPS_T),
        1.301106959,
    ),
    "variational_information": (variational, 0.8602703669),
    "contrastive_nce": (
        lambda: losses.contrastive_nce(SCORES[:, 0], SCORES[:, 1:], count=50),
        5.003857225,
    ),
    "overhaul": (lambda: losses.overhaul(MAPS_S, MAPS_T, np.full(8, -0.5)), 233.9845628),
    "hierarchical_context": (
        lambda: losses.hierarchical_context(MAPS_S, MAPS_T),
        0.5651772588,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden(name):
    loss, expected = GOLDEN[name]
    values = jax.jit(loss)()
    assert values.shape == (6,) and values.dtype == np.float32
    np.testing.assert_allclose(np.asarray(values, np.float64).mean(), expected, rtol=RTOL)
