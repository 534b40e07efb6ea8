"""Figures: what is drawn is what was given, and the same arrays give the same bytes."""

import math
import subprocess
import sys
import warnings

import matplotlib
import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest

from distill_jax.reports import figure_style, figures
from distill_jax.reports.figure_style import ACCENT, INK, SERIES


def records(losses, accuracies=(), nlls=()) -> list[dict]:
    train = [{"split": "train", "step": 10 * (i + 1), "loss": x} for i, x in enumerate(losses)]
    validation = [
        {"split": "validation", "step": 20 * (i + 1), "accuracy": a, "nll": n}
        for i, (a, n) in enumerate(zip(accuracies, nlls, strict=True))
    ]
    return train + validation


def colour(artist) -> str:
    return matplotlib.colors.to_hex(artist.get_facecolor())


class TestLearningCurves:
    def test_one_line_a_run_in_three_panels(self):
        runs = {"a": records([3, 2], [0.5], [1.5]), "b": records([4, 3], [0.25], [2.5])}
        loss, accuracy, nll = figures.learning_curves(runs).axes
        assert [line.get_ydata().tolist() for line in loss.lines] == [[3, 2], [4, 3]]
        assert loss.lines[0].get_xdata().tolist() == [10, 20]
        assert [line.get_ydata().tolist() for line in accuracy.lines] == [[50], [25]]
        assert [line.get_ydata().tolist() for line in nll.lines] == [[1.5], [2.5]]

    def test_seeds_are_a_mean_in_a_band_of_their_deviation(self):
        seeds = [records([1.0, 5.0]), records([3.0, 5.0]), records([2.0, 5.0, 9.0])]
        figure = figures.learning_curves({"student": seeds})
        (axes,) = figure.axes  # nothing was measured on a validation split
        assert axes.lines[0].get_ydata().tolist() == [2.0, 5.0]  # steps that all seeds have
        low, high = axes.collections[0].get_datalim(axes.transData).intervaly
        assert (low, high) == (pytest.approx(1.0), pytest.approx(5.0))
        edges = {tuple(point) for point in axes.collections[0].get_paths()[0].vertices.tolist()}
        assert {(10.0, 1.0), (10.0, 3.0), (20.0, 5.0)} <= edges

    def test_a_value_that_was_not_finite_leaves_a_gap(self):
        (axes,) = figures.learning_curves({"a": records([2.0, None, 1.0])}).axes
        assert math.isnan(axes.lines[0].get_ydata()[1])

    def test_legend_names_the_runs_only_where_there_are_several(self):
        assert not figures.learning_curves({"a": records([1])}).legends
        (legend,) = figures.learning_curves({"a": records([1]), "_b": records([2])}).legends
        assert [text.get_text() for text in legend.get_texts()] == ["a", "_b"]

    def test_runs_without_records_give_an_empty_panel(self):
        assert len(figures.learning_curves({"a": []}).axes) == 1


class TestSoftTargetGrid:
    names = ("zero", "one", "two")
    image = np.full((1, 4, 4), 200, np.uint8)

    def test_bars_are_the_tempered_softmax(self):
        """softmax([ln 16, ln 4, 0]) is (16, 4, 1) / 21, at T = 2 (4, 2, 1) / 7."""
        logits = [[math.log(16), math.log(4), 0.0]]
        figure = figures.soft_target_grid(self.image, [1], logits, self.names, (1, 2))
        picture, plain, soft = figure.axes
        heights = [[bar.get_height() for bar in axes.patches] for axes in (plain, soft)]
        np.testing.assert_allclose(heights, [[16 / 21, 4 / 21, 1 / 21], [4 / 7, 2 / 7, 1 / 7]])
        assert [colour(bar) for bar in soft.patches] == [SERIES[0], ACCENT, SERIES[0]]
        assert [text.get_text() for text in soft.texts] == ["57%", "29%", "14%"]
        assert picture.get_title() == "one"
        assert [axes.get_title(loc="left") for axes in (plain, soft)] == ["T = 1", "T = 2"]
        (drawn,) = picture.get_images()
        assert isinstance(drawn, matplotlib.image.AxesImage)
        assert drawn.get_array().tolist() == self.image[0].tolist()

    def test_extreme_logits_stay_finite(self):
        figure = figures.soft_target_grid(self.image, [0], [[1e4, 0.0, -1e4]], self.names)
        assert [bar.get_height() for bar in figure.axes[1].patches] == [1.0, 0.0, 0.0]

    def test_of_many_classes_the_likeliest_ten_are_shown_and_the_true_one(self):
        logits = [np.arange(100.0), -np.arange(100.0)]
        names = [f"class {k}" for k in range(100)]
        images = np.zeros((2, 4, 4, 1), np.float32)
        figure = figures.soft_target_grid(images, [98, 50], logits, names, (4,))
        labels = [[t.get_text() for t in figure.axes[j].get_xticklabels()] for j in (1, 3)]
        assert labels[0] == [f"class {k}" for k in range(99, 89, -1)]
        assert labels[1] == [f"class {k}" for k in range(9)] + ["class 50"]

    def test_shapes_that_do_not_belong_together_are_refused(self):
        with pytest.raises(ValueError, match=r"teacher_logits \(1, 2\): expected .* \(1, 3\)"):
            figures.soft_target_grid(self.image, [0], [[1.0, 2.0]], self.names)


class TestReliabilityDiagram:
    bins = {
        "count": [0, 10, 30],
        "confidence": [None, 0.5, 0.9],
        "accuracy": [None, 0.7, 0.8],
    }

    def test_bars_and_error(self):
        """(10 / 40) 0.2 + (30 / 40) 0.1 = 12.5 %."""
        figure = figures.reliability_diagram({"student": self.bins})
        upper, lower = figure.axes
        assert upper.get_title(loc="left") == "student: ECE 12.50 %"
        assert [bar.get_height() for bar in upper.patches] == [0.7, 0.8]  # not the empty bin
        centres = [bar.get_x() + bar.get_width() / 2 for bar in upper.patches]
        assert centres == pytest.approx([0.5, 5 / 6])
        assert [bar.get_height() for bar in lower.patches] == [0, 10, 30]
        assert upper.lines[1].get_xdata().tolist() == [0.5, 0.9]

    def test_one_column_a_network(self):
        figure = figures.reliability_diagram({"student": self.bins, "teacher": self.bins})
        assert len(figure.axes) == 4


class TestConfusionMatrix:
    def test_counts_are_written_and_rows_shaded_by_share(self):
        figure = figures.confusion_matrix([[8, 2], [0, 0]], ["cat", "dog"])
        (axes,) = figure.axes
        written = {text.get_position(): text.get_text() for text in axes.texts}
        assert written == {(0, 0): "8", (1, 0): "2"}
        shade = axes.get_images()[0].get_array()
        np.testing.assert_allclose(shade[..., 3], [[0.8**0.6, 0.2**0.6], [0, 0]])
        assert axes.texts[1].get_color() == INK

    def test_many_classes_get_no_numbers(self):
        figure = figures.confusion_matrix(np.eye(100, dtype=int), list(range(100)))
        assert not figure.axes[0].texts

    def test_wrong_shape_is_refused(self):
        with pytest.raises(ValueError, match=r"matrix \(2, 2\): expected \(3, 3\)"):
            figures.confusion_matrix(np.eye(2), ["a", "b", "c"])


class TestClassAccuracy:
    def test_networks_side_by_side_in_the_order_of_classes(self):
        rows = {"Student": [0.5, None, 0.75], "Teacher": [0.9, 0.8, None]}
        (axes,) = figures.class_accuracy(rows, ["a", "b", "c"]).axes
        np.testing.assert_array_equal(axes.lines[0].get_xdata(), [50, np.nan, 75])
        np.testing.assert_array_equal(axes.lines[1].get_xdata(), [90, 80, np.nan])
        assert [t.get_text() for t in axes.get_yticklabels()] == ["a", "b", "c"]

    def test_of_many_classes_the_worst_of_the_first_network_come_first(self):
        rows = {"Student": [0.9, 0.1, None, 0.5], "Teacher": [0.0, 0.2, 0.0, 0.6]}
        (axes,) = figures.class_accuracy(rows, "abcd", most=2).axes
        assert [t.get_text() for t in axes.get_yticklabels()] == ["b", "d"]
        assert axes.lines[1].get_xdata().tolist() == [20, 60]


class TestErrorAgainstTemperature:
    def test_mean_and_bars_over_seeds_on_a_logarithmic_axis(self):
        errors = {"30 units": {4: [2.0, 4.0], 1: [5.0, 5.0]}, "300 units": {1: [1.0]}}
        figure = figures.error_against_temperature(errors, baselines={"teacher": 0.5})
        (axes,) = figure.axes
        assert axes.get_xscale() == "log"
        first, second = axes.containers
        assert first.lines[0].get_xdata().tolist() == [1, 4]
        assert first.lines[0].get_ydata().tolist() == [5.0, 3.0]
        spread = [segment[:, 1].tolist() for segment in first.lines[2][0].get_segments()]
        np.testing.assert_allclose(spread, [[5, 5], [3 - math.sqrt(2), 3 + math.sqrt(2)]])
        assert second.lines[0].get_ydata().tolist() == [1.0]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "4"]
        assert [text.get_text() for text in axes.texts] == ["teacher"]


DRAW = """
import sys
from distill_jax.reports import figure_style, figures
run = [{"split": "train", "step": s, "loss": 1 / s} for s in (1, 2, 3)]
sys.stdout.write(figures.svg(figures.learning_curves({"a": [run, run[:2]], "b": run})))
"""


class TestFiles:
    def test_svg_is_the_same_in_another_process_and_has_no_date(self):
        one, two = (
            subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
            for _ in range(2)
        )
        assert one.stdout == two.stdout
        assert "<text" in one.stdout and "dc:date" not in one.stdout

    def test_the_settings_of_the_caller_neither_matter_nor_change(self):
        def draw():
            return figures.svg(figures.confusion_matrix([[1, 2], [3, 4]], ["a", "b"]))

        before = draw()
        with matplotlib.rc_context(
            {"font.size": 30, "xtick.direction": "inout", "axes.labelpad": 20}
        ):
            settings = dict(matplotlib.rcParams)
            assert draw() == before
            assert dict(matplotlib.rcParams) == settings

    def test_names_are_text_whatever_they_hold(self):
        names = ["$x^{$", "<script>", "a\x00b", "数"]
        svg = figures.svg(figures.confusion_matrix(np.eye(4), names))
        assert "$x^{$" in svg and "&lt;script&gt;" in svg and "<script" not in svg
        assert "a\N{REPLACEMENT CHARACTER}b" in svg and "数" in svg

    def test_long_names_leave_room_for_the_drawing(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # matplotlib warns when the layout collapses
            svg = figures.svg(figures.confusion_matrix(np.eye(2), ["n" * 500, "b"]))
        assert "n" * 39 + "…" in svg

    @pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
    def test_saved_files_are_the_same_every_time(self, tmp_path, suffix, monkeypatch):
        contents = []
        for second in (1_000_000_000, 1_500_000_000):
            monkeypatch.setattr("time.time", lambda second=second: float(second))
            path = tmp_path / f"{second}.{suffix}"
            figures.save(figures.confusion_matrix([[1, 2], [3, 4]], ["a", "b"]), path)
            contents.append(path.read_bytes())
        assert contents[0] == contents[1]


def test_the_style_file_has_the_palette():
    """Both are given: a file for pyplot, and names for code."""
    with figures.style():
        found = matplotlib.rcParams
        assert f"#{found['text.color'].removeprefix('#')}" == INK
        cycle = found["axes.prop_cycle"].by_key()["color"]
        assert tuple(f"#{colour.removeprefix('#')}" for colour in cycle) == SERIES


@pytest.mark.parametrize("form", ["svg", "pdf"])
def test_a_figure_for_a_paper_has_no_date_and_equal_bytes(form):
    def drawn():
        return figure_style.encoded(figures.learning_curves({"a": records([2, 1])}), form)

    content = drawn()
    assert content == drawn()
    assert b"CreationDate" not in content and b"dc:date" not in content


def test_soft_targets_of_teacher_and_student_are_side_by_side():
    logits = np.array([[4.0, 0.0, 2.0]])
    figure = figures.soft_target_grid(
        np.zeros((1, 4, 4)), [0], logits, ["a", "b", "c"], (2.0,), student_logits=-logits
    )
    _, teacher, student = figure.axes
    titles = [axes.get_title(loc="left") for axes in (teacher, student)]
    assert titles == ["Teacher, T = 2", "Student, T = 2"]
    for axes, sign in ((teacher, 1), (student, -1)):
        expected = np.exp(sign * logits[0] / 2) / np.exp(sign * logits[0] / 2).sum()
        assert [bar.get_height() for bar in axes.patches] == pytest.approx(expected.tolist())
