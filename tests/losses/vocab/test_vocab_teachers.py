"""Several teachers over a vocabulary: the mean of their distributions, against dense float64."""

import jax
import numpy as np
import pytest
from loss_reference import kl, numeric_gradient
from scipy.special import log_softmax, softmax
from test_vocab_mesh import mesh_of
from vocab_reference import LINEAR, REFERENCES

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import Readout, VocabDivergence, VocabSettings

TOKENS, REAL = 16, 11
READOUTS = {
    "student_readout": Readout(cap=2.0),
    "teacher_readout": [Readout(weight=1.0), Readout(cap=1.5, scale=1.7, weight=3.0)],
}


def draw():
    """Student and two teachers of widths 3, 4 and 5, with heads of 13, 12 and 16 ids."""
    generator = np.random.default_rng(4)
    nets = [
        tuple(np.float32(generator.standard_normal(s)) for s in ((TOKENS, dim), (dim, vocab)))
        for dim, vocab in ((3, 13), (4, 12), (5, 16))
    ]
    labels = generator.integers(0, REAL, TOKENS).astype(np.int32)
    weights = np.float32(generator.uniform(0.1, 1, TOKENS) * (np.arange(TOKENS) % 5 != 2))
    return nets, labels, weights


def reference(nets, labels, weights, name, temperature):
    """The loss with half of the cross-entropy, and some measures."""
    z = [np.float64(hidden) @ np.float64(head) for hidden, head in nets]
    z = [2.0 * np.tanh(z[0] / 2.0), z[1], 1.5 * np.tanh(1.7 * z[2] / 1.5)]
    student, *teachers = (a[:, :REAL] for a in z)

    def mean(heat):
        return 0.25 * softmax(teachers[0] / heat, -1) + 0.75 * softmax(teachers[1] / heat, -1)

    power = 1 if name in LINEAR else 2
    soft = REFERENCES[name][1](mean(temperature), softmax(student / temperature, -1))
    rows = np.arange(TOKENS)
    hard = -log_softmax(student, -1)[rows, labels]
    p = mean(1.0)
    measures = {
        "kl": kl(p, softmax(student, -1)),
        "teacher_entropy": -(p * np.log(p)).sum(-1),
        "teacher_loss": -np.log(p)[rows, labels],
        "agreement": student.argmax(-1) == p.argmax(-1),
    }
    loss = np.sum(weights * (temperature**power * soft + 0.5 * hard))
    return loss, {key: np.sum(weights * value) for key, value in measures.items()}


@pytest.mark.parametrize("shape", [None, (2, 2, 2)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", REFERENCES)
def test_value_measures_and_gradients(name, temperature, shape):
    nets, labels, weights = draw()

    @jax.jit
    def both(student, first, second):
        def loss(student):
            return losses.vocab_divergence(
                *student, *zip(first, second, strict=True), weights=weights, labels=labels,
                divergence=VocabDivergence(name, REFERENCES[name][0]), temperature=temperature,
                hard_weight=0.5, **READOUTS,
                settings=VocabSettings(
                    vocab_size=REAL, chunk=3, mesh=shape and mesh_of(*shape)
                ),
            )  # fmt: skip

        return jax.value_and_grad(loss, has_aux=True)(student)

    (loss, measures), gradients = both(*nets)
    expected, others = reference(nets, labels, weights, name, temperature)
    np.testing.assert_allclose(loss, expected, rtol=2e-5)
    for key, value in others.items():
        np.testing.assert_allclose(measures[key], value, rtol=2e-5, err_msg=key)
    for place, gradient in enumerate(gradients):

        def along(array, place=place):
            student = tuple(array if i == place else a for i, a in enumerate(nets[0]))
            return reference([student, *nets[1:]], labels, weights, name, temperature)[0]

        slope = numeric_gradient(along, nets[0][place])
        np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=5e-6)


def test_saturated_teachers_that_disagree_have_finite_values_and_gradients():
    nets, labels, weights = draw()

    def loss(hidden, head):
        teachers = zip(*((60 * own, other) for own, other in nets[1:]), strict=True)
        return losses.vocab_divergence(
            hidden, head, *teachers, weights=weights, labels=labels,
            settings=VocabSettings(vocab_size=REAL),
        )[0]  # fmt: skip

    value, gradients = jax.value_and_grad(loss, (0, 1))(60 * nets[0][0], nets[0][1])
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize(
    ("readouts", "words"),
    [
        ([Readout()], "teacher_readout: 1 of them; expected 2, one a teacher"),
        ([Readout()] * 3, "teacher_readout: 3 of them; expected 2"),
        ([Readout(weight=0.0)] * 2, r"weights of teachers \(0.0, 0.0\): expected numbers >= 0"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named(readouts, words):
    nets, _, weights = draw()
    with pytest.raises(UsageError, match=words):
        losses.vocab_divergence(
            *nets[0], *zip(*nets[1:], strict=True), weights=weights, teacher_readout=readouts
        )
