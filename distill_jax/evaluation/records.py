"""What a page shows of a classifier's predictions on a split: a bounded record, batch by batch.

`ImageRecord` counts all predictions, and keeps the logits of a few examples that a rule chooses.
The rule does not depend on the batches: what is kept is what it would choose from the whole split.
Left out on purpose: images, and anything that grows with the split.
"""

from typing import NamedTuple

import numpy as np

MOST_EXAMPLES = 1000
MOST_LOGITS = 100_000  # numbers that are kept of one network
MOST_SOFT_CLASSES = 128  # in the matrix of mean soft targets
MOST_SUMMED_CLASSES = 2048  # of more, no soft targets are summed
_RULES = 5


def most_examples(classes: int) -> int:
    """How many examples are kept: 1,000, or fewer where each has many logits; at least 4."""
    return max(4, min(MOST_EXAMPLES, MOST_LOGITS // classes))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities, float64 [..., K]; NaN where the logits are not finite."""
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # such as inf - inf of a network that has diverged
        shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


class Examples(NamedTuple):
    """Examples with their logits.

    Attributes:
      ids: int64 [N], positions in the split, ascending.
      labels: int64 [N].
      student: float32 [N, K].
      teacher: float32 [N, K]; None without a teacher.
    """

    ids: np.ndarray
    labels: np.ndarray
    student: np.ndarray
    teacher: np.ndarray | None

    def take(self, rows: np.ndarray) -> "Examples":
        """Some of the examples."""
        teacher = None if self.teacher is None else self.teacher[rows]
        return Examples(self.ids[rows], self.labels[rows], self.student[rows], teacher)

    def join(self, other: "Examples") -> "Examples":
        """These examples and more of them, behind."""
        teacher = None
        if self.teacher is not None and other.teacher is not None:
            teacher = np.concatenate([self.teacher, other.teacher])
        return Examples(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.student, other.student]),
            teacher,
        )


def _ranked(examples: Examples) -> list[np.ndarray]:
    """Rows by each of the rules, the first ones first; only rows that the rule is about."""
    teacher = examples.student if examples.teacher is None else examples.teacher
    logs = log_softmax(teacher)
    with np.errstate(invalid="ignore"):
        entropy = -np.sum(np.exp(logs) * logs, axis=-1)
        divergence = np.sum(np.exp(logs) * (logs - log_softmax(examples.student)), axis=-1)
    right = teacher.argmax(-1) == examples.labels
    student = examples.student.argmax(-1)
    differ = student != teacher.argmax(-1)
    wrong = ~right & (student != examples.labels)
    least = np.argsort(-entropy, kind="stable")
    # The place of each example among those of its class, the least certain first.
    by_class = least[np.argsort(examples.labels[least], kind="stable")]
    _, begin, count = np.unique(examples.labels[by_class], return_index=True, return_counts=True)
    place = np.arange(len(by_class)) - np.repeat(begin, count)
    within = by_class[np.argsort(place, kind="stable")]
    farthest = np.argsort(-divergence, kind="stable")
    return [
        np.argsort(entropy, kind="stable"),
        least,
        farthest[differ[farthest]],
        least[wrong[least]],
        within,
    ]


def choose(examples: Examples, limit: int) -> np.ndarray:
    """Rows that a page shows: at most `limit`, ascending.

    Of the teacher (of the student where there is none), a sixth of the limit each: the most
    certain, the least certain, those where student and teacher differ, by the largest KL, those
    where both err, by the least certain, and the least certain of each class, class by class. The
    first examples of the split fill what is left.
    """
    quota = limit // (_RULES + 1)
    kept = np.unique(np.concatenate([order[:quota] for order in _ranked(examples)]))
    rest = np.setdiff1d(np.arange(len(examples.ids)), kept)
    return np.sort(np.concatenate([kept, rest[: limit - len(kept)]]))


class ImageRecord:
    """Adds up a split, batch by batch.

    Args:
      classes: K.
    """

    def __init__(self, classes: int):
        self._classes = classes
        self._limit = most_examples(classes)
        self._kept: Examples | None = None
        self._seen = 0
        self._pairs: dict[str, list[np.ndarray]] = {}
        summed = classes <= MOST_SUMMED_CLASSES
        self._soft: dict[str, np.ndarray] = {}
        self._summed = summed
        self._count = np.zeros(classes, np.int64)
        self._on_errors = np.zeros(2, np.int64)

    def add(self, labels: np.ndarray, student: np.ndarray, teacher: np.ndarray | None) -> None:
        """Adds the next examples of the split: labels [B], logits [B, K] or None."""
        labels = np.asarray(labels, np.int64)
        ids = self._seen + np.arange(len(labels))
        self._seen += len(labels)
        guess = {"student": student.argmax(-1)}
        if teacher is not None:
            guess["teacher"] = teacher.argmax(-1)
            self._add_pairs("both", guess["teacher"], guess["student"])
            wrong = guess["teacher"] != labels
            self._on_errors += wrong.sum(), (wrong & (guess["student"] == labels)).sum()
        for name, values in guess.items():
            self._add_pairs(name, labels, values)
        np.add.at(self._count, labels, 1)
        if self._summed:
            for name, logits in (("student", student), ("teacher", teacher)):
                if logits is not None:
                    total = self._soft.setdefault(name, np.zeros((self._classes,) * 2))
                    np.add.at(total, labels, np.exp(log_softmax(logits)))
        kept_teacher = None if teacher is None else teacher.astype(np.float32)
        now = Examples(ids, labels, student.astype(np.float32), kept_teacher)
        joined = now if self._kept is None else self._kept.join(now)
        self._kept = joined.take(self._candidates(joined))

    def _candidates(self, examples: Examples) -> np.ndarray:
        """Rows that the rule may still choose, whatever comes."""
        quota = self._limit // (_RULES + 1)
        first = np.arange(min(self._limit, len(examples.ids)))
        ranked = (order[:quota] for order in _ranked(examples))
        return np.unique(np.concatenate([first, *ranked]))

    def _add_pairs(self, name: str, row: np.ndarray, column: np.ndarray) -> None:
        """Counts (row, column); kept sparse, since most of K^2 are 0."""
        codes, counts = np.unique(row * np.int64(self._classes) + column, return_counts=True)
        found = self._pairs.get(name, [np.zeros(0, np.int64), np.zeros(0, np.int64)])
        codes, place = np.unique(np.concatenate([found[0], codes]), return_inverse=True)
        total = np.zeros(len(codes), np.int64)
        np.add.at(total, place, np.concatenate([found[1], counts]))
        self._pairs[name] = [codes, total]

    def arrays(self) -> dict[str, np.ndarray]:
        """The record.

        Returns:
          "ids", "labels" int32 [E], and "student", "teacher" float32 [E, K]: the logits of the
          chosen examples. "pairs_student", "pairs_teacher" int32 [3, M]: true class, predicted
          class and how often, where it happened; "pairs_both": the teacher's class, the student's,
          and how often. "teacher_errors" int64 [2]: how often the teacher errs, and how often the
          student is right there. "soft_classes" int32 [S]; "soft_student" and "soft_teacher",
          float32 [S, S]: the mean probability of the column's class on the row's examples, at
          T = 1, for all classes or for the 128 whose examples the teacher gives most to others.
        """
        assert self._kept is not None
        kept = self._kept.take(choose(self._kept, self._limit))
        found: dict[str, np.ndarray] = {}
        found |= {"ids": kept.ids.astype(np.int32), "labels": kept.labels.astype(np.int32)}
        found["student"] = kept.student
        if kept.teacher is not None:
            found["teacher"] = kept.teacher
            found["teacher_errors"] = self._on_errors
        for name, (codes, counts) in self._pairs.items():
            pair = np.divmod(codes, self._classes)
            found[f"pairs_{name}"] = np.stack([*pair, counts]).astype(np.int32)
        if self._soft:
            mean = {k: v / np.maximum(self._count, 1)[:, None] for k, v in self._soft.items()}
            guide = mean.get("teacher", mean["student"])
            spread = np.where(self._count > 0, 1 - np.diag(guide), -1.0)
            shown = np.sort(np.argsort(-spread, kind="stable")[:MOST_SOFT_CLASSES])
            found["soft_classes"] = shown.astype(np.int32)
            for name, values in mean.items():
                found[f"soft_{name}"] = values[np.ix_(shown, shown)].astype(np.float32)
        return found
