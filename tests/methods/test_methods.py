"""Logit methods: their scale with the temperature, standardised logits, warm-ups, options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_inputs import LABELS, context, outputs
from scipy.special import expit, rel_entr, softmax

from distill_jax import methods
from distill_jax.errors import UsageError
from distill_jax.models import Outputs

RNG = np.random.default_rng(0)
Z_S, Z_T = RNG.normal(size=(6, 7)), RNG.normal(size=(6, 7)) * 2


def both(z_s=Z_S, z_t=Z_T) -> list[Outputs]:
    return [Outputs(logits=jnp.float32(z), taps={}) for z in (z_s, z_t)]


def value(name: str, temperature: float, z_s=Z_S, z_t=Z_T, epoch=0.0, **options) -> np.ndarray:
    method = methods.create(name, **options)
    now = context(temperature=jnp.float32(temperature), epoch=jnp.float32(epoch))
    return np.asarray(method(*both(z_s, z_t), now))


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
        ("skew_reverse_kl", (("alpha", 0.7),)): square * rel_entr(p, mixture).sum(1),
        ("total_variation", ()): temperature * 0.5 * np.abs(p - q).sum(1),
        ("logit_mse", ()): np.mean((Z_S - Z_T) ** 2, 1),
    }
    for (name, options), wanted in expected.items():
        got = value(name, temperature, **dict(options))
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        "soft_target",
        "reverse_kl",
        "jensen_shannon",
        "skew_kl",
        "skew_reverse_kl",
        "total_variation",
    ],
)
def test_the_gradient_keeps_its_size_as_the_temperature_grows(name):
    """Why the powers of T stand there (Hinton et al. 2015, section 2.1)."""
    method = methods.create(name)

    def loss(z, temperature):
        student, teacher = Outputs(logits=z, taps={}), both()[1]
        return method(student, teacher, context(temperature=jnp.float32(temperature))).sum()

    norms = [float(jnp.linalg.norm(jax.grad(loss)(jnp.float32(Z_S), t))) for t in (20.0, 80.0)]
    assert norms[0] == pytest.approx(norms[1], rel=0.15)


@pytest.mark.parametrize("name", ["soft_target", "dkd", "dist", "reverse_kl"])
def test_standardised_logits_are_those_of_the_paper(name):
    """The same method on logits that numpy standardised, and blind to their scale and offset."""

    def standardised(z):
        return (z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True)

    got = value(name, 2.0, standardize=True)
    wanted = value(name, 2.0, standardised(Z_S), standardised(Z_T))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
    moved = value(name, 2.0, 3 * Z_S - 5, Z_T, standardize=True)
    np.testing.assert_allclose(moved, got, rtol=1e-3, atol=1e-5)


def test_decoupled_kd_warms_up_by_epochs_from_one():
    whole = value("dkd", 4.0, warmup_epochs=0.0)
    for epoch, factor in ((0.0, 1 / 20), (0.99, 1 / 20), (1.0, 2 / 20), (19.5, 1.0), (100.0, 1.0)):
        np.testing.assert_allclose(value("dkd", 4.0, epoch=epoch), factor * whole, rtol=1e-5)


def test_dist_has_the_square_of_the_temperature_in_the_code_and_not_in_the_paper():
    code, paper = (value("dist", 4.0, variant=variant) for variant in ("code", "paper"))
    np.testing.assert_allclose(code, 16 * paper, rtol=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")  # its adapters are made from no pair
def test_the_learnt_temperature_goes_against_the_gradient():
    method = methods.create("ctkd")
    student, teacher = both()

    def loss(theta, epoch):
        now = context(adapters={"theta": theta}, epoch=jnp.float32(epoch))
        return method(student, teacher, now).mean()

    def plain(theta):
        temperature = 1 + 20 * jax.nn.sigmoid(theta)
        return methods.create("soft_target")(
            student, teacher, context(temperature=jnp.asarray(temperature, jnp.float32))
        ).mean()

    theta = jnp.float32(0.3)
    assert float(loss(theta, 3.0)) == pytest.approx(float(plain(theta)), rel=1e-5)
    slope = float(jax.grad(plain)(theta))
    for epoch in (0.0, 4.0, 9.0, 30.0):  # the ramp counts epochs from 1
        factor = (1 - np.cos(np.pi * min(epoch + 1, 10) / 10)) / 2
        got = float(jax.grad(loss)(theta, epoch))
        assert got == pytest.approx(-factor * slope, rel=1e-3), epoch
    start = float(method.adapters(None, None)["theta"])
    assert 1 + 20 * expit(start) == pytest.approx(15.62, abs=0.01)


def test_multi_level_logits_against_numpy():
    """Every term of the released code, written out."""
    strong = RNG.normal(size=(6, 7)), RNG.normal(size=(6, 7)) * 2
    method = methods.create("mlkd")
    now = context(strong=tuple(both(*strong)))
    got = float(jnp.mean(method(*both(), now)))

    def kd(s, t, temperature):
        p, q = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
        return temperature**2 * rel_entr(q, p).sum(1).mean()

    def gram(s, t, temperature, over_classes):
        p, q = softmax(s / temperature, axis=1), softmax(t / temperature, axis=1)
        if over_classes:
            p, q = p.T, q.T
        return ((q @ q.T - p @ p.T) ** 2).sum() / len(p)

    confident = softmax(Z_T, axis=1)
    rows = (confident.max(1) <= np.median(confident.max(1))).mean()
    classes = (confident.sum(0) <= np.median(confident.sum(0))).mean()
    wanted = 0.0
    for index, temperature in enumerate((4.0, 3.0, 5.0, 2.0, 6.0)):
        wanted += rows * kd(Z_S, Z_T, temperature)
        wanted += kd(*(strong if index < 3 else (Z_S, Z_T)), temperature)
        wanted += rows * gram(Z_S, Z_T, temperature, False)
        wanted += classes * gram(Z_S, Z_T, temperature, True)
    assert got == pytest.approx(wanted, rel=1e-5)


@pytest.mark.usefixtures("unchecked_shapes")
def test_values_that_make_a_loss_vanish_are_refused():
    with pytest.raises(UsageError, match="method.beta=1.0: jensen_shannon is zero at 0 and 1"):
        methods.create("jensen_shannon", beta=1.0)
    with pytest.raises(UsageError, match="method.alpha=1.0: skew_kl is zero there"):
        methods.create("skew_kl", alpha=1.0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_names_and_options():
    assert methods.options("jensen_shannon") == {"standardize": False, "beta": 0.5}
    with pytest.raises(UsageError, match="method.name='kd': unknown method"):
        methods.create("kd")
    with pytest.raises(UsageError, match="method.gamma=1: unknown option of 'skew_kl'"):
        methods.create("skew_kl", gamma=1)
    with pytest.raises(UsageError, match="method.variant='best': dist expects one of"):
        methods.create("dist", variant="best")


def test_every_published_weight_is_that_of_the_reference():
    weights = {"at": 1000, "sp": 3000, "cc": 0.02, "vid": 1, "rkd": 1, "pkt": 30000, "nst": 50}
    weights |= {"fitnet": 100, "ft": 200, "crd": 0.8, "ofd": 1e-3, "dist": 2, "soft_target": 1}
    for name, weight in weights.items():
        assert methods.published_weight(name) == weight, name


class TestSums:
    def test_values_add_up_with_their_weights(self):
        student, teacher = outputs("student"), outputs("teacher")
        name = "soft_target+at+logit_mse"
        method = methods.create(name, **{"at.weight": 7.0, "logit_mse.weight": 0.5})
        got = method.stages()[-1].values(student, teacher, context())
        parts = [methods.create(one)(student, teacher, context()) for one in name.split("+")]
        np.testing.assert_allclose(got, parts[0] + 7 * parts[1] + 0.5 * parts[2], rtol=1e-5)

    def test_options_have_the_name_of_their_method(self):
        found = methods.options("crd+soft_target")
        assert found["crd.weight"] == 0.8 and found["soft_target.weight"] == 1.0
        assert found["crd.negatives"] == 16384 and found["soft_target.standardize"] is False
        given = {"crd.negatives": 8, "soft_target.weight": 0.3}
        checked = methods.check_options("crd+soft_target", given)
        assert checked == {**found, **given}

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("at+at", {}, "at stands there twice"),
            ("at+nothing", {}, "method.name='nothing': unknown method"),
            ("at+sp", {"weight": 1.0}, "method.weight=1.0: unknown option of 'at[+]sp'"),
            ("at+sp", {"at.weight": -1.0}, "method.at.weight=-1.0: at expects a number"),
        ],
    )
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_mistakes(self, name, options, message):
        with pytest.raises(UsageError, match=message):
            methods.create(name, **options)

    def test_earlier_stages_come_first_and_train_their_own_arrays(self):
        first, second, last = methods.create("ft+ab").stages()
        assert first.epochs == second.epochs == 30 and not first.hard and last.hard
        assert first.trains("adapters/ft/paraphraser/encoder/0/kernel")
        assert not first.trains("adapters/ab/0/kernel")
        assert not first.trains("student/stem/conv/kernel")
        assert second.trains("student/stem/conv/kernel") and second.trains("adapters/ab/0/kernel")
        assert not second.trains("student/classifier/kernel")
        assert not second.trains("adapters/ft/translator/0/kernel")
        assert last.trains("student/classifier/kernel")
        assert last.trains("adapters/ft/translator/0/kernel")
        assert not last.trains("adapters/ft/paraphraser/encoder/0/kernel")


def test_labels_of_the_fixture_hold_every_class():
    assert set(LABELS) == set(range(5))
