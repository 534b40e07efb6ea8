"""`DecoderConfig`: the sizes of a decoder and the choices that families differ in, as plain values.

One `Decoder` computes all families. What is peculiar to a family stands in the tables of
`huggingface`, which translate to and from the files of transformers. Left out on purpose: dropout,
RoPE scalings other than "linear" and "llama3", and mixtures of experts that have dense layers among
their own or shared experts, which every token passes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from distill_jax.errors import UsageError

#: The accepted values of the fields that are strings.
CHOICES = {
    "activation": ("silu", "gelu_tanh", "gelu"),
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "post", "sandwich"),
    "positions": ("rope", "learned"),
    "qk_norm": ("none", "head", "all"),
}
_SIZES = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim")
_POSITIVE = ("norm_eps", "rope_theta", "embedding_scale", "logit_scale")
_OPTIONAL = ("rope_local_theta", "attention_scale", "attention_cap", "logit_cap")


def _positive_int(value: object) -> bool:
    return type(value) is int and value > 0


def _positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > 0


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of rotary embeddings are stretched for longer contexts.

    Attributes:
      kind: "linear" divides all of them by `factor`; "llama3" divides those whose wavelength is
        above original_max_positions / low_frequency_factor, leaves those below
        original_max_positions / high_frequency_factor, and blends between.
      factor: at least 1.
      low_frequency_factor: of "llama3" alone, like the two fields below.
      high_frequency_factor: above `low_frequency_factor`.
      original_max_positions: the context length before the stretch, in tokens.
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        def require(condition: bool, field: str, expected: str) -> None:
            if not condition:
                value = getattr(self, field)
                raise UsageError(f"rope_scaling.{field}={value!r}: expected {expected}")

        require(self.kind in ("linear", "llama3"), "kind", "'linear' or 'llama3'")
        require(_positive(self.factor) and self.factor >= 1, "factor", "a number of at least 1")
        low, high = self.low_frequency_factor, self.high_frequency_factor
        require(_positive(low), "low_frequency_factor", "a positive number")
        above = f"a number above low_frequency_factor={low!r}"
        require(_positive(high) and high > low, "high_frequency_factor", above)
        original = self.original_max_positions
        require(_positive_int(original), "original_max_positions", "a positive int")
        for field in ("factor", "low_frequency_factor", "high_frequency_factor"):
            object.__setattr__(self, field, float(getattr(self, field)))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A causal language model: one kind of block, repeated. The defaults are Llama's.

    Attributes:
      vocab_size: V.
      dim: D, the width of the residual stream.
      layers: L.
      heads: of queries, a multiple of `kv_heads`.
      kv_heads: of keys and values.
      head_dim: of one head; even where positions are "rope".
      mlp_dim: the inner width of the MLP of two or three matrices; with experts, of one expert.
      activation: "silu", "gelu_tanh" (the tanh approximation) or "gelu" (exact).
      gated: whether the MLP is down(activation(gate(x)) * up(x)), or down(activation(up(x))).
      experts: how many experts a layer has, of which a router chooses the top k for each token
        (Shazeer et al., 2017); 0 for one dense MLP.
      experts_per_token: k; 0 without experts.
      gates_normalised: whether the k gates are divided by their sum (`norm_topk_prob` of
        Qwen3-MoE; always in Mixtral); True without experts.
      norm: "rms" (Zhang and Sennrich, 2019) or "layer" (Ba et al., 2016, with a bias).
      norm_eps: added to the mean square or the variance.
      norm_offset: whether a norm multiplies by 1 + its scale, which then starts at 0 (Gemma).
      norm_placement: "pre" normalises the inputs of attention and MLP; "post" their outputs,
        before they are added to the residual stream (OLMo 2); "sandwich" both (Gemma 2 and 3).
      positions: "rope" rotates queries and keys (Su et al., 2021); "learned" adds a position
        embedding to that of the token.
      rope_theta: the base of the rotary wavelengths.
      rope_scaling: see `RopeScaling`; None for none.
      rope_local_theta: the base in layers with a sliding window, which are then not scaled
        (Gemma 3); None for the base and scaling of all layers.
      qkv_bias: whether the projections to queries, keys and values have biases.
      output_bias: whether the output projection of the attention has one.
      mlp_bias: whether the matrices of the MLP have biases.
      qk_norm: "head" normalises queries and keys within each head (Qwen3, Gemma 3), "all" over all
        heads together (OLMo 2), before the rotary embedding; "none" does not.
      attention_scale: the factor of the attention logits; None for head_dim ** -0.5.
      attention_cap: c of the soft cap c * tanh(logits / c) of the attention logits (Gemma 2); None
        for no cap.
      logit_cap: likewise of the model's logits.
      window: the size of the sliding window in tokens, the query's own included; None for no window
        in any layer.
      sliding: which layers have the window, a pattern repeated along the depth: (True, False) is
        every other layer, beginning with the first. Kept in its shortest form; (False,) without a
        window.
      embedding_scale: the factor of the embeddings (Gemma: dim ** 0.5).
      tied: whether the head is the transposed embedding.
      logit_scale: the factor of the logits, before their cap.
      max_positions: the longest context. A limit where positions are "learned"; otherwise only
        recorded.
      family: the `model_type` of transformers as which `save` writes this model.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = "silu"
    gated: bool = True
    experts: int = 0
    experts_per_token: int = 0
    gates_normalised: bool = True
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_offset: bool = False
    norm_placement: str = "pre"
    positions: str = "rope"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = "none"
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    sliding: tuple[bool, ...] = (False,)
    embedding_scale: float = 1.0
    tied: bool = False
    logit_scale: float = 1.0
    max_positions: int = 2048
    family: str = "llama"

    def __post_init__(self) -> None:
        for field in (*_SIZES, "max_positions"):
            self._require(_positive_int(getattr(self, field)), field, "a positive int")
        for field, known in CHOICES.items():
            self._require(getattr(self, field) in known, field, " or ".join(map(repr, known)))
        for field in _POSITIVE + _OPTIONAL:
            value, optional = getattr(self, field), field in _OPTIONAL
            expected = "a positive number or None" if optional else "a positive number"
            self._require(_positive(value) or (optional and value is None), field, expected)
            if value is not None:
                # Transformers 5 refuses an int where it expects a float.
                object.__setattr__(self, field, float(value))
        for each in dataclasses.fields(self):
            if each.type is bool:
                value = getattr(self, each.name)
                self._require(type(value) is bool, each.name, "True or False")
        divisor = f"a divisor of heads={self.heads}"
        self._require(self.heads % self.kv_heads == 0, "kv_heads", divisor)
        even = self.positions != "rope" or self.head_dim % 2 == 0
        self._require(even, "head_dim", "an even int, for rotary positions")
        if self.rope_scaling is not None:
            is_scaling = isinstance(self.rope_scaling, RopeScaling)
            self._require(is_scaling, "rope_scaling", "a RopeScaling or None")
        self._check_experts()
        self._check_window()

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise UsageError(f"decoder.{field}={getattr(self, field)!r}: expected {expected}")

    def _check_experts(self) -> None:
        experts, chosen = self.experts, self.experts_per_token
        self._require(experts == 0 or _positive_int(experts), "experts", "a positive int, or 0")
        if experts == 0:
            self._require(chosen == 0, "experts_per_token", "0 where experts=0")
            self._require(self.gates_normalised, "gates_normalised", "True where experts=0")
            return
        some = _positive_int(chosen) and chosen <= experts
        self._require(some, "experts_per_token", f"an int from 1 to experts={experts}")
        self._require(self.gated, "gated", "True, for experts have three matrices")
        self._require(not self.mlp_bias, "mlp_bias", "False, for experts have no bias")

    def _check_window(self) -> None:
        window, sliding = self.window, self.sliding
        self._require(
            window is None or _positive_int(window), "window", "a positive int, in tokens, or None"
        )
        flags = isinstance(sliding, tuple) and sliding and all(type(s) is bool for s in sliding)
        self._require(bool(flags), "sliding", "a tuple of bools, such as (True, False)")
        self._require(
            any(sliding) == (window is not None),
            "sliding",
            f"a layer with a window if and only if there is one, window={window!r}",
        )
        layers = self.sliding_layers()
        object.__setattr__(self, "sliding", layers[: period(layers)])

    @property
    def scale(self) -> float:
        """The factor of the attention logits."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    def sliding_layers(self) -> tuple[bool, ...]:
        """Whether each of the layers has the sliding window."""
        return tuple(self.sliding[i % len(self.sliding)] for i in range(self.layers))

    def replace(self, **fields: Any) -> "DecoderConfig":
        """A copy with other values.

        Raises:
          UsageError: a value is out of range.
        """
        return dataclasses.replace(self, **fields)


def period(pattern: Sequence[bool]) -> int:
    """The smallest p with pattern[i] == pattern[i % p] for all i."""
    return next(
        p
        for p in range(1, len(pattern) + 1)
        if all(value == pattern[i % p] for i, value in enumerate(pattern))
    )


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """Consecutive layers that one `lax.scan` computes: a pattern of windows, repeated.

    The flat names of their parameters begin with "runs/0", "runs/1" and so on.

    Attributes:
      pattern: whether each layer of one repeat has the sliding window.
      repeats: how often the pattern is repeated.
    """

    pattern: tuple[bool, ...]
    repeats: int

    @property
    def layers(self) -> int:
        """The number of layers in the run."""
        return len(self.pattern) * self.repeats


def layer_runs(config: DecoderConfig) -> tuple[LayerRun, ...]:
    """The layers as few runs of repeated patterns, in order.

    Gemma 3's 26 layers (five with a window, one without) are 4 repeats of six, then 2 of one;
    Qwen2's windows from layer 28 on make two runs.
    """
    found: list[LayerRun] = []
    rest = config.sliding_layers()
    while rest:
        size = period(rest)
        if 2 * size > len(rest) and size > 1:
            # No pattern is repeated: take the first layers, as far as they are alike.
            alike = next((i for i, value in enumerate(rest) if value != rest[0]), len(rest))
            found.append(LayerRun(rest[:1], alike))
        else:
            found.append(LayerRun(rest[:size], len(rest) // size))
        rest = rest[found[-1].layers :]
    return tuple(found)


def layer_locations(config: DecoderConfig) -> tuple[tuple[int, int], ...]:
    """For each layer, the (run, row in the run's stacked parameters) that hold its parameters."""
    return tuple((i, row) for i, run in enumerate(layer_runs(config)) for row in range(run.layers))
