"""What goes into a loss over a vocabulary: arrays, and what is fixed when it is compiled.

Arrays with one row a token (`Tokens`) are cut into chunks and sharded over the batch axes of a
mesh; heads (`Heads`) are sharded over the vocabulary; the factors are scalars.

In shapes, N is the number of tokens, D a network's width, V its vocabulary.
"""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from distill_jax.errors import UsageError
from distill_jax.losses.vocab.formulas import VocabDivergence

#: Sums over tokens, float32. Of every loss: "hard_loss" (the cross-entropy), "student_entropy", and
#: "accuracy", how often the student's likeliest id is the label. With teachers or a stored answer:
#: "soft_loss" (T^2 D). With teachers: "kl" = KL(P || Q), "teacher_entropy", and "teacher_loss", the
#: teacher's cross-entropy. With teachers, or an answer that covers the rest of the vocabulary:
#: "agreement", how often the likeliest ids of student and teacher are the same. All but "soft_loss"
#: are at T = 1. Without labels those that need labels are 0. If the weights sum to 1, perplexities
#: are exp of the cross-entropies.
Measures = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Readout:
    """How a network's logits come from its hidden states: f(scale * hidden @ head).

    Attributes:
      cap: soft cap, f(z) = cap * tanh(z / cap) (Gemma 2); None for f(z) = z.
      scale: factor before the cap.
      weight: of a teacher in the mean distribution of several; 0 leaves the teacher out.
    """

    cap: float | None = None
    scale: float = 1.0
    weight: float = 1.0

    def logits(
        self, hidden: Float[Array, "tokens dim"], head: Float[Array, "dim vocab"]
    ) -> Float[Array, "tokens vocab"]:
        """Logits in float32, whatever the dtype of the operands."""
        return self.logits_and_slope(hidden, head)[0]

    def logits_and_slope(
        self, hidden: Float[Array, "tokens dim"], head: Float[Array, "dim vocab"]
    ) -> tuple[Float[Array, "tokens vocab"], Float[Array, "*tokens_vocab"]]:
        """Logits, and their slope in hidden @ head: [N, V], or a scalar without a cap."""
        z = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) * self.scale
        if self.cap is None:
            return z, jnp.float32(self.scale)
        squashed = jnp.tanh(z / self.cap)
        return self.cap * squashed, self.scale * (1 - jnp.square(squashed))


@dataclasses.dataclass(frozen=True)
class VocabSettings:
    """How the sums over tokens and vocabulary are computed; the defaults suit one device.

    Attributes:
      vocab_size: how many ids are real. All networks are read up to there, as if the ids with which
        their vocabularies are padded did not exist. None for the smallest of the vocabularies.
      chunk: tokens at a time on a device; None for what `chunk_size` chooses from the shapes.
      accumulate_dtype: of the sum, over chunks, of the gradient of the student's head. "bfloat16"
        halves its memory; each addition then rounds.
      mesh: devices with the axes `data` and `fsdp`, which split the tokens (N is a multiple of
        their product), and `tensor`, which splits the vocabulary. A head may be sharded on both
        sides; the gradient of the student's head comes sharded on both. None leaves the
        partitioning to the compiler.
    """

    vocab_size: int | None = None
    chunk: int | None = None
    accumulate_dtype: str = "float32"
    mesh: Mesh | None = None


class SparseAnswer(NamedTuple):
    """A teacher's stored distribution at each token, of which K ids are named.

    Attributes:
      ids: int32 [N, K]; a negative one names nothing.
      log_probs: float32 [N, K], the log-probability of each at temperature T.
      log_rest: float32 [N], that of all other ids together; None where there are no others.
    """

    ids: Int[Array, "tokens named"]
    log_probs: Float[Array, "tokens named"]
    log_rest: Float[Array, " tokens"] | None


class Tokens(NamedTuple):
    """Arrays with one row a token.

    Attributes:
      hidden: [N, D], the student's hidden states.
      teachers: [N, Di], those of each teacher; () without a teacher.
      answer: a stored answer in the teachers' stead; None without one.
      labels: int [N]; a negative label has no cross-entropy.
      weights: float32 [N], of each token in the sum.
    """

    hidden: Float[Array, "tokens dim"]
    teachers: tuple[Float[Array, "tokens teacher_dim"], ...]
    answer: SparseAnswer | None
    labels: Int[Array, " tokens"]
    weights: Float[Array, " tokens"]


class Heads(NamedTuple):
    """The output projection of each network, [D, V].

    Attributes:
      student: the student's.
      teachers: one a teacher, in the order of `Tokens.teachers`.
    """

    student: Float[Array, "dim vocab"]
    teachers: tuple[Float[Array, "teacher_dim teacher_vocab"], ...] = ()

    @property
    def widest(self) -> int:
        """The largest vocabulary, with its padding."""
        return max(head.shape[1] for head in (self.student, *self.teachers))


class Factors(NamedTuple):
    """Scalars, float32, that may be traced.

    Attributes:
      temperature: T > 0.
      soft_weight: of T^2 D.
      hard_weight: of the cross-entropy.
    """

    temperature: Float[Array, ""]
    soft_weight: Float[Array, ""]
    hard_weight: Float[Array, ""]

    @classmethod
    def of(
        cls,
        temperature: float | Float[Array, ""],
        soft_weight: float | Float[Array, ""],
        hard_weight: float | Float[Array, ""],
    ) -> "Factors":
        """From numbers or arrays; UsageError for a number as temperature that is not positive."""
        if isinstance(temperature, numbers.Real) and not temperature > 0:
            raise UsageError(f"temperature={temperature}: expected a positive number")
        given = (temperature, soft_weight, hard_weight)
        return cls(*(jnp.asarray(factor, jnp.float32) for factor in given))


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """All that is fixed when a loss over a vocabulary is compiled.

    Attributes:
      divergence: from the teachers or the stored answer; None for the cross-entropy alone.
      student: the student's readout.
      teachers: the readout of each teacher; their weights are above 0 and sum to 1.
      vocab_size: how many ids are real.
      untempered: whether the temperature is known to be 1, so that a second softmax is saved.
      settings: chunks, dtype and mesh.
    """

    divergence: VocabDivergence | None
    student: Readout
    teachers: tuple[Readout, ...]
    vocab_size: int
    untempered: bool
    settings: VocabSettings

    @classmethod
    def of(
        cls,
        heads: Heads,
        student: Readout,
        settings: VocabSettings,
        *,
        divergence: VocabDivergence | None = None,
        teachers: tuple[Readout, ...] = (),
        temperature: float | Float[Array, ""] = 1.0,
    ) -> "LossSpec":
        """For these heads; UsageError for a vocabulary that does not fit them."""
        most = min(head.shape[1] for head in (heads.student, *heads.teachers))
        given = settings.vocab_size
        if given is not None and not 0 < given <= most:
            raise UsageError(f"vocab_size={given}: expected a number from 1 to {most}")
        vocab_size = most if given is None else given
        # An array may be traced: its value is not looked at.
        untempered = isinstance(temperature, numbers.Real) and temperature == 1
        return cls(divergence, student, teachers, vocab_size, untempered, settings)


def check_shapes(student: tuple[Array, Array], teachers: Sequence[tuple[Array, Array]] = ()) -> int:
    """The number of tokens; UsageError unless the (hidden states, head) of all networks fit."""
    counts = []
    for name, arrays in (("student", student), *(("teacher", one) for one in teachers)):
        hidden, head = map(jnp.shape, arrays)
        if len(hidden) != 2 or len(head) != 2 or hidden[1] != head[0]:
            raise UsageError(f"{name}_hidden {hidden}, {name}_head {head}: expected [N, D], [D, V]")
        counts.append(hidden[0])
        if counts[-1] != counts[0]:
            raise UsageError(
                f"student_hidden has {counts[0]} tokens, teacher_hidden {counts[-1]}: "
                "expected the same"
            )
    return counts[0]
