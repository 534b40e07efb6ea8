"""Evaluation sums and figures against a float64 loop over single examples."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from distill_jax.errors import UsageError
from distill_jax.evaluation import classification

# Sums of float32 terms against float64; counts are exact.
RTOL = 1e-5

SIZES = [(37, 8), (21, 7), (6, 6)]  # examples, batch size: the last batch is padded, and is not
CLASSES = [2, 5, 6, 10]

batch_sums = jax.jit(classification.batch_sums)


def some_examples(count, classes, seed=0):
    """Logits of a student and a teacher with some ties, and labels that miss the last class."""
    random = np.random.default_rng(seed)
    student, teacher = 2 * random.standard_normal((2, count, classes))
    student, teacher = np.round(student, 1), np.round(teacher, 1)
    labels = random.integers(0, max(classes - 1, 2), count)
    student[np.arange(0, count, 2), labels[::2]] += 2
    teacher[np.arange(count), labels] += 2
    return student.astype(np.float32), teacher.astype(np.float32), labels.astype(np.int32)


def padded_batches(batch_size, *arrays):
    """Full batches with a mask; the values of a padded row would spoil any sum."""
    for start in range(0, len(arrays[0]), batch_size):
        parts = [a[start : start + batch_size] for a in arrays]
        real = len(parts[0])
        padded = []
        for part in parts:
            poison = -1 if np.issubdtype(part.dtype, np.integer) else np.nan
            shape = (batch_size - real, *part.shape[1:])
            padded.append(np.concatenate([part, np.full(shape, poison, part.dtype)]))
        yield *padded, np.arange(batch_size) < real


def total_sums(batch_size, student, labels, teacher=None):
    total = {}
    arrays = (student, labels) if teacher is None else (student, labels, teacher)
    for *batch, mask in padded_batches(batch_size, *arrays):
        logits, ids, *rest = batch
        for name, value in batch_sums(logits, ids, mask, *rest).items():
            total[name] = total.get(name, 0) + np.asarray(value, np.float64)
    return total


def probabilities(row):
    weights = [math.exp(float(z) - float(max(row))) for z in row]
    return [w / sum(weights) for w in weights]


def ranking(row):
    """Classes from the largest logit down, the lower id first on a tie."""
    return sorted(range(len(row)), key=lambda c: (-float(row[c]), c))


def loop(logits, labels):
    """The figures of one network, one example at a time."""
    count, classes = logits.shape
    bins = [[0, 0.0, 0] for _ in range(15)]
    per_class = [[0, 0] for _ in range(classes)]
    errors, top5, nll, brier = 0, 0, 0.0, 0.0
    for row, label in zip(logits, labels, strict=True):
        p, order = probabilities(row), ranking(row)
        right = order[0] == label
        errors += not right
        top5 += label in order[:5]
        nll -= math.log(p[label])
        brier += sum((p[c] - (c == label)) ** 2 for c in range(classes))
        (b,) = [i for i in range(15) if i / 15 < max(p) <= (i + 1) / 15]
        bins[b] = [bins[b][0] + 1, bins[b][1] + max(p), bins[b][2] + right]
        per_class[label] = [per_class[label][0] + 1, per_class[label][1] + right]
    figures = {
        "errors": errors,
        "accuracy": 1 - errors / count,
        "nll": nll / count,
        "brier": brier / count,
        "ece": sum(n / count * abs(hits / n - total / n) for n, total, hits in bins if n),
        "per_class": [right / n if n else None for n, right in per_class],
        "reliability": {
            "count": [n for n, _, _ in bins],
            "confidence": [total / n if n else 0.0 for n, total, _ in bins],
            "accuracy": [hits / n if n else 0.0 for n, _, hits in bins],
        },
    }
    return figures | ({"top5": top5 / count} if classes > 5 else {})


def loop_against_teacher(student, teacher):
    agreement, kl = 0, 0.0
    for s, t in zip(student, teacher, strict=True):
        agreement += ranking(s)[0] == ranking(t)[0]
        kl += sum(
            p * math.log(p / q) for p, q in zip(probabilities(t), probabilities(s), strict=True)
        )
    return {"agreement": agreement / len(student), "kl": kl / len(student)}


def assert_same_figures(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if name.endswith("per_class"):
            assert actual[name] == value, name
        elif name.endswith("reliability"):
            for part, numbers in value.items():
                assert actual[name][part] == pytest.approx(numbers, rel=RTOL, abs=1e-7), part
        else:
            assert actual[name] == pytest.approx(value, rel=RTOL, abs=1e-7), name


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("count, batch_size", SIZES)
class TestFigures:
    def test_student_alone(self, count, batch_size, classes):
        student, _, labels = some_examples(count, classes)
        figures = classification.summarise(total_sums(batch_size, student, labels))
        assert_same_figures(figures, {"count": count, **loop(student, labels)})

    def test_with_teacher(self, count, batch_size, classes):
        student, teacher, labels = some_examples(count, classes)
        figures = classification.summarise(total_sums(batch_size, student, labels, teacher))
        of_teacher = {f"teacher_{name}": value for name, value in loop(teacher, labels).items()}
        expected = {
            "count": count,
            **loop(student, labels),
            **loop_against_teacher(student, teacher),
            **of_teacher,
        }
        assert_same_figures(figures, expected)


class TestBatchSums:
    def test_sums_do_not_depend_on_the_batches(self):
        student, teacher, labels = some_examples(37, 10)
        whole, parts = (total_sums(size, student, labels, teacher) for size in (37, 8))
        assert whole.keys() == parts.keys()
        for name, value in whole.items():
            np.testing.assert_allclose(parts[name], value, rtol=RTOL, err_msg=name)

    def test_reference_of_sklearn(self):
        student, _, labels = some_examples(50, 2, seed=1)
        p = np.exp(student.astype(np.float64))
        p /= p.sum(-1, keepdims=True)
        figures = classification.summarise(total_sums(8, student, labels))
        assert figures["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, p), rel=RTOL)
        # For two classes the sum over both is twice the score of the positive one.
        positive = sklearn.metrics.brier_score_loss(labels, p[:, 1])
        assert figures["brier"] == pytest.approx(2 * positive, rel=RTOL)
        recall = sklearn.metrics.recall_score(labels, student.argmax(-1), average=None)
        assert figures["per_class"] == pytest.approx(recall.tolist())

    def test_masked_rows_that_would_be_right_count_for_nothing(self):
        """A padded batch may repeat an example: the real ones alone must count."""
        student, teacher, labels = some_examples(8, 10)
        mask = np.arange(8) % 3 == 0
        subset = (x[mask] for x in (student, labels, mask, teacher))
        expected = batch_sums(*subset)
        for name, value in batch_sums(student, labels, mask, teacher).items():
            np.testing.assert_allclose(value, expected[name], rtol=RTOL, err_msg=name)

    def test_all_masked_is_zero(self):
        logits, labels = np.full((3, 6), np.nan, np.float32), np.zeros(3, np.int32)
        sums = batch_sums(logits, labels, np.zeros(3, bool), logits)
        for name, value in sums.items():
            assert value.dtype == jnp.float32, name
            np.testing.assert_array_equal(value, 0, err_msg=name)

    def test_bins_and_classes_add_up(self):
        student, teacher, labels = some_examples(37, 10)
        sums = total_sums(8, student, labels, teacher)
        assert sums["count"] == sums["class_count"].sum() == sums["ece_count"].sum() == 37
        for prefix in ("", "teacher_"):
            correct = sums[prefix + "correct"]
            assert correct == sums[prefix + "class_correct"].sum()
            assert correct == sums[prefix + "ece_correct"].sum()

    def test_ties_go_to_the_lower_class(self):
        logits = np.zeros((8, 8), np.float32)
        sums = batch_sums(logits, np.arange(8), np.ones(8, bool))
        np.testing.assert_array_equal(sums["class_correct"], np.arange(8) == 0)
        assert sums["top5"] == 5

    def test_nan_is_never_correct(self):
        logits = np.zeros((3, 6), np.float32)
        logits[0], logits[1, 4] = np.nan, np.nan
        sums = batch_sums(logits, np.zeros(3, np.int32), np.ones(3, bool))
        assert sums["correct"] == 1
        assert np.isnan(sums["nll"])

    def test_label_that_is_no_class_is_seen(self):
        sums = batch_sums(np.zeros((2, 3), np.float32), np.array([-1, 3]), np.ones(2, bool))
        assert sums["correct"] == 0
        assert np.isnan(sums["nll"])

    def test_saturated_logits(self):
        logits = np.array([[200, -200, 0], [200, -200, 0]], np.float32)
        figures = classification.summarise(
            {
                k: np.float64(v)
                for k, v in batch_sums(logits, np.array([0, 1]), np.ones(2, bool), -logits).items()
            }
        )
        assert figures["nll"] == pytest.approx(200)
        assert figures["brier"] == pytest.approx(1)
        assert figures["ece"] == pytest.approx(0.5)
        assert figures["kl"] == pytest.approx(400)

    def test_bfloat16_is_upcast_first(self):
        student, teacher, labels = some_examples(8, 10)
        student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in (student, teacher))
        mask = np.ones(8, bool)
        expected = batch_sums(
            student.astype(jnp.float32), labels, mask, teacher.astype(jnp.float32)
        )
        for name, value in batch_sums(student, labels, mask, teacher).items():
            assert value.dtype == jnp.float32, name
            np.testing.assert_allclose(value, expected[name], rtol=RTOL, err_msg=name)

    def test_sharded_over_the_batch(self):
        student, teacher, labels = some_examples(8, 10)
        mask = np.arange(8) < 7
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), "data")
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        sharded = batch_sums(*jax.device_put((student, labels, mask, teacher), sharding))
        for name, value in batch_sums(student, labels, mask, teacher).items():
            np.testing.assert_allclose(sharded[name], value, rtol=RTOL, err_msg=name)

    @pytest.mark.parametrize(
        "labels, mask",
        [(np.zeros(3, int), np.ones(4, bool)), (np.zeros(4, int), np.ones(4))],
        ids=["labels", "mask"],
    )
    def test_shapes_must_belong_together(self, labels, mask):
        with pytest.raises(UsageError, match=r"expected \[batch, classes\], \[batch\], bool"):
            classification.batch_sums(np.zeros((4, 3), np.float32), labels, mask)


class TestConfidenceBin:
    def test_bins_are_closed_on_the_right(self):
        edges = (np.arange(1, 16) / 15).astype(np.float32)
        np.testing.assert_array_equal(classification.confidence_bin(edges), np.arange(15))
        above = np.nextafter(edges[:-1], np.float32(2))
        np.testing.assert_array_equal(classification.confidence_bin(above), np.arange(1, 15))

    def test_zero_is_in_the_first(self):
        assert classification.confidence_bin(np.float32(0)) == 0


class TestSummarise:
    def test_is_json_and_top5_needs_six_classes(self):
        student, teacher, labels = some_examples(7, 6)
        figures = classification.summarise(total_sums(7, student, labels, teacher))
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures
        assert figures["per_class"][-1] is None
        assert type(figures["errors"]) is int and type(figures["count"]) is int
        assert "top5" in figures and "teacher_top5" in figures
        narrow = classification.summarise(total_sums(7, student[:, :5], labels % 5, teacher[:, :5]))
        assert "top5" not in narrow and "teacher_top5" not in narrow

    def test_ece_by_hand(self):
        """Two bins: 2 of 3 right at confidence 0.9, 0 of 1 at 0.5."""
        p = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.49, 0.51]])
        labels = np.array([0, 0, 0, 0])
        sums = total_sums(4, np.log(p).astype(np.float32), labels)
        expected = 3 / 4 * abs(2 / 3 - 0.9) + 1 / 4 * abs(0 - 0.51)
        assert classification.summarise(sums)["ece"] == pytest.approx(expected, rel=RTOL)

    def test_a_network_against_itself(self):
        student, _, labels = some_examples(9, 10)
        figures = classification.summarise(total_sums(9, student, labels, student))
        assert figures["agreement"] == 1 and figures["kl"] == pytest.approx(0, abs=1e-7)
        for name in ("accuracy", "nll", "ece", "brier", "errors", "top5", "per_class"):
            assert figures["teacher_" + name] == figures[name]

    def test_nothing_counted(self):
        sums = batch_sums(np.zeros((2, 3), np.float32), np.zeros(2, np.int32), np.zeros(2, bool))
        with pytest.raises(UsageError, match="count=0: expected at least one example"):
            classification.summarise(sums)
