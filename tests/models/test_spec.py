"""What describes a network in addition to its weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax import models
from distill_jax.errors import UsageError

FIELDS = {
    "name": "mlp",
    "options": {"widths": (8, 4), "dropout": 0.1},
    "input_shape": (28, 28, 3),
    "num_classes": 10,
    "mean": (0.1, 0.2, 1 / 3),
    "std": (0.5, 0.25, 0.1),
}


def test_json_round_trip_is_exact():
    spec = models.Spec(**FIELDS)
    again = models.Spec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.mean == FIELDS["mean"] and again.options["widths"] == (8, 4)


def test_lists_and_numpy_numbers_make_the_same_spec():
    spec = models.Spec(
        **{
            **FIELDS,
            "options": {"dropout": 0.1, "widths": [8, 4]},
            "input_shape": [28, 28, 3],
            "mean": [np.float64(0.1), 0.2, 1 / 3],
        }
    )
    assert spec == models.Spec(**FIELDS)
    assert json.dumps(spec.to_json()) == json.dumps(models.Spec(**FIELDS).to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 3),
        ("options", [1]),
        ("input_shape", (28, 28)),
        ("input_shape", (28, 28, 3.0)),
        ("input_shape", (28, 0, 3)),
        ("num_classes", 0),
        ("num_classes", True),
        ("mean", (0.1,)),
        ("mean", "abc"),
        ("mean", (0.1, 0.2, float("nan"))),
        ("std", (0.5, 0.25, 0.0)),
        ("std", (0.5, 0.25, True)),
        ("std", None),
    ],
)
def test_a_field_of_another_kind_is_named(field, value):
    with pytest.raises(UsageError, match=f"spec.{field}=.*: expected "):
        models.Spec(**{**FIELDS, field: value})


@pytest.mark.parametrize("fields", [None, [], {}, {**FIELDS, "more": 1}])
def test_other_fields_are_refused(fields):
    with pytest.raises(UsageError, match="spec: expected the fields name, options, input_shape"):
        models.Spec.from_json(fields)


def test_normalise_is_channelwise_and_float32():
    images = jnp.asarray([[[[0.0, 0.5, 1.0]]]], jnp.float16)
    result = models.normalise(images, (0.5, 0.5, 0.5), (0.5, 0.25, 0.1))
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result[0, 0, 0], [-1, 0, 5], rtol=1e-6)
