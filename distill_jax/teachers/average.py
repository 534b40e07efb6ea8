"""A student as its own teacher: the moving average of its parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jax import lax

from distill_jax import models
from distill_jax.models import Outputs, Spec
from distill_jax.teachers.online import Variables
from distill_jax.teachers.views import View


@dataclasses.dataclass(frozen=True)
class AverageTeacher:
    """The mean teacher (Tarvainen & Valpola 2017): the student's moving average.

    Attributes:
      spec: the student's.
      graphdef: its static structure.
    """

    spec: Spec
    graphdef: Any

    own_average = True
    precomputed = False
    weights = (1.0,)

    def params(self, variables: Sequence[Variables]) -> models.Flat:
        """The averaged parameters."""
        return variables[0][0]

    def outputs(self, variables: Sequence[Variables], view: View) -> list[Outputs]:
        """The outputs of the averaged student for a view.

        Args:
          variables: one pair, the averaged parameters and statistics.
          view: the view.
        """
        inputs = models.normalise(view.images, self.spec.mean, self.spec.std)
        ((params, stats),) = variables
        outputs, _ = models.apply(self.graphdef, params, stats, inputs, train=False)
        return [lax.stop_gradient(outputs)]
