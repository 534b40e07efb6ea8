"""What a student decoder is compared with its teachers by, and the loss of that on packed tokens.

No logits of a whole batch are built: the losses take hidden states and heads (`losses.vocab`). All
sums are over the unmasked tokens of the global batch, so that neither accumulation nor the number
of devices changes them.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from distill_jax import losses, models
from distill_jax.losses.vocab import Readout, VocabDivergence, VocabSettings
from distill_jax.methods import Term
from distill_jax.methods.states import OnStates, Reading
from distill_jax.models.language import DecoderConfig
from distill_jax.teachers import ANSWER_PREFIX, SparseFormat
from distill_jax.training.recipe import Batch, Flat
from distill_jax.training.state import Frozen

Scalar = jax.Array | float


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
        """The decoder with these parameters, and its outputs on a batch."""
        decoder = models.merge(self.graphdef, params)
        positions, segments = batch["positions"], batch["segments"]
        decoded = decoder(batch["tokens"], positions=positions, segments=segments)
        return Reading(decoder, decoded, positions, segments)


def hidden_and_head(reading: Reading) -> tuple[jax.Array, jax.Array]:
    """Hidden states [B * T, D], and the head [D, V], in the compute dtype."""
    hidden = reading.decoded.hidden
    return hidden.reshape(-1, hidden.shape[-1]), reading.decoder.head.astype(hidden.dtype)


def _on_states(term: Term) -> OnStates:
    assert isinstance(term.method, OnStates)
    return term.method


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
class Weights:
    """What the schedules give at a step.

    Attributes:
      temperature: of the divergences.
      soft: of the sum of divergences and terms.
      hard: of the cross-entropy with the targets.
    """

    temperature: Scalar = 1.0
    soft: Scalar = 1.0
    hard: Scalar = 1.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a student is compared with its teachers by.

    Attributes:
      student: the one that is trained.
      teachers: the frozen ones, () for the text alone. With several, the loss uses the weighted
        mean of their distributions.
      weights: of the teachers, one each.
      divergences: at least one where there is a teacher; the metrics are those of the first.
      terms: methods on hidden states, `methods.states.OnStates`, with their weights; of one teacher
        alone.
      vocab_size: how many ids are real.
      mesh: the devices; None for one.
      stored: the format of the stored answers that come with a batch in place of teachers; None
        where none come.
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
        """The only teacher; None without one, and with several, whose mean is no decoder."""
        return self.teachers[0] if len(self.teachers) == 1 else None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `token_sums` measures with adapters, in addition to the loss."""
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
            assert self.teacher is not None
            method = _on_states(term)
            arrays = method.text_adapters(self.student.config, self.teacher.config, own)
            found |= term.named(arrays)
        return found

    def token_sums(
        self,
        params: Flat,
        frozen: Frozen,
        batch: Batch,
        token_weights: jax.Array,
        *,
        adapters: Flat | None = None,
        weights: Weights = Weights(),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss and the metrics of a batch, summed over its tokens with weights.

        Args:
          params: the student's that are trained.
          frozen: the teachers', and the student's that are not trained.
          batch: "tokens", "positions", "segments" and "targets", int32 [B, T], and the stored
            answers, by names that begin with ANSWER_PREFIX.
          token_weights: float32 [B, T].
          adapters: of the terms; None leaves out all but the first divergence.
          weights: what the schedules give.
        """
        student = self.student.read({**frozen.student, **params}, batch)
        shared: dict[str, Any] = {
            "labels": batch["targets"].reshape(-1),
            "weights": token_weights.reshape(-1),
            "settings": VocabSettings(vocab_size=self.vocab_size, mesh=self.mesh),
        }
        if self.stored:
            answers = {
                name: batch[ANSWER_PREFIX + name].reshape(-1, *shape)
                for name, (shape, _) in self.stored.arrays.items()
            }
            hidden, head = hidden_and_head(student)
            return losses.vocab_sparse_kl(
                hidden,
                head,
                **self.stored.loss_arguments(answers),
                temperature=weights.temperature,
                soft_weight=weights.soft * self.divergences[0].weight,
                hard_weight=weights.hard,
                readout=self.student.readout(),
                **shared,
            )
        if not self.teachers:
            loss, metrics = losses.vocab_cross_entropy(
                *hidden_and_head(student), readout=self.student.readout(), **shared
            )
            return weights.hard * loss, metrics
        arrays = jax.lax.stop_gradient(frozen.teachers)
        read = [net.read(own, batch) for net, own in zip(self.teachers, arrays, strict=True)]
        loss, metrics, soft = self._divergences(
            student, read, shared, weights, first_alone=adapters is None
        )
        if adapters is None:
            return loss, metrics
        for term in self.terms:
            values = _on_states(term).text_values(student, read[0], term.own(adapters))
            metrics[term.name] = value = jnp.sum(token_weights * values)
            loss, soft = loss + weights.soft * term.weight * value, soft + term.weight * value
        return loss, {**metrics, "soft_loss": soft}

    def _divergences(
        self,
        student: Reading,
        teachers: list[Reading],
        shared: dict[str, Any],
        weights: Weights,
        *,
        first_alone: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
        """The loss of the divergences, the metrics of the first, and the sum without its weight."""
        hidden, heads = zip(*map(hidden_and_head, teachers), strict=True)
        readouts = [
            net.readout(weight) for net, weight in zip(self.teachers, self.weights, strict=True)
        ]

        def diverge(
            divergence: Divergence, hard_weight: Scalar
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
            return losses.vocab_divergence(
                *hidden_and_head(student),
                hidden,
                heads,
                divergence=divergence.over_vocab,
                temperature=weights.temperature,
                soft_weight=weights.soft * divergence.weight,
                hard_weight=hard_weight,
                student_readout=self.student.readout(),
                teacher_readout=readouts,
                **shared,
            )

        first, *more = self.divergences
        loss, metrics = diverge(first, weights.hard)
        soft = first.weight * metrics["soft_loss"]
        for divergence in () if first_alone else more:
            value, found = diverge(divergence, 0.0)
            loss, soft = loss + value, soft + divergence.weight * found["soft_loss"]
        return loss, metrics, soft
