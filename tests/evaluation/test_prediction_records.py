"""The record of a classifier: the rule that chooses, the counts, and linear CKA."""

import numpy as np
import pytest

from distill_jax.evaluation import records
from distill_jax.evaluation.records import Examples, ImageRecord, choose
from distill_jax.evaluation.representation import linear_cka


def examples(count=500, classes=5, seed=0, teacher=True) -> Examples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    truth = 2.0 * np.eye(classes)[labels]
    student, other = (np.float32(truth + rng.normal(size=truth.shape)) for _ in range(2))
    return Examples(np.arange(count), labels, student, other if teacher else None)


def recorded(split: Examples, parts: int) -> dict[str, np.ndarray]:
    record = ImageRecord(split.student.shape[1])
    for rows in np.array_split(np.arange(len(split.ids)), parts):
        part = split.take(rows)
        record.add(part.labels, part.student, part.teacher)
    return record.arrays()


@pytest.mark.parametrize("teacher", [True, False])
def test_batches_choose_what_the_whole_split_would(teacher, monkeypatch):
    monkeypatch.setattr(records, "MOST_EXAMPLES", 60)
    split = examples(teacher=teacher)
    whole, batched = recorded(split, 1), recorded(split, 17)
    assert whole.keys() == batched.keys() and len(whole["ids"]) == 60
    for name, values in whole.items():
        np.testing.assert_allclose(batched[name], values, rtol=1e-6, err_msg=name)
    np.testing.assert_array_equal(whole["ids"], choose(split, 60))


def test_every_rule_has_its_examples():
    split = examples()
    chosen = set(choose(split, 60).tolist())
    powers = np.exp(np.float64(split.teacher))
    p = powers / powers.sum(-1, keepdims=True)
    entropy = -(p * np.log(p)).sum(-1)
    assert set(np.argsort(entropy)[:10].tolist()) <= chosen
    assert set(np.argsort(-entropy)[:10].tolist()) <= chosen
    student, teacher = split.student.argmax(-1), split.teacher.argmax(-1)
    powers = np.exp(np.float64(split.student))
    kl = (p * np.log(p / (powers / powers.sum(-1, keepdims=True)))).sum(-1)
    for rows, by in (
        (np.flatnonzero(student != teacher), kl),
        (np.flatnonzero((student != split.labels) & (teacher != split.labels)), entropy),
    ):
        assert len(rows) > 10
        assert set(rows[np.argsort(-by[rows])][:10].tolist()) <= chosen
    for label in range(5):  # two of each class, since 10 are of this rule
        rows = np.flatnonzero(split.labels == label)
        assert set(rows[np.argsort(-entropy[rows])][:2].tolist()) <= chosen


def test_counts_are_those_of_the_whole_split():
    split = examples()
    found = recorded(split, 4)
    guess = {"student": split.student.argmax(-1), "teacher": split.teacher.argmax(-1)}
    for name, row, column in (
        ("student", split.labels, guess["student"]),
        ("teacher", split.labels, guess["teacher"]),
        ("both", guess["teacher"], guess["student"]),
    ):
        expected = np.zeros((5, 5), int)
        for i, j in zip(row, column, strict=True):
            expected[i, j] += 1
        matrix = np.zeros((5, 5), int)
        i, j, n = found[f"pairs_{name}"]
        matrix[i, j] = n
        np.testing.assert_array_equal(matrix, expected)
        assert (n > 0).all()
    wrong = guess["teacher"] != split.labels
    saved = wrong & (guess["student"] == split.labels)
    assert found["teacher_errors"].tolist() == [wrong.sum(), saved.sum()]
    np.testing.assert_allclose(found["soft_teacher"].sum(-1), 1, rtol=1e-5)


def test_many_classes_stay_bounded():
    labels = np.arange(4000) % 2000
    logits = np.float32(np.random.default_rng(0).normal(size=(4000, 2000)))
    record = ImageRecord(2000)
    for rows in np.array_split(np.arange(4000), 8):
        record.add(labels[rows], logits[rows], None)
    found = record.arrays()
    assert found["student"].size <= records.MOST_LOGITS
    assert found["soft_student"].shape == (128, 128)
    assert records.most_examples(10) == 1000 and records.most_examples(10**6) == 4


def test_logits_that_are_not_finite_are_recorded_too():
    split = examples()
    split.student[:3] = np.nan
    split.student[3, 1], split.teacher[4, 2] = np.inf, -np.inf
    found = recorded(split, 3)
    assert len(found["ids"]) == 500
    np.testing.assert_array_equal(found["student"], split.student)


class TestLinearCKA:
    def reference(self, x, y):
        """By the definition with centring matrices, in float64."""
        n = len(x)
        centre = np.eye(n) - np.full((n, n), 1 / n)

        def hsic(a, b):
            return np.trace(a @ a.T @ centre @ b @ b.T @ centre) / (n - 1) ** 2

        return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))

    def test_equals_the_definition(self):
        rng = np.random.default_rng(3)
        x, noise = rng.normal(size=(30, 8)), rng.normal(size=(30, 5))
        y = x[:, :5] + noise + 3.0
        assert linear_cka(np.float32(x), np.float32(y)) == pytest.approx(
            self.reference(x, y), rel=1e-5
        )

    def test_rotation_scale_and_shift_change_nothing(self):
        rng = np.random.default_rng(4)
        x = rng.normal(size=(20, 6))
        turned = x @ np.linalg.qr(rng.normal(size=(6, 6)))[0] * 7 - 2
        assert linear_cka(x, turned) == pytest.approx(1, abs=1e-9)
        assert linear_cka(x, rng.normal(size=(20, 6))) < 0.7
        assert np.isnan(linear_cka(x, np.ones((20, 3))))
