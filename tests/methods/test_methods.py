"""Methods: their scale with the temperature, their adapters, their options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from distill_jax import methods
from distill_jax.errors import UsageError
from distill_jax.models import Outputs

RNG = np.random.default_rng(0)
Z_S, Z_T = RNG.normal(size=(5, 7)), RNG.normal(size=(5, 7)) * 2
LABELS = np.arange(5)


def value(name: str, temperature: float, **options) -> np.ndarray:
    outputs = [Outputs(logits=jnp.float32(z), taps={}) for z in (Z_S, Z_T)]
    method = methods.create(name, **options)
    return np.asarray(method(*outputs, LABELS, {}, jnp.float32(temperature)))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_each_logit_method_against_numpy(temperature):
    p, q = (softmax(z / temperature, axis=1) for z in (Z_S, Z_T))
    square = temperature**2
    mixture = 0.3 * q + 0.7 * p
    expected = {
        ("soft_target", ()): square * rel_entr(q, p).sum(1),
        ("reverse_kl", ()): square * rel_entr(p, q).sum(1),
        ("jensen_shannon", (("beta", 0.3),)): square
        * (0.3 * rel_entr(q, mixture).sum(1) + 0.7 * rel_entr(p, mixture).sum(1)),
        ("skew_kl", (("alpha", 0.3),)): square * rel_entr(q, mixture).sum(1),
        ("total_variation", ()): temperature * 0.5 * np.abs(p - q).sum(1),
        ("logit_mse", ()): np.mean((Z_S - Z_T) ** 2, 1),
    }
    for (name, options), wanted in expected.items():
        got = value(name, temperature, **dict(options))
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "name", ["soft_target", "reverse_kl", "jensen_shannon", "skew_kl", "total_variation"]
)
def test_the_gradient_keeps_its_size_as_the_temperature_grows(name):
    """Why the powers of T stand there (Hinton et al. 2015, section 2.1)."""
    method = methods.create(name)

    def loss(z, temperature):
        teacher = Outputs(logits=jnp.float32(Z_T), taps={})
        return method(Outputs(logits=z, taps={}), teacher, LABELS, {}, temperature).sum()

    norms = [float(jnp.linalg.norm(jax.grad(loss)(jnp.float32(Z_S), t))) for t in (20.0, 80.0)]
    assert norms[0] == pytest.approx(norms[1], rel=0.15)


def outputs(width: int, shape=()) -> Outputs:
    tap = jnp.asarray(RNG.normal(size=(4, *shape, width)), jnp.float32)
    return Outputs(logits=jnp.zeros((4, 3)), taps={"pooled": tap})


@pytest.mark.parametrize("shape", [(), (6, 6)])
def test_fitnet_regresses_the_teachers_feature(shape):
    student, teacher = outputs(5, shape), outputs(8, shape)
    method = methods.create("fitnet")
    adapters = method.adapters(student, teacher, jax.random.key(0))
    assert {k: v.shape for k, v in adapters.items()} == {
        "regressor/kernel": (5, 8),
        "regressor/bias": (8,),
    }
    got = method(student, teacher, LABELS[:4], adapters, jnp.float32(1))
    kernel, bias = (
        np.asarray(adapters[f"regressor/{name}"], np.float64) for name in ("kernel", "bias")
    )
    source, target = (np.asarray(o.taps["pooled"], np.float64) for o in (student, teacher))
    error = (np.einsum("...i,io->...o", source, kernel) + bias - target) ** 2
    np.testing.assert_allclose(got, error.reshape(4, -1).mean(1), rtol=1e-5)


def test_fitnet_refuses_what_it_cannot_match():
    with pytest.raises(UsageError, match="method.student_tap='pooled': fitnet expects taps of one"):
        methods.create("fitnet").adapters(outputs(5, (6, 6)), outputs(5, (3, 3)), jax.random.key(0))
    with pytest.raises(UsageError, match="method.teacher_tap='stage9': unknown tap"):
        methods.create("fitnet", teacher_tap="stage9").adapters(
            outputs(5), outputs(5), jax.random.key(0)
        )


def test_values_that_make_a_loss_vanish_are_refused():
    with pytest.raises(UsageError, match="method.beta=1.0: jensen_shannon is zero at 0 and 1"):
        methods.create("jensen_shannon", beta=1.0)
    with pytest.raises(UsageError, match="method.alpha=1.0: skew_kl is zero there"):
        methods.create("skew_kl", alpha=1.0)


def test_names_and_options():
    assert methods.options("jensen_shannon") == {"beta": 0.5}
    with pytest.raises(UsageError, match="method.name='kd': unknown method"):
        methods.create("kd")
    with pytest.raises(UsageError, match="method.gamma=1: unknown option of 'skew_kl'"):
        methods.create("skew_kl", gamma=1)
