"""Feature methods: their small networks against numpy, their pairing of taps, their refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_inputs import BATCH, CLASSES, SHAPES, context, outputs, pair, prepared
from scipy.signal import correlate

from distill_jax import losses, methods
from distill_jax.errors import UsageError
from distill_jax.methods import contrastive, networks, taps
from distill_jax.models import Outputs

STUDENT, TEACHER = outputs("student"), outputs("teacher")
ON_FEATURES = (
    "fitnet", "vid", "at", "nst", "sp", "rkd", "pkt", "cc", "ab", "ft", "ofd", "review", "srrl",
)  # fmt: skip


def every_stage(name: str, student=STUDENT, teacher=TEACHER, **options):
    """(values of each stage, method, context)."""
    method, now = prepared(name, student, teacher, **options)
    return [s.values(student, teacher, now) for s in method.stages() if s.values], method, now


LONG = ("review", "vid", "nst", "rkd")  # to compile
ROWS = [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in ON_FEATURES]


@pytest.mark.parametrize("name", ROWS)
def test_every_feature_method_gives_one_finite_value_an_example_and_a_gradient(name):
    method, now = prepared(name, STUDENT, TEACHER)
    stage = method.stages()[0]

    def loss(adapters, features):
        student = Outputs(STUDENT.logits, features)
        return jnp.mean(stage.values(student, TEACHER, dataclasses.replace(now, adapters=adapters)))

    values = stage.values(STUDENT, TEACHER, now)
    assert values.shape == (BATCH,) and values.dtype == jnp.float32
    gradients = jax.grad(loss, argnums=(0, 1))(now.adapters, STUDENT.taps)
    for leaf in jax.tree.leaves(gradients):
        assert bool(jnp.all(jnp.isfinite(leaf)))
    trained = [leaf for leaf in jax.tree.leaves(gradients) if float(jnp.abs(leaf).max()) > 0]
    assert trained, "nothing is trained"


@pytest.mark.parametrize("name", ROWS)
def test_a_batch_of_one_is_finite(name):
    one = [jax.tree.map(lambda a: a[:1], o) for o in (STUDENT, TEACHER)]
    method, now = prepared(name, STUDENT, TEACHER)
    now = dataclasses.replace(
        now, labels=now.labels[:1], ids=now.ids[:1], targets=now.targets[:1], images=now.images[:1]
    )
    values = method.stages()[0].values(*one, now)
    assert values.shape == (1,) and bool(jnp.isfinite(values[0]))


class TestNetworks:
    @pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
    def test_convolution(self, size, stride):
        generator = np.random.default_rng(size)
        x = generator.normal(size=(2, 6, 6, 3)).astype(np.float32)
        arrays = networks.conv_arrays("a", jax.random.key(0), size, 3, 4)
        kernel, bias = (np.float64(arrays[f"a/{part}"]) for part in ("kernel", "bias"))
        margin = (size - 1) // 2
        padded = np.pad(np.float64(x), ((0, 0), (margin,) * 2, (margin,) * 2, (0, 0)))
        wanted = np.stack(
            [
                np.stack(
                    [
                        sum(correlate(image[..., i], kernel[:, :, i, o], "valid") for i in range(3))
                        for o in range(4)
                    ],
                    axis=-1,
                )
                for image in padded
            ]
        )
        got = networks.conv(arrays, "a", jnp.asarray(x), stride=stride)
        np.testing.assert_allclose(got, wanted[:, ::stride, ::stride] + bias, atol=1e-5)

    def test_transposed_convolution_doubles_the_size(self):
        """Each input pixel adds its kernel, moved by two; one pixel is cut from every side."""
        x = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype(np.float32)
        arrays = networks.conv_arrays("a", jax.random.key(0), 4, 2, 5, bias=False)
        kernel = np.float64(arrays["a/kernel"])[::-1, ::-1]
        wide = np.zeros((2, 8, 8, 5))
        for row in range(3):
            for column in range(3):
                added = np.einsum("bi,hwio->bhwo", np.float64(x[:, row, column]), kernel)
                wide[:, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4] += added
        got = networks.conv(arrays, "a", jnp.asarray(x), upsample=2)
        np.testing.assert_allclose(got, wide[:, 1:7, 1:7], atol=1e-5)

    def test_normalisation_over_the_batch(self):
        x = np.random.default_rng(0).normal(size=(5, 2, 2, 3)) * 3 + 1
        flat = x.reshape(-1, 3)
        wanted = (x - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        np.testing.assert_allclose(networks.batch_norm(jnp.float32(x)), wanted, atol=1e-5)

    def test_nearest_is_pytorchs(self):
        x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        np.testing.assert_array_equal(
            networks.resize_nearest(x, (2, 2))[0, ..., 0], [[0, 2], [8, 10]]
        )
        up = networks.resize_nearest(x[:, :2, :2], (4, 4))[0, ..., 0]
        np.testing.assert_array_equal(up, np.kron([[0, 1], [4, 5]], np.ones((2, 2))))

    @pytest.mark.parametrize(("ours", "theirs"), [(8, 4), (4, 8), (5, 5), (6, 3), (7, 4), (3, 7)])
    def test_a_regressor_reaches_the_teachers_size_or_the_smaller(self, ours, theirs):
        source, target = jnp.ones((2, ours, ours, 3)), jnp.ones((2, theirs, theirs, 4))
        arrays = networks.regressor_arrays("r", jax.random.key(0), source, target, norm=False)
        got = networks.regress(arrays, "r", source, target)
        side = theirs if ours >= theirs or 2 * ours == theirs else ours
        assert got.shape == (2, side, side, 4)


class TestPairing:
    def test_stages_are_paired_from_the_first_or_from_the_deepest(self):
        more = {**SHAPES["teacher"], "stage4": (1, 1, 14)}
        teacher = outputs("teacher", shapes=more)
        assert taps.paired(STUDENT, teacher, "at") == [(f"stage{i}",) * 2 for i in (1, 2, 3)]
        deepest = taps.paired(STUDENT, teacher, "ofd", deepest=True)
        assert deepest == [("stage1", "stage2"), ("stage2", "stage3"), ("stage3", "stage4")]

    def test_names_of_a_config_come_first(self):
        method, now = prepared("at", STUDENT, TEACHER, student_taps=("stage3",))
        got = method(STUDENT, TEACHER, now)
        wanted = losses.attention_transfer(STUDENT.taps["stage3"], TEACHER.taps["stage1"])
        np.testing.assert_allclose(got, wanted)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("at", {"student_taps": ("stage9",)}, "method.student_taps='stage9': unknown tap"),
            ("sp", {"teacher_tap": "nowhere"}, "method.teacher_tap='nowhere': unknown tap"),
            ("fitnet", {"teacher_tap": "pooled"}, "fitnet expects two maps or two vectors"),
            ("rkd", {"student_tap": "stage1"}, "expects a vector an example"),
            ("fsp", {}, "expects as many channels in both networks; stage1 has 4"),
            ("simkd", {}, "simkd expects student.name='simkd'"),
            ("deit", {}, "expects a network with a distillation token"),
            ("crd", {"negatives": 33}, "crd expects at most 32"),
        ],
    )
    @pytest.mark.usefixtures("unchecked_shapes")
    def test_what_cannot_be_matched_is_refused_with_the_reason(self, name, options, message):
        with pytest.raises(UsageError, match=message):
            prepared(name, STUDENT, TEACHER, **options)

    @pytest.mark.usefixtures("unchecked_shapes")
    def test_stored_answers_have_no_stages(self):
        teacher = Outputs(TEACHER.logits, {"pooled": TEACHER.taps["pooled"]})
        with pytest.raises(UsageError, match="the taps of this network are: pooled"):
            prepared("at", STUDENT, teacher)
        prepared("rkd", STUDENT, teacher)


class TestStages:
    def test_activation_boundaries_connect_only_what_differs(self):
        same = outputs("student", seed=1)
        _, now = prepared("ab", STUDENT, same)
        assert now.adapters == {}
        (got,), method, now = every_stage("ab")
        assert len({name.split("/")[0] for name in now.adapters}) == 3
        assert [stage.hard for stage in method.stages()] == [False, True]
        wanted = 0.0
        for index, name in enumerate(("stage1", "stage2", "stage3")):
            source = networks.conv(now.adapters, str(index), STUDENT.taps[f"{name}_pre"])
            values = losses.activation_boundary(source, TEACHER.taps[f"{name}_pre"], margin=1.0)
            wanted += 2.0 ** (index - 2) * 3 / 1000 * values
        np.testing.assert_allclose(got, wanted, rtol=1e-5)

    def test_the_paraphraser_is_trained_alone_and_then_rests(self):
        (reconstruction, factors), method, now = every_stage("ft")
        first, last = method.stages()
        assert first.learning_rate == 0.01 and not first.hard
        names = [f"adapters/{name}" for name in now.adapters]
        for name in names:
            assert first.trains(name) != last.trains(name), name
        assert not first.trains("student/stem/conv/kernel")
        assert reconstruction.shape == factors.shape == (BATCH,)
        # The reconstruction of a map is compared with that map, whatever the student does.
        other = outputs("student", seed=5)
        np.testing.assert_array_equal(first.values(other, TEACHER, now), reconstruction)

    def test_hints_of_the_paper_are_a_stage_of_their_own(self):
        (hints, soft), method, now = every_stage("fitnet", variant="paper")
        np.testing.assert_allclose(
            soft, methods.create("soft_target")(STUDENT, TEACHER, now), rtol=1e-6
        )
        assert [stage.epochs for stage in method.stages()] == [30, 0]
        assert not any("norm" in name for name in now.adapters)
        first, last = method.stages()
        assert first.trains("adapters/regressor/kernel")
        assert not last.trains("adapters/regressor/kernel")

    def test_variances_that_are_not_trained(self):
        trained = methods.create("vid").stages()[-1]
        frozen = methods.create("vid", train_variance=False).stages()[-1]
        assert trained.trains("adapters/0/raw_scale") and not frozen.trains("adapters/0/raw_scale")
        assert frozen.trains("adapters/0/0/kernel") and frozen.trains("student/stem/conv/kernel")
        _, now = prepared("vid", STUDENT, TEACHER)
        variance = np.log1p(np.exp(np.float64(now.adapters["0/raw_scale"]))) + 1e-5
        np.testing.assert_allclose(variance, 5.0, rtol=1e-5)


def test_fitnet_regresses_the_teachers_feature():
    options = {"student_tap": "pooled", "teacher_tap": "pooled", "variant": "paper"}
    method, now = prepared("fitnet", STUDENT, TEACHER, **options)
    kernel, bias = (np.float64(now.adapters[f"regressor/{part}"]) for part in ("kernel", "bias"))
    source, target = (np.float64(o.taps["pooled"]) for o in (STUDENT, TEACHER))
    wanted = np.mean((np.maximum(source @ kernel + bias, 0) - target) ** 2, axis=1)
    np.testing.assert_allclose(method(STUDENT, TEACHER, now), wanted, rtol=1e-5)


def test_the_embedding_of_the_teacher_is_trained_too():
    method, now = prepared("cc", STUDENT, TEACHER)

    def loss(adapters):
        return jnp.mean(method(STUDENT, TEACHER, dataclasses.replace(now, adapters=adapters)))

    gradient = jax.grad(loss)(now.adapters)
    assert float(jnp.abs(gradient["teacher/kernel"]).max()) > 0
    ours, theirs = (
        np.float64(o.taps["pooled"]) @ np.float64(now.adapters[f"{who}/kernel"])
        + np.float64(now.adapters[f"{who}/bias"])
        for who, o in (("student", STUDENT), ("teacher", TEACHER))
    )
    delta = np.abs(ours - theirs)
    wanted = np.mean(np.sum(delta[:-1] * delta[1:], axis=1))
    assert float(loss(now.adapters)) == pytest.approx(wanted, rel=1e-5)


def test_the_teachers_classifier_reads_the_students_feature():
    method, now = prepared("srrl", STUDENT, TEACHER)
    x = np.float64(STUDENT.taps["pooled"]) @ np.float64(now.adapters["connector/kernel"])
    x = np.maximum((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), 0)
    logits = x @ np.float64(now.teacher_params["classifier/kernel"])
    logits += np.float64(now.teacher_params["classifier/bias"])
    wanted = np.mean((x - np.float64(TEACHER.taps["pooled"])) ** 2, axis=1)
    wanted += np.mean((logits - np.float64(TEACHER.logits)) ** 2, axis=1)
    np.testing.assert_allclose(method(STUDENT, TEACHER, now), wanted, rtol=1e-4)


@pytest.mark.usefixtures("unchecked_shapes")
def test_margins_from_the_normalisation_or_from_the_batch():
    method, now = prepared("ofd", STUDENT, TEACHER)
    assert bool(jnp.all(jnp.isfinite(method(STUDENT, TEACHER, now))))
    without = dataclasses.replace(pair(STUDENT, TEACHER), teacher_params={})
    with pytest.raises(UsageError, match="method.variant='code': ofd reads the batch norm"):
        method.adapters(without, jax.random.key(0))
    paper = methods.create("ofd", variant="paper")
    paper.adapters(without, jax.random.key(0))
    target = np.float64(TEACHER.taps["stage1_pre"])
    wanted = np.where(target < 0, target, 0).sum((0, 1, 2)) / (target < 0).sum((0, 1, 2))
    got = paper._margin(TEACHER.taps["stage1_pre"], "stage1", now)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_norm_that_ends_a_stage_is_found_in_every_kind_of_network():
    def norms(*names):
        return {f"{name}/{part}": jnp.zeros(3) + i for i, name in enumerate(names)
                for part in ("scale", "bias")}  # fmt: skip

    resnet = norms("stage1/0/first/norm", "stage1/0/second/norm", "stage1/1/first/norm",
                   "stage1/1/second/norm", "stage1/1/projection/norm")  # fmt: skip
    assert float(taps.norm_before(resnet, "stage1", "ofd")[0][0]) == 3
    wide = norms("stage1/0/norm1", "stage1/0/norm2", "stage2/0/norm1", "stage2/0/norm2", "norm")
    assert float(taps.norm_before(wide, "stage1", "ofd")[0][0]) == 2
    assert float(taps.norm_before(wide, "stage2", "ofd")[0][0]) == 4


class TestContrast:
    OPTIONS = {"negatives": 20, "dimension": 6}

    def test_negatives_are_of_other_classes_and_differ(self):
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 7, 500)
        by_class, starts, sizes, strides = map(jnp.asarray, contrastive._classes(labels))
        memory = dict(by_class=by_class, starts=starts, sizes=sizes, strides=strides)
        anchors = jnp.asarray(labels[:64])
        draw = jax.jit(contrastive.draw_negatives, static_argnums=2)
        seen = np.zeros(500)
        for seed in range(40):
            ids = np.asarray(draw(jax.random.key(seed), anchors, 300, memory))
            assert ids.shape == (64, 300)
            assert all(len(set(row)) == 300 for row in ids)
            assert not (labels[ids] == labels[:64, None]).any()
            seen += np.bincount(ids.ravel(), minlength=500)
        # Every example of another class is as likely as any other.
        others = np.array([(labels[:64] != label).sum() for label in labels])
        pools = np.array([(labels != label).sum() for label in labels[:64]])
        expected = (
            40 * 300 * np.array([(1 / pools)[labels[:64] != label].sum() for label in labels])
        )
        assert others.min() > 0
        assert np.abs(seen / expected - 1).max() < 0.15

    def test_large_sets_do_not_overflow(self):
        """The modular products in two halves, against Python's integers."""
        count, negatives = 1_281_167, 16_384
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 3, count)
        by_class, starts, sizes, strides = contrastive._classes(labels)
        memory = {
            "by_class": jnp.asarray(by_class),
            "starts": jnp.asarray(starts),
            "sizes": jnp.asarray(sizes),
            "strides": jnp.asarray(strides),
        }
        ids = np.asarray(
            contrastive.draw_negatives(
                jax.random.key(1), jnp.asarray(labels[:2]), negatives, memory
            )
        )
        place = np.empty(count, np.int64)
        place[by_class] = np.arange(count)
        for row, label in zip(ids, labels[:2], strict=True):
            outside = count - int(sizes[label])
            offset = (place[row] - int(starts[label]) - int(sizes[label])) % count
            steps = np.diff(offset) % outside
            assert len(set(steps.tolist())) == 1 and len(set(row.tolist())) == negatives

    def test_scores_and_banks_against_numpy(self):
        method, now = prepared("crd", STUDENT, TEACHER, **self.OPTIONS)
        values, updated = method(STUDENT, TEACHER, now)
        drawn = contrastive.draw_negatives(now.key, now.labels, 20, now.memory)
        embedded = {}
        for who, o in (("student", STUDENT), ("teacher", TEACHER)):
            e = np.float64(o.taps["pooled"]) @ np.float64(now.adapters[f"{who}/kernel"])
            e += np.float64(now.adapters[f"{who}/bias"])
            embedded[who] = e / np.linalg.norm(e, axis=1, keepdims=True)
        contrasted = np.concatenate([np.asarray(now.ids)[:, None], drawn], axis=1)
        count, wanted = 40, 0.0
        for anchor, bank in (("student", "teacher"), ("teacher", "student")):
            rows = np.float64(now.memory[f"{bank}_bank"])[contrasted]
            scores = np.exp(np.einsum("bkd,bd->bk", rows, embedded[anchor]) / 0.07)
            z = scores.mean() * count
            assert float(updated[f"{anchor}_z"]) == pytest.approx(z, rel=1e-4)
            scores, noise = scores / z, 20 / count
            wanted -= np.log(scores[:, 0] / (scores[:, 0] + noise + 1e-7))
            wanted -= np.log(noise / (scores[:, 1:] + noise + 1e-7)).sum(1)
        np.testing.assert_allclose(values, wanted, rtol=1e-4)
        for who, e in embedded.items():
            before = np.float64(now.memory[f"{who}_bank"])
            row = before[:BATCH] / 2 + e / 2
            after = np.asarray(updated[f"{who}_bank"])
            np.testing.assert_allclose(
                after[:BATCH], row / np.linalg.norm(row, axis=1, keepdims=True), atol=1e-5
            )
            np.testing.assert_array_equal(
                after[BATCH:], np.asarray(now.memory[f"{who}_bank"])[BATCH:]
            )
        # The constant of the first batch stays.
        again = method(STUDENT, TEACHER, dataclasses.replace(now, memory=updated))[1]
        assert float(again["student_z"]) == float(updated["student_z"])


def test_review_fuses_from_the_deepest_upwards():
    _, now = prepared("review", STUDENT, TEACHER)
    method = methods.create("review", warmup_epochs=0.0)
    base = jnp.mean(method(STUDENT, TEACHER, now))
    # The deepest student stage teaches the shallowest teacher stage; not the other way round.
    for tap in ("pooled", "stage1"):
        changed = {**STUDENT.taps, tap: STUDENT.taps[tap][::-1]}  # of other examples
        other = jnp.mean(method(Outputs(STUDENT.logits, changed), TEACHER, now))
        assert abs(other - base) > 1e-3 * base
    names = {name.split("/")[0] for name in now.adapters}
    assert names == {"0", "1", "2", "3"} and "0/attention/kernel" not in now.adapters
    ramp = methods.create("review")(STUDENT, TEACHER, now)
    np.testing.assert_allclose(jnp.mean(ramp), base / 20, rtol=1e-5)


def test_the_distillation_token_has_a_target_of_its_own():
    heads = {"class_logits": STUDENT.logits, "distillation_logits": STUDENT.logits + 1.5}
    student = Outputs(STUDENT.logits + 0.75, heads)
    method, now = prepared("deit", student, TEACHER)
    assert method.hard_logits(student) is heads["class_logits"]
    decisions = jnp.argmax(TEACHER.logits, axis=-1)
    wanted = losses.cross_entropy(heads["distillation_logits"], decisions)
    np.testing.assert_array_equal(method(student, TEACHER, now), wanted)
    soft = methods.create("deit", hard=False)(student, TEACHER, now)
    np.testing.assert_allclose(
        soft, losses.soft_target(heads["distillation_logits"], TEACHER.logits, temperature=4.0)
    )
    assert STUDENT.logits.shape == (BATCH, CLASSES)


def test_peers_teach_each_other():
    method, now = prepared("mutual", STUDENT, TEACHER)
    assert now.adapters and set(now.memory) == set()  # an MLP has no batch statistics
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(BATCH, 8, 8, 3)), jnp.float32)
    now = dataclasses.replace(now, images=images)

    def loss(adapters, logits):
        changed = dataclasses.replace(now, adapters=adapters)
        return jnp.mean(method(Outputs(logits, {}), None, changed)[0])

    value, (peer, student) = jax.value_and_grad(loss, argnums=(0, 1))(now.adapters, STUDENT.logits)
    assert float(value) > 0 and float(jnp.abs(student).max()) > 0
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(peer))
    context()
