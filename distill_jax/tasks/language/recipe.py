"""Steps on text: what two decoders say of packed tokens, and what that costs.

No logits of a whole batch are built: the losses take hidden states and heads (`losses.vocab`). All
sums are over the tokens of the global batch that the mask leaves, so that accumulation and the
number of devices change nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from distill_jax import losses, models
from distill_jax.losses.vocab import Readout, VocabDivergence, VocabSettings
from distill_jax.methods import Term
from distill_jax.methods.states import Reading
from distill_jax.models.language import DecoderConfig
from distill_jax.parallel import batch_sharding, put_rows, replicated
from distill_jax.tasks.language.rollouts import Rollout
from distill_jax.teachers import ANSWER_PREFIX, SparseFormat
from distill_jax.training.recipe import Batch, Flat, Moment, Recipe
from distill_jax.training.state import Frozen, TrainState


@dataclasses.dataclass(frozen=True)
class Network:
    """A decoder without its parameters.

    Attributes:
      config: what it computes.
      graphdef: its static structure.
    """

    config: DecoderConfig
    graphdef: Any

    def readout(self, weight: float = 1.0) -> Readout:
        """How its logits come from hidden states; `weight` in the mean of several teachers."""
        return Readout(self.config.logit_cap, self.config.logit_scale, weight)

    def read(self, params: Flat, batch: Batch) -> Reading:
        """The decoder of these parameters, and what it makes of a batch."""
        decoder = models.merge(self.graphdef, params)
        positions, segments = batch["positions"], batch["segments"]
        decoded = decoder(batch["tokens"], positions=positions, segments=segments)
        return Reading(decoder, decoded, positions, segments)


def states(reading: Reading) -> tuple[jax.Array, jax.Array]:
    """Hidden states [B * T, D], and the head [D, V], in the compute dtype."""
    hidden = reading.decoded.hidden
    return hidden.reshape(-1, hidden.shape[-1]), reading.decoder.head.astype(hidden.dtype)


@dataclasses.dataclass(frozen=True)
class Divergence:
    """A divergence over the vocabulary with its weight.

    Attributes:
      over_vocab: its formula and skew.
      weight: among the terms of a sum; 0 measures the teacher and trains nothing.
    """

    over_vocab: VocabDivergence = VocabDivergence("forward_kl")
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a student is compared with its teachers by.

    Attributes:
      student: the one that is trained.
      teachers: the frozen ones, () for the text alone. Of several the weighted mean of their
        distributions counts.
      weights: of the teachers, one each.
      divergences: at least one where there is a teacher; the measures are those of the first.
      terms: methods on hidden states, `methods.states.OnStates`, with their weights; of one teacher
        alone.
      vocab_size: how many ids are real.
      mesh: the devices; None for one.
      stored: what is kept of the answers that come with a batch, in place of teachers; None where
        none come.
    """

    student: Network
    teachers: tuple[Network, ...]
    weights: tuple[float, ...]
    divergences: tuple[Divergence, ...]
    terms: tuple[Term, ...]
    vocab_size: int
    mesh: Mesh | None = None
    stored: SparseFormat | None = None

    @property
    def teacher(self) -> Network | None:
        """The only teacher; None without one, and of several, whose mean is no decoder."""
        return self.teachers[0] if len(self.teachers) == 1 else None

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of what `summed` measures with adapters, beside the loss."""
        own = ("hard_loss", "student_entropy", "accuracy")
        if self.stored:
            return (*own, "soft_loss", *(("agreement",) if self.stored.kind == "top_k" else ()))
        if not self.teachers:
            return own
        named = (term.name for term in self.terms)
        return (*own, "soft_loss", "teacher_loss", "kl", "teacher_entropy", "agreement", *named)

    def adapters(self, key: jax.Array) -> Flat:
        """The trainable arrays of the terms before the first step.

        Raises:
          UsageError: a term does not fit this pair.
        """
        found: Flat = {}
        for term, own in zip(self.terms, jax.random.split(key, len(self.terms)), strict=True):
            arrays = term.method.text_adapters(self.student.config, self.teacher.config, own)
            found |= term.named(arrays)
        return found

    def summed(
        self,
        params: Flat,
        frozen: Frozen,
        batch: Batch,
        weights: jax.Array,
        *,
        adapters: Flat | None = None,
        temperature: jax.Array | float = 1.0,
        soft_weight: jax.Array | float = 1.0,
        hard_weight: jax.Array | float = 1.0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and the measures of a batch, summed over its tokens with weights.

        Args:
          params: the student's that are trained.
          frozen: the teachers' parameters, and those of the student that are not trained.
          batch: "tokens", "positions", "segments" and "targets", int32 [B, T], and the stored
            answers, by names that begin with ANSWER_PREFIX.
          weights: float32 [B, T].
          adapters: of the terms; None leaves all but the first divergence out.
          temperature: of the divergences.
          soft_weight: of the sum of divergences and terms.
          hard_weight: of the cross-entropy with the targets.
        """
        params = {**frozen.student, **params}
        student = self.student.read(params, batch)
        shared = {
            "labels": batch["targets"].reshape(-1),
            "weights": weights.reshape(-1),
            "settings": VocabSettings(vocab_size=self.vocab_size, mesh=self.mesh),
        }
        if self.stored:
            flat = {
                name: batch[ANSWER_PREFIX + name].reshape(-1, *shape)
                for name, (shape, _) in self.stored.arrays.items()
            }
            return losses.vocab_sparse_kl(
                *states(student),
                **self.stored.loss_arguments(flat),
                temperature=temperature,
                soft_weight=soft_weight * self.divergences[0].weight,
                hard_weight=hard_weight,
                readout=self.student.readout(),
                **shared,
            )
        if not self.teachers:
            loss, measures = losses.vocab_cross_entropy(
                *states(student), readout=self.student.readout(), **shared
            )
            return hard_weight * loss, measures
        arrays = jax.lax.stop_gradient(frozen.teachers)
        read = [net.read(own, batch) for net, own in zip(self.teachers, arrays, strict=True)]
        hidden, heads = zip(*map(states, read), strict=True)

        readouts = [
            net.readout(weight) for net, weight in zip(self.teachers, self.weights, strict=True)
        ]

        def diverge(divergence: Divergence, hard_weight: jax.Array | float):
            return losses.vocab_divergence(
                *states(student),
                hidden,
                heads,
                divergence=divergence.over_vocab,
                temperature=temperature,
                soft_weight=soft_weight * divergence.weight,
                hard_weight=hard_weight,
                student_readout=self.student.readout(),
                teacher_readout=readouts,
                **shared,
            )

        first, *more = self.divergences
        loss, measures = diverge(first, hard_weight)
        if adapters is None:
            return loss, measures
        soft = first.weight * measures["soft_loss"]
        for divergence in more:
            value, found = diverge(divergence, 0.0)
            loss, soft = loss + value, soft + divergence.weight * found["soft_loss"]
        for term in self.terms:
            values = term.method.text_values(student, read[0], term.own(adapters))
            value = jnp.sum(weights * values)
            loss, soft = loss + soft_weight * term.weight * value, soft + term.weight * value
            measures[term.name] = value
        return loss, {**measures, "soft_loss": soft}


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
        return ("loss", *self.comparison.measures, *own)

    def shown(
        self, state: TrainState, frozen: Frozen, resident: Batch, batch: Batch, answers: Any
    ) -> dict[str, Any]:
        """The batch, and the weight of each token in the mean over the whole of it."""
        del resident, answers
        flags = {}
        if self.rollout is not None:
            params = {**frozen.student, **state.params}
            decoder = models.merge(self.comparison.student.graphdef, params)
            # The first of the two keys of a step is the view's, which text has none of.
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
        now: Moment,
        frozen: Frozen,
        trainable: dict[str, Flat],
        kept: tuple[Flat, Flat],
        part: dict[str, Any],
        key: jax.Array,
    ) -> tuple[jax.Array, tuple[tuple[Flat, Flat], dict[str, jax.Array]]]:
        del key  # nothing here is random
        hard_weight, more = self.hard_weight.at(now.progress), {}
        if self.rollout is not None:
            # What the student wrote is no truth for it to learn: the teacher alone judges it.
            more["on_policy"] = part["on_policy"][0]
            hard_weight = hard_weight * (1.0 - more["on_policy"])
        loss, measures = self.comparison.summed(
            trainable["student"],
            frozen,
            part,
            part["weights"],
            adapters=trainable["adapters"],
            temperature=now.temperature,
            soft_weight=self.soft_weight.at(now.progress),
            hard_weight=hard_weight,
        )
        return loss, (kept, {"loss": loss, **measures, **more})


class TextEvaluator:
    """Evaluates on one split of text, again and again during a run.

    Args:
      comparison: the networks.
      frozen: as in `Comparison.summed`, on the devices.
      mesh: the devices.
      batches: gives the split's host batches; rows that fill the last one up have no mask.
    """

    def __init__(
        self,
        comparison: Comparison,
        frozen: Frozen,
        mesh: Mesh,
        batches: Callable[[], Iterable[dict[str, np.ndarray]]],
    ):
        self._frozen = frozen
        self._mesh = mesh
        self._batches = batches

        def sums(params, frozen, batch):
            mask = batch["mask"].astype(jnp.float32)
            _, measures = comparison.summed(params, frozen, batch, mask)
            return {**measures, "tokens": jnp.sum(mask)}

        self._sums = jax.jit(sums, out_shardings=replicated(mesh))

    def __call__(self, params: Flat, stats: Flat) -> dict[str, Any]:
        """Means over all tokens that the mask leaves, in nats a token, and the perplexities."""
        del stats
        totals: dict[str, float] = {}
        for batch in self._batches():
            placed = put_rows(batch, batch_sharding(self._mesh))
            for name, value in jax.device_get(self._sums(params, self._frozen, placed)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return summarise(totals)


def summarise(totals: dict[str, float]) -> dict[str, Any]:
    """The figures of a split from its sums over tokens.

    Returns:
      "count" of tokens and "unit", "nll" and "perplexity", "accuracy", "entropy"; with a teacher
      also "teacher_nll", "teacher_perplexity", "teacher_entropy", "kl" and "agreement".
    """
    count = max(totals["tokens"], 1.0)
    mean = {name: value / count for name, value in totals.items() if name != "tokens"}
    figures = {
        "count": int(totals["tokens"]),
        "unit": "tokens",
        "nll": mean["hard_loss"],
        "perplexity": float(np.exp(mean["hard_loss"])),
        "accuracy": mean["accuracy"],
        "entropy": mean["student_entropy"],
    }
    if "kl" in mean:
        figures |= {
            "teacher_nll": mean["teacher_loss"],
            "teacher_perplexity": float(np.exp(mean["teacher_loss"])),
            "teacher_entropy": mean["teacher_entropy"],
            "kl": mean["kl"],
            "agreement": mean["agreement"],
        }
    return figures
