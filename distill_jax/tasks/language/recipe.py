"""A step on text: the batch, which the student itself may have written, and the loss on it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax import models
from distill_jax.tasks.language.comparison import Comparison, Weights
from distill_jax.tasks.language.rollouts import Rollout
from distill_jax.training.recipe import Batch, Flat, ForwardState, Moment, Recipe
from distill_jax.training.state import Frozen, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """What a compiled step on text is made from.

    Attributes:
      comparison: the networks and what they are compared by.
      rollout: when the student writes the batch; None for never.
    """

    comparison: Comparison
    rollout: Rollout | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        own = () if self.rollout is None else ("on_policy",)
        return ("loss", *self.comparison.metrics, *own)

    def inputs(
        self,
        state: TrainState,
        frozen: Frozen,
        resident: Batch,
        batch: Batch,
        teacher_outputs: Any,
    ) -> dict[str, Any]:
        """The batch, and the weight of each token in the mean over the whole of it."""
        del resident, teacher_outputs
        flags = {}
        if self.rollout is not None:
            params = {**frozen.student, **state.params}
            decoder = models.merge(self.comparison.student.graphdef, params)
            # The first of the two keys of a step is that of views, which text does not have.
            key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.step))[0]
            batch, own = self.rollout(decoder, batch, key)
            flags["on_policy"] = jnp.full(batch["mask"].shape[0], own, jnp.float32)
        mask = batch["mask"].astype(jnp.float32)
        # The step takes the mean over the parts of a batch, each of which sums its own tokens.
        weights = mask * (self.accumulate / jnp.maximum(jnp.sum(mask), 1.0))
        return {
            **{name: batch[name] for name in batch if name != "mask"},
            "weights": weights,
            **flags,
        }

    def loss(
        self,
        moment: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        forward: ForwardState,
        inputs: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[ForwardState, dict[str, jax.Array]]]:
        del key  # nothing here is random
        hard_weight, more = self.hard_weight.at(moment.progress), {}
        if self.rollout is not None:
            # What the student wrote has no labels: the teacher alone judges it.
            more["on_policy"] = inputs["on_policy"][0]
            hard_weight = hard_weight * (1.0 - more["on_policy"])
        loss, metrics = self.comparison.token_sums(
            trainable["student"],
            frozen,
            inputs,
            inputs["weights"],
            adapters=trainable["adapters"],
            weights=Weights(
                temperature=moment.temperature,
                soft=self.soft_weight.at(moment.progress),
                hard=hard_weight,
            ),
        )
        return loss, (forward, {"loss": loss, **metrics, **more})
