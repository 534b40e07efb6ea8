"""Deep mutual learning: two networks are trained together, each the teacher of the other."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from distill_jax import losses, models
from distill_jax.errors import UsageError
from distill_jax.methods.base import Arrays, Context, Method, Pair, Values, register
from distill_jax.models import Outputs


@dataclasses.dataclass(frozen=True)
class Mutual(Method):
    """KL(peer ‖ student) for the student; labels and KL(student ‖ peer) for its peer.

    Zhang et al. 2018 (DML), at T = 1; both networks are updated in the same step from the same
    predictions. The peer's parameters are adapters: trained and resumed with the student, left out
    of the saved model. To save the other network, exchange the two.

    Attributes:
      peer: name of the peer's network; "" for the student's.
    """

    needs_teacher = False

    peer: str = ""

    def __post_init__(self):
        if self.peer and self.peer not in models.names():
            raise UsageError(
                f"method.peer={self.peer!r}: mutual expects the name of a model, such as 'resnet20'"
            )

    def _make(
        self, spec: models.Spec, seed: jax.Array | int | None = None
    ) -> tuple[Any, Mapping[str, Any], Mapping[str, Any]]:
        """(graphdef, parameters, statistics) of the peer; shapes alone without a seed."""
        options = spec.options if self.peer in ("", spec.name) else {}
        shape: dict[str, Any] = dict(input_shape=spec.input_shape, num_classes=spec.num_classes)
        name = self.peer or spec.name
        if seed is None:
            return models.split(models.abstract(name, **shape, **options))
        return models.split(models.create(name, **shape, seed=seed, **options))

    def adapters(self, pair: Pair, key: jax.Array) -> Arrays:
        seed = jax.random.key_data(key).ravel()[-1]
        return dict(self._make(pair.student_spec, seed)[1])

    def memory(self, pair: Pair, key: jax.Array) -> Arrays:
        return dict(self._make(pair.student_spec, 0)[2])

    def __call__(
        self, student: Outputs, teacher: Outputs | None, context: Context
    ) -> tuple[Values, Arrays]:
        del teacher
        graphdef, _, _ = self._make(context.spec)
        images = models.normalise(context.images, context.spec.mean, context.spec.std)
        peer, stats = models.apply(
            graphdef, context.adapters, context.memory, images, train=True, key=context.key
        )
        values = losses.forward_kl(student.logits, peer.logits)
        values += losses.forward_kl(peer.logits, student.logits)
        values += losses.cross_entropy(peer.logits, context.targets)
        return values, stats


register("mutual", Mutual)
