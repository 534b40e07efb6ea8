"""The table and the page of the demo, from the results of its runs and the files they left."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from distill_jax import data, teachers
from distill_jax.reports import figures, html, tables
from distill_jax.reports.tables import Column, Table
from distill_jax.storage import write_atomically
from distill_jax.training.logging import writers

LABELS = {
    "teacher": "Teacher",
    "baseline": "Student alone",
    "smoothed": "Student, smoothed labels",
    "student": "Student with the teacher",
}
WIDEST = max(map(len, LABELS.values()))
TEMPERATURES = (1, 4)
LOOKALIKES = (7, (1, 9))  # the example that everybody knows: a 7 has a little of a 1 and of a 9

Results = Sequence[dict[str, Any]]


def table(results: Results) -> Table:
    """One line a model: test figures after the last step, mean ± sample deviation over seeds."""
    return tables.over_seeds(
        [{**result, "model": LABELS[result["role"]]} for result in results],
        by=[
            Column("model", "Model"),
            Column("images", "Images", "integer"),
            Column("parameters", "Parameters", "integer"),
        ],
        columns=[
            Column("final.test.accuracy", "Accuracy (%)", "percent"),
            Column("final.test.nll", "NLL", "decimal", 4),
            Column("final.test.ece", "ECE (%)", "percent"),
            Column("final.test.agreement", "Agreement (%)", "percent"),
        ],
    )


def figure_of(results: Results, role: str, name: str) -> list[float]:
    """One test figure of a model, by seed."""
    return [r["final"]["test"][name] for r in results if r["role"] == role]


def _spread(values: Sequence[float], factor: float, digits: int) -> str:
    """Mean, with its sign, ± sample deviation; a true minus, as in print."""
    mean, deviation = tables.mean_and_deviation([factor * value for value in values])
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    return f"{mean:+.{digits}f}".replace("-", "\N{MINUS SIGN}") + spread


def conclusions(results: Results) -> list[str]:
    """What the teacher brought, seed by seed, against each of the students without it."""
    count = results[0]["final"]["test"]["count"]
    seeds = len(figure_of(results, "student", "nll"))
    lines = [
        f"{count} test images after the last step; mean ± standard deviation (number of seeds). "
        "Images: those trained on."
    ]
    for role, without in (
        ("baseline", "the student alone"),
        ("smoothed", "label smoothing"),
    ):
        accuracy, nll, ece = (
            [a - b for a, b in zip(*figures_by_role, strict=True)]
            for figures_by_role in (
                (figure_of(results, "student", name), figure_of(results, role, name))
                for name in ("accuracy", "nll", "ece")
            )
        )
        lines.append(
            f"The teacher against {without}: accuracy {_spread(accuracy, 100, 2)} points, "
            f"NLL {_spread(nll, 1, 3)}, ECE {_spread(ece, 100, 2)} points; "
            f"the lower NLL in {sum(gain < 0 for gain in nll)} of {seeds} seeds."
        )
    return lines


def chosen_examples(logits: np.ndarray, labels: np.ndarray, more: int = 4) -> list[int]:
    """Selects the test images that illustrate the soft targets, by a rule.

    The teacher classifies all of them correctly. The first is a 7: among those whose second and
    third classes are 1 and 9 (among all, if there are none), the one in which the less likely of
    these two has the highest probability at the highest temperature. The rest are, for each other
    class, the image of the highest entropy at T = 1, and of these the `more` highest.

    Args:
      logits: the teacher's, [N, K].
      labels: int [N].
      more: the number of images in addition to the 7.

    Returns:
      Indices; without the 7 if the teacher classifies none correctly.
    """
    right = logits.argmax(axis=1) == labels
    label, likes = LOOKALIKES
    chosen = []
    is_next = np.sort(np.argsort(-logits, axis=1)[:, 1 : 1 + len(likes)], axis=1) == sorted(likes)
    sevens = right & (labels == label)
    ids = np.flatnonzero(sevens & is_next.all(axis=1))
    ids = ids if len(ids) else np.flatnonzero(sevens)
    if len(ids):
        soft = _softmax(logits[ids] / max(TEMPERATURES))
        chosen.append(int(ids[soft[:, list(likes)].min(axis=1).argmax()]))
    sharp = _softmax(logits)
    entropy = -np.sum(sharp * np.log(np.maximum(sharp, 1e-30)), axis=1)
    candidates = []
    for other in range(logits.shape[1]):
        ids = np.flatnonzero(right & (labels == other))
        if other != label and len(ids):
            candidates.append(int(ids[entropy[ids].argmax()]))
    candidates.sort(key=lambda index: -entropy[index])
    return chosen + candidates[:more]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _soft_targets(root: pathlib.Path) -> html.Drawing:
    """The soft targets of the first seed's teacher on a few test images."""
    test = data.load("digits", "test")
    images, labels = test.arrays()
    teacher, variables = teachers.load(
        [str(root / "teacher_0")],
        input_shape=test.info.image_shape,
        num_classes=test.info.num_classes,
    )
    logits = np.asarray(teacher(variables, jnp.asarray(images, jnp.float32) / 255)[0].logits)
    ids = chosen_examples(logits, labels)
    return html.Drawing(
        figures.soft_target_grid(
            images[ids], labels[ids], logits[ids], test.info.class_names, TEMPERATURES
        ),
        "Probabilities that the first seed's teacher gives to five test images; the true class, "
        "above each image, is the one in the other colour. At T = 4 it becomes visible which wrong "
        "answers are nearly right: that is what the student learns from.",
        "Bar charts of soft targets at T = 1 and T = 4.",
    )


RULE = (
    "The images are chosen by a rule, from those that the teacher recognises: first the 7 that it "
    "likens most to both a 1 and a 9; then, of the least certain image of each other digit, the "
    "four least certain."
)

COMPARED = (
    "The three students of a seed are the same network, with the same initial parameters, the same "
    "few images under the same random shifts, the same number of steps, the same optimizer, "
    "learning rate and weight decay (those that are best for the student alone). They differ in "
    "the loss: cross-entropy with the labels; the same with label smoothing, which softens them "
    "but knows nothing; or T² · KL(teacher ‖ student) at T = 4, without any label. The teacher has "
    "seen ten times as many images: what it learned from them reaches the student through the soft "
    "targets alone (Hinton, Vinyals & Dean 2015, section 6). Each seed has its own teacher and its "
    "own choice of images."
)

CHOSEN = (
    "Every value was chosen on validation images; the test images are counted once, after the last "
    "step of each run. How the values were chosen, ten seeds, and when a teacher is not worth it: "
    "experiments/demo/README.md."
)


def write(root: pathlib.Path, results: Results) -> pathlib.Path:
    """Writes ROOT/report.html, whole or not at all, and returns its path."""
    cells = table(results)
    means = {
        (role, name): tables.mean_and_deviation(figure_of(results, role, name))[0]
        for role in LABELS
        for name in ("accuracy", "nll")
    }
    tiles = [
        (LABELS["baseline"], f"{means['baseline', 'accuracy']:.2%}"),
        (LABELS["student"], f"{means['student', 'accuracy']:.2%}"),
        (LABELS["teacher"], f"{means['teacher', 'accuracy']:.2%}"),
        ("Student's NLL", f"{means['baseline', 'nll']:.2f} → {means['student', 'nll']:.2f}"),
    ]
    curves = {
        label: [
            writers.read(root / result["folder"] / "metrics.jsonl")
            for result in results
            if result["role"] == role
        ]
        for role, label in LABELS.items()
    }
    runs = [
        {**result, "model": LABELS[result["role"]], "link": result["folder"]} for result in results
    ]
    sections = [
        (
            "What the teacher is worth",
            [
                html.facts(tiles),
                html.table(cells.rows, cells.columns, caption=conclusions(results)[0]),
                *conclusions(results)[1:],
                COMPARED,
                CHOSEN,
            ],
        ),
        (
            "The teacher's soft targets",
            [_soft_targets(root), RULE],
        ),
        (
            "Learning curves",
            [
                html.Drawing(
                    figures.learning_curves(curves),
                    "Mean over seeds, in a band of ± one standard deviation. The training losses "
                    "are different functions; compare the validation curves.",
                )
            ],
        ),
        ("Every run", [_every_run(runs)]),
    ]
    path = root / "report.html"
    subtitle = f"scikit-learn's handwritten digits · {results[0]['device']}"
    write_atomically(path, html.page("A teacher and its student", sections, subtitle=subtitle))
    return path


def _every_run(runs: Results) -> html.Markup:
    columns = [
        Column("model", "Model"),
        Column("seed", "Seed", "integer"),
        Column("final.test.errors", "Test errors", "integer"),
        Column("final.test.accuracy", "Accuracy (%)", "percent"),
        Column("final.test.nll", "NLL", "decimal", 4),
        Column("final.validation.accuracy", "Validation accuracy (%)", "percent"),
        Column("steps", "Steps", "integer"),
        Column("wall_time_s", "Seconds", "decimal", 1),
        Column("folder", "Folder, with its own report.html"),
    ]
    return html.table(runs, columns)
