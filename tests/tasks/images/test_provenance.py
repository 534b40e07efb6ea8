"""Whether a teacher has seen what its student holds out: told where known, else asked."""

import pytest
from small_runs import TEACHER, changed

from distill_jax import config as configs
from distill_jax import models, tasks
from distill_jax.runs.training import _note_on_teacher


def prepared(teacher, **values):
    config = changed(TEACHER, method__name="soft_target", teacher__path=(str(teacher),), **values)
    return tasks.prepare(configs.resolve(config))


def on_validation(parts):
    return [note for note in parts.notes if "validation examples" in note]


def test_a_teacher_of_the_same_division_has_not_seen_the_validation_part(digits_teacher):
    assert on_validation(prepared(digits_teacher)) == []
    assert on_validation(prepared(digits_teacher, data__validation=0, data__split_seed=9)) == []


@pytest.mark.parametrize("values", [{"data__split_seed": 9}, {"data__validation": 300}])
def test_a_teacher_of_another_division_has_seen_some_of_it(digits_teacher, values):
    theirs, ours = prepared(digits_teacher), prepared(digits_teacher, **values)
    trained_on = set(theirs.order.ids(0, 1297 - 130).tolist())
    everything = set(range(1297))
    held_out = everything - set(ours.order.ids(0, len(everything) - 130).tolist())
    if "data__validation" in values:
        held_out = everything - set(ours.order.ids(0, 997).tolist())
    seen = len(trained_on & held_out)
    (note,) = on_validation(ours)
    assert f"was trained on {seen} of the {len(held_out)} validation examples" in note
    assert on_validation(prepared(digits_teacher, teacher__saw_validation="no", **values)) == []


def test_of_a_foreign_teacher_the_user_is_asked(digits_teacher, tmp_path):
    saved = models.load(digits_teacher)
    models.save(tmp_path / "t", saved.spec, saved.params, saved.stats)
    (note,) = on_validation(prepared(tmp_path / "t"))
    assert "nothing tells whether" in note and "teacher.saw_validation" in note
    (note,) = on_validation(prepared(tmp_path / "t", teacher__saw_validation="yes"))
    assert "was trained on 130 of the 130" in note


@pytest.mark.parametrize(
    ("validation", "test", "remarked"),
    [(1.0, 0.7263, True), (0.73, 0.7263, False), (0.70, 0.7263, False), (0.80, 0.7263, True)],
)
def test_a_teacher_that_knows_the_validation_part_shows_in_its_figures(validation, test, remarked):
    final = {
        "validation": {"teacher_accuracy": validation, "count": 5000},
        "test": {"teacher_accuracy": test, "count": 10000},
    }
    note = _note_on_teacher(final)
    assert bool(note) == remarked
    assert not remarked or (f"{validation:.2%}" in note and "72.63%" in note)
    few = {**final, "validation": {"teacher_accuracy": validation, "count": 10}}
    assert not _note_on_teacher(few)
    assert not _note_on_teacher({"test": final["test"], "validation": None})
