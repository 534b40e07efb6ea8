"""A student as its own teacher: the moving average of its parameters answers."""

import dataclasses
from typing import Any

import jax

from distill_jax import models
from distill_jax.models import Outputs, Spec
from distill_jax.teachers.views import View


@dataclasses.dataclass(frozen=True)
class AverageTeacher:
    """The mean teacher (Tarvainen & Valpola 2017): the student's moving average, evaluated.

    Attributes:
      spec: the student's.
      graphdef: its static structure.
    """

    spec: Spec
    graphdef: Any

    own_average = True
    precomputed = False
    weights = (1.0,)

    def params(self, variables: dict[str, models.Flat]) -> models.Flat:
        """The averaged parameters."""
        return variables["params"]

    def outputs(self, variables: dict[str, models.Flat], view: View) -> list[Outputs]:
        """The average's answer to a view.

        Args:
          variables: {"params", "stats"}, as in `TrainState.average`.
          view: the view.
        """
        inputs = models.normalise(view.images, self.spec.mean, self.spec.std)
        found, _ = models.apply(
            self.graphdef, variables["params"], variables["stats"], inputs, train=False
        )
        return [jax.lax.stop_gradient(found)]
