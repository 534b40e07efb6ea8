"""Every loss on logits' relations, maps and embeddings against its float64 reference.

In value and gradient, for one example and several, for equal and unequal shapes, and where an input
is constant, zero or huge.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from feature_cases import CASES, MAP_CASES, RELATION_CASES
from feature_reference import ATOL, assert_near
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_reference import numeric_gradient


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def pairs(cases, wanted=lambda case, student, teacher: True):
    """Cases with the number of each pair of shapes that is wanted."""
    return pytest.mark.parametrize(
        ("case", "shape"),
        [
            pytest.param(case, number, id=f"{case.name}-{number}")
            for case in cases
            for number, shapes in enumerate(case.shapes)
            if wanted(case, *shapes)
        ],
    )


def check(case, student, teacher, slope=True):
    """Value, the gradient of a weighted sum if `slope`, and none to the teacher."""
    weights = np.arange(1.0, 1 + len(student)) / 2
    values, to_student, to_teacher = case.compiled(student, teacher, weights)
    expected = case.reference(student, teacher)
    assert values.shape == (len(student),) and values.dtype == np.float32
    assert_near(values, expected, case.scale * max(1.0, np.abs(expected).max()))
    assert not np.any(to_teacher)
    assert np.all(np.isfinite(to_student))
    if slope:
        numeric = numeric_gradient(lambda x: weights * case.reference(x, teacher), student, 1e-5)
        assert_near(to_student, numeric, case.scale * max(1.0, 10 * np.abs(numeric).max()))


@pairs(CASES)
def test_value_and_gradient(case, shape):
    check(case, *case.inputs(shape))


@each(CASES)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(seed=st.integers(1, 999), scale=st.floats(0.1, 5))
def test_any_values(case, seed, scale):
    """One shape, which is compiled already."""
    check(case, *case.inputs(seed=seed, scale=scale), slope=False)


@each(CASES)
@pytest.mark.parametrize("size", [0.0, 3.3, 100.0])
class TestConstant:
    """Without a gradient to compare where the student is at a point that has none."""

    def test_student(self, case, size):
        student, teacher = case.inputs()
        check(case, np.full_like(student, np.float32(size)), teacher, slope=False)

    def test_teacher(self, case, size):
        student, teacher = case.inputs()
        check(case, student, np.full_like(teacher, np.float32(size)))

    def test_one_example(self, case, size):
        student, teacher = case.inputs()
        student[1] = teacher[1] = np.float32(size)
        check(case, student, teacher, slope=False)

    def test_batch_of_one(self, case, size):
        student, teacher = (np.full_like(x, np.float32(size)) for x in case.inputs(-1))
        check(case, student, teacher, slope=False)


@each(CASES)
def test_equal_examples(case):
    student, teacher = (np.repeat(x[:1], 4, axis=0) for x in case.inputs())
    check(case, student, teacher, slope=False)


@each(CASES)
def test_two_equal_examples(case):
    """Points that coincide for the teacher, then for the student too, which has no gradient."""
    student, teacher = case.inputs()
    teacher[2] = teacher[0]
    check(case, student, teacher)
    student[2] = student[0]
    check(case, student, teacher, slope=False)


@each(CASES)
def test_huge_values(case):
    """Logits of +-1e4 are certain; maps and embeddings of that size are only large."""
    student, teacher = (1e4 * np.sign(x) for x in case.inputs())
    values, slope, _ = case.compiled(student, teacher)
    assert np.all(np.isfinite(values)) and np.all(np.isfinite(slope))
    if not case.name.startswith("decoupled"):  # whose reference takes the logarithm of 0
        check(case, student, teacher, slope=False)


@pairs(CASES, lambda case, student, teacher: case.zero and student == teacher)
def test_zero_with_zero_gradient_where_student_is_teacher(case, shape):
    student, _ = case.inputs(shape)
    values, slope, _ = case.compiled(student, student)
    np.testing.assert_allclose(values, 0, atol=case.scale * ATOL)
    if case.smooth:
        np.testing.assert_allclose(slope, 0, atol=case.scale * ATOL)


@pairs(RELATION_CASES, lambda case, student, teacher: student[0] == 1)
def test_batch_of_one_has_no_relations(case, shape):
    values, slope, _ = case.compiled(*case.inputs(shape))
    np.testing.assert_allclose(values, 0, atol=ATOL)
    np.testing.assert_allclose(slope, 0, atol=ATOL)


@each([case for case in CASES if case.rows])
def test_examples_of_their_own(case):
    """The value of the first moves with nothing of the second."""
    student, teacher = case.inputs()
    values, slope, _ = case.compiled(student, teacher, np.array([1.0, 0, 0, 0]))
    assert np.any(slope[0]) and not np.any(slope[1:])
    student[1:], teacher[1:] = student[1:] + 1, 2 * teacher[1:]
    changed, _, _ = case.compiled(student, teacher)
    assert changed[0] == values[0]
    assert np.all(changed[1:] != values[1:])


@each([case for case in MAP_CASES + RELATION_CASES if case.name != "correlation_code"])
def test_order_of_examples_is_free(case):
    """But for the loss that compares neighbours in the batch."""
    student, teacher = case.inputs()
    order = np.array([2, 0, 3, 1])
    values, slope, _ = case.compiled(student, teacher)
    shuffled, slope_shuffled, _ = case.compiled(student[order], teacher[order])
    assert_near(shuffled, values[order], max(1.0, values.max()))
    assert_near(slope_shuffled, slope[order], max(1.0, np.abs(slope).max()))


def arithmetic(jaxpr):
    """All operations, those inside other operations included, but for conversions."""
    for equation in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves(equation.params) if hasattr(x, "jaxpr")]
        for closed in inner:
            yield from arithmetic(closed.jaxpr)
        if not inner and equation.primitive.name != "convert_element_type":
            yield equation


@each(CASES)
def test_bfloat16_is_upcast_first(case):
    shapes = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in case.shapes[0])
    traced = jax.make_jaxpr(case.loss)(*shapes)
    assert [aval.dtype for aval in traced.out_avals] == [jnp.float32]
    operations = {
        operation.primitive.name
        for operation in arithmetic(traced.jaxpr)
        if any(x.aval.dtype == jnp.bfloat16 for x in operation.invars)
    }
    assert operations <= {"slice", "stop_gradient", "gather"}, operations
