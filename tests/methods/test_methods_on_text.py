"""Methods on text: which there are, and that a divergence over tokens is the one over classes."""

import jax.numpy as jnp
import numpy as np
import pytest
from method_inputs import context, outputs

from distill_jax import losses, methods
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import FORMULAS

DIVERGENCES = {
    "soft_target": {},
    "reverse_kl": {},
    "jensen_shannon": {"beta": 0.3},
    "skew_kl": {"alpha": 0.2},
    "skew_reverse_kl": {"alpha": 0.4},
    "total_variation": {},
}
OF_DECODERS = ("hidden_states", "attention_relations")


def test_the_methods_that_train_on_text():
    assert methods.names_for_text() == ("supervised", *DIVERGENCES, *OF_DECODERS)
    for name in methods.names():
        method = methods.create(name)
        assert (method.vocab_divergence() is not None) == (name in DIVERGENCES)
        assert (method.only == "text") == (name in OF_DECODERS)


def test_every_formula_has_a_method():
    named = {methods.create(name).vocab_divergence().name for name in DIVERGENCES}
    assert named == set(FORMULAS)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_over_tokens_as_over_classes(name, temperature):
    method = methods.create(name, **DIVERGENCES[name])
    student, teacher = outputs("student"), outputs("teacher")
    values = method(student, teacher, context(temperature=jnp.float32(temperature)))
    head = jnp.eye(student.logits.shape[1])
    for token in (0, 3):
        loss, _ = losses.vocab_divergence(
            student.logits, head, teacher.logits, head, weights=jnp.eye(len(values))[token],
            divergence=method.vocab_divergence(), temperature=temperature,
        )  # fmt: skip
        np.testing.assert_allclose(loss, values[token], rtol=2e-5, atol=1e-6)


def test_a_sum_is_for_what_all_its_terms_are_for():
    assert methods.create("soft_target+reverse_kl").only is None
    assert methods.create("soft_target+crd").only == "images"
    assert methods.create("soft_target+hidden_states").only == "text"


def test_standardised_logits_are_not_for_text():
    method = methods.create("soft_target", standardize=True)
    with pytest.raises(UsageError, match="method.standardize=True: not for text"):
        method.vocab_divergence()
