"""Methods for text: hidden states and attention relations of two decoders.

They add up with the divergences and with each other: `create("soft_target+hidden_states")`. Layers
of each network are counted from 0. Projections are adapters: trained with the student, and left out
of the saved model.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from distill_jax import losses
from distill_jax.errors import UsageError
from distill_jax.methods.base import (
    Arrays,
    Method,
    add_up,
    choice_option,
    integer_option,
    register,
)
from distill_jax.models.language import Decoder, DecoderConfig, DecoderOutput

States = Float[Array, "batch tokens dim"]
Heads = Float[Array, "batch tokens _ _"]
TokenValues = Float[Array, "batch tokens"]

RELATIONS = ("qq", "kk", "vv", "qk")


@dataclasses.dataclass(frozen=True)
class Reading:
    """A decoder and its outputs on a batch of rows [B, T].

    Attributes:
      decoder: with its parameters.
      decoded: hidden states, and the residual stream after each layer.
      positions: int32 [B, T].
      segments: int32 [B, T], 0 for padding.
    """

    decoder: Decoder
    decoded: DecoderOutput
    positions: Int[Array, "batch tokens"]
    segments: Int[Array, "batch tokens"]


class OnStates(Method, abc.ABC):
    """A method of two decoders on the same tokens."""

    only = "text"

    @abc.abstractmethod
    def text_adapters(
        self, student: DecoderConfig, teacher: DecoderConfig, key: jax.Array
    ) -> Arrays:
        """Trainable arrays in addition to the student's, flat; {} for none.

        Raises:
          UsageError: this pair cannot be matched, with the reason.
        """

    @abc.abstractmethod
    def text_values(self, student: Reading, teacher: Reading, adapters: Arrays) -> TokenValues:
        """One value per token, float32, to be averaged over the tokens that are learned."""


def _numbers(method: str, option: str, value: Any) -> tuple[int, ...]:
    """A tuple of integers from 0; UsageError otherwise."""
    given = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if not all(type(number) is int and number >= 0 for number in given):
        raise UsageError(f"method.{option}={value!r}: {method} expects integers >= 0")
    return given


def _check_layer(name: str, option: str, number: int, highest: int, whose: str) -> None:
    if number > highest:
        raise UsageError(
            f"method.{option}={number}: {name} expects at most {highest}, the last of the {whose}"
        )


@dataclasses.dataclass(frozen=True)
class HiddenStates(OnStates):
    """The residual stream after chosen layers (Jiao et al. 2020, TinyBERT, equation 8).

    State 0 is the embedding, state i the stream after i layers, before the final norm. State i of
    the student is compared with state f(i) of the teacher.

    Attributes:
      student_layers: states of the student; () for all.
      teacher_layers: f of each; () for f(i) = i * teacher's layers / student's layers, rounded.
      loss: "mse" of the states, "normalised_mse" of the states scaled to mean square 1, or
        "cosine".
      projection: a linear map of the student's state to the teacher's width, one for each pair
        (TinyBERT has one for all layers): "auto" if the widths differ, or "always".
    """

    student_layers: tuple = ()
    teacher_layers: tuple = ()
    loss: str = "normalised_mse"
    projection: str = "auto"

    def __post_init__(self):
        for option in ("student_layers", "teacher_layers"):
            numbers = _numbers("hidden_states", option, getattr(self, option))
            object.__setattr__(self, option, numbers)
        choice_option("hidden_states", "loss", self.loss, ("mse", "normalised_mse", "cosine"))
        choice_option("hidden_states", "projection", self.projection, ("auto", "always"))
        if self.teacher_layers and len(self.teacher_layers) != len(self.student_layers):
            raise UsageError(
                f"method.teacher_layers={self.teacher_layers}: hidden_states expects as many as "
                f"method.student_layers={self.student_layers}"
            )

    def pairs(self, student: DecoderConfig, teacher: DecoderConfig) -> tuple[tuple[int, int], ...]:
        """(i, f(i)) of the states that are compared; UsageError for a state that does not exist."""
        own = self.student_layers or tuple(range(student.layers + 1))
        # Halves round up, as the docstring suggests; Python's `round` rounds them to even.
        even = tuple(math.floor(i * teacher.layers / student.layers + 0.5) for i in own)
        for number in own:
            _check_layer(
                "hidden_states", "student_layers", number, student.layers, "student's states"
            )
        for number in self.teacher_layers:
            _check_layer(
                "hidden_states", "teacher_layers", number, teacher.layers, "teacher's states"
            )
        return tuple(zip(own, self.teacher_layers or even, strict=True))

    def text_adapters(
        self, student: DecoderConfig, teacher: DecoderConfig, key: jax.Array
    ) -> Arrays:
        pairs = self.pairs(student, teacher)
        if self.projection == "auto" and student.dim == teacher.dim:
            return {}
        shape = (len(pairs), student.dim, teacher.dim)
        return {"projections": jax.random.normal(key, shape) / np.sqrt(student.dim)}

    def text_values(self, student: Reading, teacher: Reading, adapters: Arrays) -> TokenValues:
        def distance(own: States, other: States) -> TokenValues:
            if self.loss == "cosine":
                return losses.hidden_cosine(own, other)
            return losses.hidden_mse(own, other, normalise=self.loss == "normalised_mse")

        pairs = self.pairs(student.decoder.config, teacher.decoder.config)
        distances = []
        for index, (i, j) in enumerate(pairs):
            own = student.decoded.states[i]
            if adapters:
                kernel = adapters["projections"][index].astype(own.dtype)
                own = jnp.matmul(own, kernel, preferred_element_type=jnp.float32)
            distances.append(distance(own, teacher.decoded.states[j]))
        return add_up(distances) / len(pairs)


@dataclasses.dataclass(frozen=True)
class AttentionRelations(OnStates):
    """Attention relations among the tokens in one layer (Wang et al. 2021, MiniLMv2, section 3).

    The queries, keys and values of one layer of each network, with all heads concatenated, are
    split into the same number of relation heads in both, so that neither widths nor numbers of
    heads need to agree. Queries and keys are taken after the rotary embedding, as in attention.
    MiniLM (Wang et al. 2020) is relations=("qk", "vv") with as many relation heads as heads. The
    mask is causal within a document: a family's windows, soft caps and attention scales are left
    out.

    Attributes:
      relations: some of "qq", "kk", "vv" and "qk"; their values are averaged.
      relation_heads: 0 for the greatest common divisor of the numbers of query and key heads of
        both networks.
      student_layer: from 0; negative from the end. MiniLM: the last.
      teacher_layer: likewise. MiniLMv2: the last; for large teachers, one in the upper middle.
    """

    relations: tuple = ("qq", "kk", "vv")
    relation_heads: int = 0
    student_layer: int = -1
    teacher_layer: int = -1

    def __post_init__(self):
        given = self.relations
        relations = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        object.__setattr__(self, "relations", relations)
        if not relations:
            raise UsageError("method.relations=(): attention_relations expects at least one")
        for relation in relations:
            choice_option("attention_relations", "relations", relation, RELATIONS)
        integer_option("attention_relations", "relation_heads", self.relation_heads, 0)
        for option in ("student_layer", "teacher_layer"):
            integer_option("attention_relations", option, getattr(self, option), -(2**31))

    def heads(self, student: DecoderConfig, teacher: DecoderConfig) -> int:
        """The number of relation heads; UsageError if it does not divide, or a layer is missing."""
        for config, whose in ((student, "student"), (teacher, "teacher")):
            number = getattr(self, f"{whose}_layer")
            if not -config.layers <= number < config.layers:
                raise UsageError(
                    f"method.{whose}_layer={number}: the {whose} has {config.layers} layers; "
                    f"expected {-config.layers} to {config.layers - 1}"
                )
        if not self.relation_heads:
            return math.gcd(student.heads, student.kv_heads, teacher.heads, teacher.kv_heads)
        for config, whose in ((student, "student"), (teacher, "teacher")):
            for count in (config.heads, config.kv_heads):
                if count * config.head_dim % self.relation_heads:
                    raise UsageError(
                        f"method.relation_heads={self.relation_heads}: expected a divisor of "
                        f"{count * config.head_dim}, a width of the {whose}'s heads"
                    )
        return self.relation_heads

    def text_adapters(
        self, student: DecoderConfig, teacher: DecoderConfig, key: jax.Array
    ) -> Arrays:
        del key
        self.heads(student, teacher)
        return {}

    def text_values(self, student: Reading, teacher: Reading, adapters: Arrays) -> TokenValues:
        del adapters
        heads = self.heads(student.decoder.config, teacher.decoder.config)
        own = self._vectors(student, self.student_layer, heads)
        other = self._vectors(teacher, self.teacher_layer, heads)
        indices = jnp.arange(student.segments.shape[1])
        same_document = student.segments[:, :, None] == student.segments[:, None, :]
        mask = same_document & (indices[:, None] >= indices)
        values = [
            losses.attention_relation(own[relation], other[relation], mask)
            for relation in self.relations
        ]
        return add_up(values) / len(values)

    @staticmethod
    def _vectors(reading: Reading, layer: int, heads: int) -> dict[str, tuple[Heads, Heads]]:
        """The two sides of every relation, each [B, T, heads, H]."""
        config = reading.decoder.config
        query, key, value = reading.decoder.attention_inputs(
            reading.decoded, layer % config.layers, reading.positions
        )
        shared = jnp.repeat(key, config.heads // config.kv_heads, axis=2)
        sides = {
            "qq": (query, query),
            "kk": (key, key),
            "vv": (value, value),
            "qk": (query, shared),
        }

        def split(side: Heads) -> Heads:
            return side.reshape(*side.shape[:2], heads, -1)

        return {relation: (split(a), split(b)) for relation, (a, b) in sides.items()}


register("hidden_states", HiddenStates)
register("attention_relations", AttentionRelations)
