"""The fused divergence over a vocabulary, against dense float64 with every entry written out."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loss_reference import numeric_gradient
from vocab_reference import ARRAYS, REFERENCES, check, draw, every_divergence, fused, reference

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import FORMULAS, Readout, VocabDivergence, VocabSettings, chunk_size


def test_every_divergence_has_a_reference():
    assert REFERENCES.keys() == FORMULAS.keys()


@every_divergence
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_value_measures_and_gradients(name, chunk):
    arrays, labels, weights = draw()
    check(arrays, labels, weights, divergence=name, chunk=chunk)


@every_divergence
@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_temperature(name, temperature):
    arrays, labels, weights = draw()
    check(arrays, labels, weights, divergence=name, chunk=3, temperature=temperature)


@every_divergence
def test_both_losses_caps_scales_and_padded_vocabularies(name):
    arrays, labels, weights = draw(vocab=(13, 12))
    labels[1] = -100
    check(
        arrays, labels, weights, divergence=name, chunk=3, temperature=2.0, vocab_size=11,
        soft_weight=0.7, hard_weight=0.4, student_cap=2.0, teacher_cap=1.5, student_scale=0.5,
        teacher_scale=1.3,
    )  # fmt: skip


def test_vocabularies_that_are_padded_apart_are_read_up_to_the_smaller():
    arrays, labels, weights = draw(vocab=(11, 14))
    cut = {**arrays, "teacher_head": arrays["teacher_head"][:, :11]}
    assert fused(arrays, labels, weights, chunk=3) != fused(cut, labels, weights, chunk=2)
    (loss, _), _ = fused(arrays, labels, weights, chunk=3)
    np.testing.assert_allclose(loss, reference(cut, labels, weights, divergence="forward_kl")[0])


def test_temperature_and_weights_may_be_traced():
    arrays, labels, weights = draw()
    given = [jnp.asarray(arrays[name]) for name in ARRAYS]

    @jax.jit
    def loss(options):
        return losses.vocab_divergence(*given, weights=weights, labels=labels, **options)[0]

    for temperature, hard_weight in ((1.0, 0.0), (4.0, 0.3)):
        options = {"temperature": temperature, "hard_weight": hard_weight, "soft_weight": 0.7}
        expected, _ = reference(arrays, labels, weights, divergence="forward_kl", **options)
        np.testing.assert_allclose(loss(options), expected, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 7])
def test_the_cross_entropy_alone(chunk):
    arrays, labels, weights = draw(vocab=(13, 11))
    labels[1] = -1
    options = {"student_cap": 2.0, "student_scale": 0.5, "vocab_size": 11}

    @jax.jit
    def both(hidden, head):
        def loss(hidden, head):
            return losses.vocab_cross_entropy(
                hidden, head, labels=labels, weights=weights, readout=Readout(2.0, 0.5),
                settings=VocabSettings(vocab_size=11, chunk=chunk),
            )  # fmt: skip

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, head)

    (loss, measures), gradients = both(arrays["student_hidden"], arrays["student_head"])

    def dense(**changes):
        return reference(
            {**arrays, **changes}, labels, weights, divergence="forward_kl", soft_weight=0.0,
            hard_weight=1.0, **options,
        )  # fmt: skip

    expected, expected_measures = dense()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert set(measures) == {"hard_loss", "student_entropy", "accuracy"}
    for name, value in measures.items():
        np.testing.assert_allclose(value, expected_measures[name], rtol=1e-5, err_msg=name)
    for name, gradient in zip(ARRAYS, gradients, strict=False):
        slope = numeric_gradient(lambda a, name=name: dense(**{name: a})[0], arrays[name])
        np.testing.assert_allclose(gradient, slope, rtol=2e-4, atol=5e-6, err_msg=name)


@every_divergence
def test_saturated_logits_have_finite_values_and_gradients(name):
    arrays, labels, weights = draw(scale=60.0)
    (loss, measures), gradients = fused(
        arrays, labels, weights, chunk=3, divergence=name, hard_weight=1.0
    )
    assert np.isfinite(loss) and all(np.all(np.isfinite(g)) for g in gradients)
    assert all(np.isfinite(value) for value in measures.values())
    assert np.any(gradients[0])


@every_divergence
def test_a_copy_of_the_teacher_has_no_loss_and_no_gradient(name):
    arrays, labels, weights = draw(widths=(4, 4))
    arrays |= {"student_hidden": arrays["teacher_hidden"], "student_head": arrays["teacher_head"]}
    (loss, measures), gradients = fused(arrays, labels, weights, chunk=3, divergence=name)
    assert abs(loss) < 1e-6 and abs(measures["kl"]) < 1e-6
    assert all(np.abs(gradient).max() < 1e-6 for gradient in gradients)
    np.testing.assert_allclose(measures["agreement"], weights.sum(), rtol=1e-6)


def test_tokens_without_weight_change_nothing():
    arrays, labels, weights = draw()
    (loss, _), gradients = fused(arrays, labels, weights, chunk=3)
    without = {name: a if "head" in name else a.copy() for name, a in arrays.items()}
    for name in ("student_hidden", "teacher_hidden"):
        without[name][weights == 0] = 1e4
    (other, _), others = fused(without, labels, weights, chunk=3)
    np.testing.assert_array_equal(loss, other)
    np.testing.assert_array_equal(gradients[1], others[1])
    assert not np.any(others[0][weights == 0])
    (nothing, _), none = fused(arrays, labels, np.zeros_like(weights), chunk=3)
    assert nothing == 0 and not any(np.any(gradient) for gradient in none)


def test_a_small_divergence_of_bfloat16_operands_is_exact_and_never_negative():
    # KL of about 1e-3, where log-softmax in bfloat16 is wrong by more than the value.
    arrays, labels, _ = draw(tokens=64, widths=(32, 32), vocab=(4000, 4000), scale=0.5)
    generator = np.random.default_rng(1)
    noise = generator.standard_normal(arrays["teacher_hidden"].shape)
    arrays["student_hidden"] = arrays["teacher_hidden"] + np.float32(0.016 * noise)
    arrays["student_head"] = arrays["teacher_head"]
    rounded = {name: jnp.asarray(a, jnp.bfloat16) for name, a in arrays.items()}
    exact = {name: np.float64(a) for name, a in rounded.items()}
    for token in range(0, 64, 16):
        weights = np.float32(np.arange(64) == token)
        (loss, _), _ = fused(rounded, labels, weights, chunk=16)
        expected, _ = reference(exact, labels, weights, divergence="forward_kl")
        assert 1e-4 < expected < 1e-2
        np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_the_cotangent_scales_the_gradients_and_nothing_reaches_the_teacher():
    arrays, labels, weights = draw()

    settings = VocabSettings(chunk=3)

    def loss(*given):
        return (
            3
            * losses.vocab_divergence(*given, weights=weights, labels=labels, settings=settings)[0]
        )

    given = [jnp.asarray(arrays[name]) for name in ARRAYS]
    gradients = jax.grad(loss, argnums=(0, 1, 2, 3))(*given)
    _, expected = fused(arrays, labels, weights, chunk=3)
    for gradient, one in zip(gradients, expected, strict=False):
        np.testing.assert_allclose(gradient, 3 * one, rtol=1e-6)
    assert not np.any(gradients[2]) and not np.any(gradients[3])


def compiled(tokens, width, vocab, chunk):
    """The compiled gradient of the loss."""
    shapes = [(tokens, width), (width, vocab), (tokens, width), (width, vocab), (tokens,)]
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(student, head, *rest):
        *teacher, weights = rest
        settings = VocabSettings(chunk=chunk)
        return losses.vocab_divergence(student, head, *teacher, weights=weights, settings=settings)[
            0
        ]

    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*given).compile()


def test_no_logits_of_all_tokens_are_ever_built():
    tokens, vocab, chunk = 512, 5000, 64
    built = re.findall(r"\[([\d,]+)\]", compiled(tokens, 16, vocab, chunk).as_text())
    sizes = {tuple(int(n) for n in shape.split(",")) for shape in built}
    assert (chunk, vocab) in sizes
    assert not [shape for shape in sizes if vocab in shape and np.prod(shape) >= tokens * vocab]


def test_memory_does_not_grow_with_the_vocabulary_for_a_budget_of_bytes():
    # The hidden states are narrow, so that the head and its gradient are little beside the logits.
    def temporary(vocab):
        chunk = 2**22 // (12 * vocab)
        return compiled(512, 2, vocab, chunk).memory_analysis().temp_size_in_bytes

    small, large = temporary(4096), temporary(32768)
    assert 2**20 < small and large < 1.3 * small, (small, large)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_chunks_follow_the_shapes(platform):
    assert chunk_size(64, 512, platform) == 64
    for count, vocab in ((8192, 128256), (16384, 151936), (1000, 256000)):
        chunk = chunk_size(count, vocab, platform)
        assert 1 <= chunk <= count
        assert chunk < 4096
    assert chunk_size(8192, 128256, "gpu") == 1024


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"divergence": "kl"}, "divergence='kl'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"hard_weight": 1.0, "labels": None}, "hard_weight=1.0: needs labels"),
        (
            {"settings": VocabSettings(vocab_size=12)},
            "vocab_size=12: expected a number from 1 to 11",
        ),
        ({"student_head": np.zeros((5, 11))}, "student_hidden (7, 3), student_head (5, 11)"),
        ({"teacher_hidden": np.zeros((6, 4))}, "student_hidden has 7 tokens, teacher_hidden 6"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_does_not_fit_is_named(changes, words):
    arrays, labels, weights = draw()
    options = {**arrays, "labels": labels, **changes}
    loss = functools.partial(losses.vocab_divergence, *(options.pop(name) for name in ARRAYS))
    with pytest.raises(UsageError, match=re.escape(words)):
        loss(weights=weights, **options)


@pytest.mark.parametrize(
    ("name", "skew", "words"),
    [
        ("kl", None, "divergence='kl'"),
        ("forward_kl", 0.5, "skew=0.5: forward_kl has none"),
        ("skew_kl", 2.0, "skew=2.0"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_a_skew_that_a_formula_does_not_take_is_refused(name, skew, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        VocabDivergence(name, skew)


def test_the_default_skew_is_the_formulas():
    assert VocabDivergence("jensen_shannon").skew == 0.5
    assert VocabDivergence("skew_kl", 0) == VocabDivergence("skew_kl", 0.0)
    assert VocabDivergence("forward_kl").skew is None
