"""The soft targets of a teacher: the probabilities of the wrong classes that a student learns from.

Left out on purpose: selecting the images; the page that shows them states how they were selected.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from distill_jax.reports.figure_style import ACCENT, INK, MUTED, SERIES, label_text, style

SHOWN_CLASSES = 10  # in a row, if there are many


def soft_target_grid(
    images: ArrayLike,
    labels: ArrayLike,
    teacher_logits: ArrayLike,
    class_names: Sequence[str],
    temperatures: Sequence[float] = (1, 4),
    *,
    student_logits: ArrayLike | None = None,
) -> Figure:
    """A few images and the teacher's probabilities for them, at several temperatures.

    With a student, its probabilities are beside the teacher's at each temperature.

    p_k = exp(z_k / T) / sum_j exp(z_j / T): at T = 1 only the true class is visible; a higher T
    shows which wrong classes the teacher finds likely (Hinton, Vinyals & Dean 2015, section 1-2).

    Args:
      images: [N, H, W] or [N, H, W, C], C 1 or 3, uint8 or floats in [0, 1].
      labels: int [N], the true classes.
      teacher_logits: [N, K].
      class_names: K names.
      temperatures: positive, one column of bars each, or two with a student.
      student_logits: [N, K], or None.

    Returns:
      One row for each image. The true class has the accent colour, and the three most likely
      classes show their probability in percent. Of more than 12 classes, each row shows the ten
      most likely ones, with the true class always among them.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    logits = np.asarray(teacher_logits, np.float64)
    names = [label_text(name) for name in class_names]
    if logits.shape != (len(images), len(names)):
        raise ValueError(
            f"teacher_logits {logits.shape}: expected one row an image and one column a class "
            f"name, {(len(images), len(names))}"
        )
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    columns = [(f"T = {temperature:g}", logits / temperature) for temperature in temperatures]
    if student_logits is not None:
        both = {"Teacher": logits, "Student": np.asarray(student_logits, np.float64)}
        columns = [
            (f"{network}, {title}", both[network] / temperature)
            for (title, _), temperature in zip(columns, temperatures, strict=True)
            for network in both
        ]
    return _draw(images, labels, logits, names, columns)


def _draw(
    images: np.ndarray,
    labels: np.ndarray,
    logits: np.ndarray,
    names: list[str],
    columns: list[tuple[str, np.ndarray]],
) -> Figure:
    """The grid: a row for each image, a column of bars for each (title, scaled logits [N, K])."""
    all_classes = len(names) <= SHOWN_CLASSES + 2
    shown = [
        np.arange(len(names)) if all_classes else _likeliest(row, label)
        for row, label in zip(logits, labels, strict=True)
    ]
    longest = max(sum(len(names[k]) for k in classes) for classes in shown)
    slanted = longest * len(columns) > 80
    with style():
        figure, grid = _grid(len(images), len(columns), slanted, per_row=not all_classes)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            _image(grid[i][0], image, names[label])
            for axes, (title, scaled) in zip(grid[i][1:], columns, strict=True):
                _probability_bars(axes, _softmax(scaled[i]), int(label), shown[i])
                axes.set_title(title if i == 0 else "")
                labelled = i == len(images) - 1 or not all_classes
                _class_ticks(axes, [names[k] for k in shown[i]], labelled, slanted)
    return figure


def _grid(rows: int, columns: int, slanted: bool, *, per_row: bool) -> tuple[Figure, np.ndarray]:
    """A figure with a narrow column of images and columns of bars.

    Args:
      rows: the number of images.
      columns: the number of columns of bars.
      slanted: whether class names are slanted, which takes more height.
      per_row: whether every row has class names of its own, not only the last one.
    """
    row_height = 1.02 + (0.45 if slanted and per_row else 0.15 if per_row else 0)
    figure = Figure(figsize=(8.6, 0.35 + row_height * rows + (0.4 if slanted else 0)))
    grid = figure.subplots(rows, 1 + columns, squeeze=False, width_ratios=[0.8] + [3.2] * columns)
    return figure, grid


def _image(axes: Axes, image: np.ndarray, name: str) -> None:
    limit = 255 if image.dtype == np.uint8 else 1
    axes.imshow(image, cmap="gray", vmin=0, vmax=limit, interpolation="none")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    # A long name may extend to the right, but not to the left of the figure.
    axes.set_title(name, color=ACCENT, loc="center" if len(name) <= 10 else "left", pad=3)


def _class_ticks(axes: Axes, names: list[str], labelled: bool, slanted: bool) -> None:
    axes.set_xticks(
        np.arange(len(names)),
        names if labelled else [],
        rotation=35 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )


def _likeliest(logits: np.ndarray, label: int) -> np.ndarray:
    """The classes with the largest logits, the true class always among them."""
    order = np.argsort(-logits, kind="stable")
    first = order[:SHOWN_CLASSES]
    return first if label in first else np.append(first[:-1], label)


def _probability_bars(
    axes: Axes, probabilities: np.ndarray, label: int, classes: np.ndarray
) -> None:
    probabilities = probabilities[classes]
    positions = np.arange(len(classes))
    axes.bar(
        positions, probabilities, 0.72, color=[ACCENT if k == label else SERIES[0] for k in classes]
    )
    axes.set(ylim=(0, 1.22), yticks=[0, 0.5, 1], xlim=(-0.6, len(classes) - 0.4))
    axes.tick_params(length=0, labelsize=7.5)
    axes.tick_params(axis="y", labelcolor=MUTED)
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    for position in np.argsort(-probabilities, kind="stable")[:3]:
        share = probabilities[position]
        if share >= 0.0005:
            percent = f"{100 * share:.{0 if share >= 0.0995 else 1}f}%"
            axes.text(position, share + 0.03, percent, ha="center", size=7, color=INK)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()
