"""A dense float64 reference of the fused divergence, and the comparison with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_reference import generalised_jsd, kl, numeric_gradient
from scipy.special import log_softmax, softmax

from distill_jax import losses
from distill_jax.losses.vocab import Readout, VocabDivergence, VocabSettings

# (name, skew, the divergence of probabilities p of the teacher and q of the student)
REFERENCES = {
    "forward_kl": (None, kl),
    "reverse_kl": (None, lambda p, q: kl(q, p)),
    "jensen_shannon": (0.3, lambda p, q: generalised_jsd(p, q, 0.3)),
    "skew_kl": (0.1, lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skew_reverse_kl": (0.2, lambda p, q: kl(q, 0.8 * p + 0.2 * q)),
    "total_variation": (None, lambda p, q: np.abs(p - q).sum(-1) / 2),
}
#: Those that are linear in a small difference of the logits; the others are quadratic.
LINEAR = {"total_variation"}
every_divergence = pytest.mark.parametrize("name", REFERENCES)
ARRAYS = ("student_hidden", "student_head", "teacher_hidden", "teacher_head")


def draw(tokens=7, widths=(3, 4), vocab=(11, 11), scale=1.0, seed=0):
    """The four arrays, exact in float32, and labels and weights, of which one is zero."""
    generator = np.random.default_rng(seed)
    shapes = [
        (tokens, widths[0]),
        (widths[0], vocab[0]),
        (tokens, widths[1]),
        (widths[1], vocab[1]),
    ]
    arrays = [np.float32(scale * generator.standard_normal(shape)) for shape in shapes]
    labels = generator.integers(0, min(vocab), tokens).astype(np.int32)
    weights = generator.uniform(0.1, 1, tokens).astype(np.float32)
    weights[tokens // 2] = 0
    return dict(zip(ARRAYS, arrays, strict=True)), labels, weights


def reference(
    arrays, labels, weights, *, divergence, temperature=1.0, vocab_size=None,
    soft_weight=1.0, hard_weight=0.0, student_cap=None, teacher_cap=None,
    student_scale=1.0, teacher_scale=1.0,
):  # fmt: skip
    """The loss and its measures in float64, from whole arrays of logits."""

    def logits(side, cap, scale):
        z = np.float64(arrays[f"{side}_hidden"]) @ np.float64(arrays[f"{side}_head"]) * scale
        return (z if cap is None else cap * np.tanh(z / cap))[:, :vocab_size]

    z_s = logits("student", student_cap, student_scale)
    z_t = logits("teacher", teacher_cap, teacher_scale)
    q, p = softmax(z_s / temperature, -1), softmax(z_t / temperature, -1)
    power = 1 if divergence in LINEAR else 2
    soft = temperature**power * REFERENCES[divergence][1](p, q)
    rows = np.arange(len(labels))
    known = np.maximum(labels, 0)
    hard, teacher_hard = (
        np.where(labels < 0, 0, -log_softmax(z, -1)[rows, known]) for z in (z_s, z_t)
    )
    q, p = softmax(z_s, -1), softmax(z_t, -1)
    measures = {
        "soft_loss": soft,
        "hard_loss": hard,
        "teacher_loss": teacher_hard,
        "kl": kl(p, q),
        "student_entropy": -(q * np.log(q)).sum(-1),
        "teacher_entropy": -(p * np.log(p)).sum(-1),
        "agreement": z_s.argmax(-1) == z_t.argmax(-1),
        "accuracy": z_s.argmax(-1) == labels,
    }
    loss = soft_weight * soft + hard_weight * hard
    total = {name: np.sum(weights * value) for name, value in measures.items()}
    return np.sum(weights * loss), total


def arguments(
    divergence, *, chunk=None, vocab_size=None, mesh=None, student_cap=None, student_scale=1.0,
    teacher_cap=None, teacher_scale=1.0, **factors,
):  # fmt: skip
    """Keyword arguments of `losses.vocab_divergence` from those of `reference`."""
    return dict(
        divergence=VocabDivergence(divergence, REFERENCES[divergence][0]),
        student_readout=Readout(student_cap, student_scale),
        teacher_readout=Readout(teacher_cap, teacher_scale),
        settings=VocabSettings(vocab_size=vocab_size, chunk=chunk, mesh=mesh),
        **factors,
    )


def fused(arrays, labels, weights, *, chunk, divergence="forward_kl", **options):
    """(loss, measures) and the gradients to the student's two arrays, jitted."""
    options = arguments(divergence, chunk=chunk, **options)

    @jax.jit
    def both(student, teacher):
        def loss(student):
            return losses.vocab_divergence(
                *student, *teacher, labels=labels, weights=weights, **options
            )  # fmt: skip

        return jax.value_and_grad(loss, has_aux=True)(student)

    given = [jnp.asarray(arrays[name]) for name in ARRAYS]
    return both(given[:2], given[2:])


def check(arrays, labels, weights, *, chunk, mesh=None, **options):
    expected, expected_measures = reference(arrays, labels, weights, **options)
    (loss, measures), gradients = fused(arrays, labels, weights, chunk=chunk, mesh=mesh, **options)
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=2e-6)
    assert set(measures) == set(expected_measures)
    for name, value in expected_measures.items():
        np.testing.assert_allclose(measures[name], value, rtol=2e-5, atol=2e-6, err_msg=name)
    for name, gradient in zip(ARRAYS, gradients, strict=False):

        def along(array, name=name):
            return reference({**arrays, name: array}, labels, weights, **options)[0]

        slope = numeric_gradient(along, arrays[name])
        np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=5e-6, err_msg=name)
