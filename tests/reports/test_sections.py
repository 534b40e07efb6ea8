"""Sections of a page: clustering, perplexity by bucket, marked answers, curves on any axis."""

import json
import re

import numpy as np
import pytest
import recorded_runs
from page_parser import Page

from distill_jax.reports import curves, html, language, predictions


def test_classes_that_are_alike_become_neighbours():
    groups = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    similarity = np.where(groups[:, None] == groups[None], 0.3, 0.01)
    order = predictions.clustered(similarity)
    assert sorted(order) == list(range(8))
    assert np.count_nonzero(np.diff(groups[order])) == 2  # each group in one piece
    assert predictions.clustered(np.eye(2)).tolist() == [0, 1]


def test_perplexity_is_of_the_mean_loss_of_a_bucket():
    record = recorded_runs.text_record([" a", " b"])
    record["by_position"] = np.zeros((24, 3))
    record["by_position"][0] = 30, 30 * np.log(7), 30 * np.log(3)
    record["by_position"][3] = 50, 50 * np.log(5), 50 * np.log(2)
    record["by_position"][5] = 19, 19.0, 19.0  # too few
    (_, panel) = dict(language.sections(record))["Position and length"]
    student, teacher = panel.data["charts"][0]["series"]
    assert student["x"]["tokens"] == [0.5, 4]  # 0.5 stands for position 0, which has no logarithm
    np.testing.assert_allclose(student["y"], [7, 5])
    np.testing.assert_allclose(teacher["y"], [3, 2])
    lone = recorded_runs.text_record([" a", " b"], teacher=False)
    (_, panel) = dict(language.sections(lone))["Position and length"]
    assert [series["label"] for series in panel.data["charts"][0]["series"]] == ["student"]


@pytest.mark.parametrize("against", ["teacher", "reference"])
def test_what_differs_in_an_answer_is_marked_and_nothing_is_lost(against):
    sample = {"prompt": "p", "reference": "a <b> c", "student": "a  <i>x</i> c & d"}
    if against == "teacher":
        sample["teacher"] = "a y c & <d>"
    *_, block = language.answers([sample], "test")
    source = html.page("T", [("Answers", [block])])
    page = Page(source)
    assert "i" not in page.tags() and "b" not in page.tags()
    for text in sample.values():
        assert text in page.text
    marked = re.findall("<mark>(.*?)</mark>", block)
    assert any("&lt;i&gt;x&lt;/i&gt;" in text for text in marked)
    assert not any(text.strip() in ("a", "c") for text in marked)


def test_curves_know_every_axis():
    train = [
        {"split": "train", "step": step, "loss": 1.0, "epoch": step / 4, "on_policy": None}
        for step in (10, 20, 30)
    ]
    validation = {"split": "validation", "step": 25, "nll": None}
    speed = [
        {"step": 10, "step_time_s": 0.5, "examples_per_second": 8.0},
        {"step": 30, "step_time_s": 0.25, "examples_per_second": 16.0},
    ]
    panel = curves.panel([*train, validation], speed, batch_size=4)
    assert panel is not None
    charts = {chart["title"]: chart for chart in panel.data["charts"]}
    assert set(charts) == {"Training loss", "Throughput"}  # nothing that has no number
    (loss,) = charts["Training loss"]["series"]
    assert panel.data["xs"][loss["x"]] == {
        "step": [10, 20, 30],
        "epoch": [2.5, 5.0, 7.5],
        "examples": [40, 80, 120],
        "time": pytest.approx([5.0, 7.5, 10.0]),
    }
    assert curves.panel([], [], batch_size=4) is None
    bare = curves.panel(train[:1], [], batch_size=None)
    assert bare is not None and [key for key, _ in bare.data["axes"]] == ["step", "epoch"]


def test_what_was_on_policy_is_told():
    log = [{"on_policy": share} for share in (0.25, 0.75, None)] + [{}]
    assert "in 50.0% of the logged steps" in language.on_policy(log)
    assert language.on_policy([{"on_policy": 0.0}, {}]) == ""


def test_a_run_without_tokens_has_no_such_section():
    record = recorded_runs.text_record([" a"])
    record["rows"] = np.frombuffer(json.dumps([]).encode(), np.uint8)
    record |= {name: np.zeros((24, 3)) for name in ("by_position", "by_length")}
    assert language.sections(record) == []
