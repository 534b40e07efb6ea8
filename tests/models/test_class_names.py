"""Class names: compared, mapped, and what is said where they are unknown."""

import pytest

from distill_jax.errors import UsageError
from distill_jax.models.class_names import Match, match

T = "teacher.path='t'"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (("cat", "dog"), ("cat", "dog")),
        (("Maple-Tree", "dog"), ("maple_tree", "dog")),
        (("caf\u00e9",), ("cafe\u0301",)),
    ],
)
def test_names_that_mean_the_same(theirs, ours):
    for how in ("same", "by_name", "by_position"):
        assert match(theirs, ours, how=how, location=T) == Match()


def test_another_order_is_refused_with_both_lists_and_mapped_where_asked():
    with pytest.raises(UsageError) as error:
        match(("cat", "dog", "owl"), ("owl", "cat", "dog"), how="same", location=T)
    line = str(error.value)
    assert line.startswith(T) and "'cat', 'dog', 'owl'" in line and "'owl', 'cat', 'dog'" in line
    assert "by_name" in line
    assert match(("cat", "dog", "owl"), ("owl", "cat", "dog"), how="by_name", location=T) == Match(
        order=(2, 0, 1)
    )
    assert match(("cat", "dog"), ("dog", "cat"), how="by_position", location=T) == Match()


@pytest.mark.parametrize("how", ["same", "by_name"])
def test_other_names_are_refused(how):
    with pytest.raises(UsageError, match="1 names of 2 are in both"):
        match(("cat", "dog"), ("dog", "owl"), how=how, location=T)


def test_a_name_that_two_classes_share_cannot_be_mapped():
    with pytest.raises(UsageError, match="a teacher of these classes"):
        match(("crane", "crane", "owl"), ("owl", "crane", "crane"), how="by_name", location=T)


@pytest.mark.parametrize(
    ("theirs", "ours", "whose"),
    [
        ((), ("cat", "dog"), "the teacher"),
        (("cat", "dog"), (), "the data"),
        ((), (), "the teacher and the data"),
        (("0", "1"), (), "the data"),
    ],
)
def test_unknown_names_are_said_and_cannot_be_mapped(theirs, ours, whose):
    note = match(theirs, ours, how="same", location=T).note
    assert note.startswith(T) and f"the class names of {whose} are unknown" in note
    with pytest.raises(UsageError, match="unknown"):
        match(theirs, ours, how="by_name", location=T)


def test_numbers_in_the_order_of_their_spelling_are_not_plain_numbers():
    spelled = tuple(sorted(map(str, range(11))))  # 0, 1, 10, 2: a folder of numbered classes
    with pytest.raises(UsageError, match="in another order"):
        match((), spelled, how="same", location=T)
    assert match((), spelled, how="by_name", location=T).order[:3] == (0, 1, 10)


def test_long_lists_are_cut():
    names = tuple(f"class {number}" for number in range(1000))
    with pytest.raises(UsageError) as error:
        match(names, names[::-1], how="same", location=T)
    assert len(str(error.value)) < 900 and "1000 in all" in str(error.value)
