"""`DecoderConfig`: the sizes of a decoder and the choices that families differ in, as plain values.

One `Decoder` computes all families. What is peculiar to a family stands in the tables of
`huggingface`, which translate to and from the files of transformers. Left out on purpose: dropout,
RoPE scalings that grow with the text ("dynamic"), and mixtures of experts that have shared experts,
which every token passes.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from distill_jax.errors import UsageError
from distill_jax.models.language.rope_scaling import RopeScaling, positive, positive_int

#: The accepted values of the fields that are strings.
CHOICES = {
    "activation": ("silu", "gelu_tanh", "gelu"),
    "norm": ("rms", "layer"),
    "norm_placement": ("pre", "post", "sandwich"),
    "positions": ("rope", "learned"),
    "qk_norm": ("none", "head", "all"),
}
_SIZES = ("vocab_size", "dim", "layers", "heads", "kv_heads", "head_dim", "mlp_dim")
_POSITIVE = ("norm_eps", "rope_theta", "embedding_scale", "residual_scale", "logit_scale")
_OPTIONAL = ("rope_local_theta", "attention_scale", "attention_cap", "logit_cap")


# Larger models would take longer to describe than to train: a file that names them is damaged.
MOST_LAYERS = 4096
MOST_EXPERTS = 2**20  # of all layers together
_MOST = dict.fromkeys((*_SIZES, "max_positions"), 2**31 - 1) | {"layers": MOST_LAYERS}


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
      dense: which layers of a mixture have one MLP in place of experts, a pattern as `sliding`.
      dense_mlp_dim: the inner width of that MLP; 0 where no layer has it.
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
      rotary_dim: how many numbers of a head are rotated, the first ones; None for all.
      rope_interleaved: whether pairs are neighbours (2 i, 2 i + 1), as in GLM, or halves of a head.
      no_rope: which layers do not rotate, a pattern as `sliding` (SmolLM3).
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
      residual_scale: the factor of what attention and MLP add to the residual stream (Granite).
      tied: whether the head is the transposed embedding.
      logit_scale: the factor of the logits, before their cap.
      max_positions: the longest context: a limit of the positions where they are "learned", and
        always of a prompt with its response.
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
    rotary_dim: int | None = None
    rope_interleaved: bool = False
    no_rope: tuple[bool, ...] = (False,)
    residual_scale: float = 1.0
    dense: tuple[bool, ...] = (False,)
    dense_mlp_dim: int = 0

    def __post_init__(self) -> None:
        for field in (*_SIZES, "max_positions"):
            self._require(positive_int(getattr(self, field)), field, "a positive int")
        for field, most in _MOST.items():
            self._require(getattr(self, field) <= most, field, f"at most {most}")
        for field, known in CHOICES.items():
            self._require(getattr(self, field) in known, field, " or ".join(map(repr, known)))
        for field in _POSITIVE + _OPTIONAL:
            value, optional = getattr(self, field), field in _OPTIONAL
            expected = "a positive number or None" if optional else "a positive number"
            self._require(positive(value) or (optional and value is None), field, expected)
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
        self._check_rope()
        if self.rope_scaling is not None:
            is_scaling = isinstance(self.rope_scaling, RopeScaling)
            self._require(is_scaling, "rope_scaling", "a RopeScaling or None")
        self._check_experts()
        self._check_window()

    def _require(self, condition: bool, field: str, expected: str) -> None:
        if not condition:
            raise UsageError(f"decoder.{field}={getattr(self, field)!r}: expected {expected}")

    def _check_rope(self) -> None:
        dim = self.rotary_dim
        part = dim is None or (positive_int(dim) and dim % 2 == 0 and dim <= self.head_dim)
        self._require(part, "rotary_dim", f"an even int up to head_dim={self.head_dim}, or None")
        if dim == self.head_dim:
            object.__setattr__(self, "rotary_dim", None)
        self._require(
            _are_flags(self.no_rope), "no_rope", "a tuple of bools, such as (True, False)"
        )
        layers = _repeated(self.no_rope, self.layers)
        object.__setattr__(self, "no_rope", layers[: period(layers)])
        scaling, pairs = self.rope_scaling, (self.rotary_dim or self.head_dim) // 2
        if isinstance(scaling, RopeScaling) and scaling.kind == "longrope":
            for field in ("short_factors", "long_factors"):
                if len(getattr(scaling, field)) != pairs:
                    raise UsageError(
                        f"rope_scaling.{field}: has {len(getattr(scaling, field))} numbers; "
                        f"expected {pairs}, one a pair of a head"
                    )

    def _check_experts(self) -> None:
        experts, chosen = self.experts, self.experts_per_token
        self._require(experts == 0 or positive_int(experts), "experts", "a positive int, or 0")
        self._require(_are_flags(self.dense), "dense", "a tuple of bools, such as (True, False)")
        layers = _repeated(self.dense, self.layers)
        object.__setattr__(self, "dense", layers[: period(layers)])
        if experts == 0:
            self._require(not any(layers), "dense", "(False,) where experts=0")
            self._require(self.dense_mlp_dim == 0, "dense_mlp_dim", "0 where experts=0")
            self._require(chosen == 0, "experts_per_token", "0 where experts=0")
            self._require(self.gates_normalised, "gates_normalised", "True where experts=0")
            return
        most = MOST_EXPERTS // self.layers
        self._require(experts <= most, "experts", f"at most {most} in each of {self.layers} layers")
        some = positive_int(chosen) and chosen <= experts
        self._require(some, "experts_per_token", f"an int from 1 to experts={experts}")
        self._require(self.gated, "gated", "True, for experts have three matrices")
        self._require(not self.mlp_bias, "mlp_bias", "False, for experts have no bias")
        self._require(not all(layers), "dense", "a layer with experts, of which there are some")
        width = self.dense_mlp_dim
        fits = positive_int(width) if any(layers) else width == 0
        self._require(fits, "dense_mlp_dim", "a positive int if some layer is dense, or 0 if none")

    def _check_window(self) -> None:
        window, sliding = self.window, self.sliding
        self._require(
            window is None or positive_int(window), "window", "a positive int, in tokens, or None"
        )
        self._require(_are_flags(sliding), "sliding", "a tuple of bools, such as (True, False)")
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
        return _repeated(self.sliding, self.layers)

    def layer_kinds(self) -> tuple["LayerKind", ...]:
        """What each of the layers has of the options that layers differ in."""
        patterns = (self.sliding, self.no_rope, self.dense)
        return tuple(map(LayerKind, *(_repeated(each, self.layers) for each in patterns)))

    def definition(self) -> dict[str, Any]:
        """The fields as a dictionary, for a fingerprint.

        Fields that came later are left out at their defaults, so that the fingerprint of a model
        does not change with a version of this program.
        """
        fields = _without_defaults(dataclasses.asdict(self), self, _LATER)
        if self.rope_scaling is not None:
            scaling = fields["rope_scaling"]
            fields["rope_scaling"] = _without_defaults(scaling, self.rope_scaling, _LATER_SCALING)
        return fields

    def replace(self, **fields: Any) -> "DecoderConfig":
        """A copy with other values.

        Raises:
          UsageError: a value is out of range.
        """
        return dataclasses.replace(self, **fields)


class LayerKind(NamedTuple):
    """What layers of one model differ in.

    Attributes:
      sliding: whether the layer has the sliding window.
      no_rope: whether it does not rotate queries and keys.
      dense: whether it has one MLP where the model has experts.
    """

    sliding: bool
    no_rope: bool = False
    dense: bool = False


_LATER = (
    *("rotary_dim", "rope_interleaved", "no_rope", "residual_scale"),
    *("dense", "dense_mlp_dim"),
)
_LATER_SCALING = (
    *("beta_fast", "beta_slow", "truncate", "attention_factor"),
    *("short_factors", "long_factors"),
)


def _without_defaults(
    fields: dict[str, Any], owner: DecoderConfig | RopeScaling, later: tuple[str, ...]
) -> dict[str, Any]:
    defaults = {field.name: field.default for field in dataclasses.fields(owner)}
    return {
        name: value
        for name, value in fields.items()
        if name not in later or getattr(owner, name) != defaults[name]
    }


def _are_flags(pattern: object) -> bool:
    return isinstance(pattern, tuple) and bool(pattern) and all(type(s) is bool for s in pattern)


def _repeated(pattern: tuple[bool, ...], layers: int) -> tuple[bool, ...]:
    return tuple(pattern[i % len(pattern)] for i in range(layers))


def period(pattern: Sequence[Any]) -> int:
    """The smallest p with pattern[i] == pattern[i % p] for all i."""
    return next(
        p
        for p in range(1, len(pattern) + 1)
        if all(value == pattern[i % p] for i, value in enumerate(pattern))
    )


@dataclasses.dataclass(frozen=True)
class LayerRun:
    """Consecutive layers that one `lax.scan` computes: a pattern of kinds of layers, repeated.

    All of them have the same parameters: experts, or one MLP. Their flat names begin with "runs/0",
    "runs/1" and so on.

    Attributes:
      pattern: the kind of each layer of one repeat.
      repeats: how often the pattern is repeated.
    """

    pattern: tuple[LayerKind, ...]
    repeats: int

    @property
    def layers(self) -> int:
        """The number of layers in the run."""
        return len(self.pattern) * self.repeats

    @property
    def dense(self) -> bool:
        """Whether its layers have one MLP where the model has experts."""
        return self.pattern[0].dense


def layer_runs(config: DecoderConfig) -> tuple[LayerRun, ...]:
    """The layers as few runs of repeated patterns, in order.

    Gemma 3's 26 layers (five with a window, one without) are 4 repeats of six, then 2 of one;
    Qwen2's windows from layer 28 on make two runs. Where experts and dense layers alternate, each
    layer is a run, so that compile time grows with depth.
    """
    spans = itertools.groupby(config.layer_kinds(), key=lambda kind: kind.dense)
    return tuple(run for _, span in spans for run in _repeats(tuple(span)))


def _repeats(rest: tuple[LayerKind, ...]) -> list[LayerRun]:
    found: list[LayerRun] = []
    while rest:
        size = period(rest)
        if 2 * size > len(rest) and size > 1:
            # No pattern is repeated: take the first layers, as far as they are alike.
            alike = next((i for i, value in enumerate(rest) if value != rest[0]), len(rest))
            found.append(LayerRun(rest[:1], alike))
        else:
            found.append(LayerRun(rest[:size], len(rest) // size))
        rest = rest[found[-1].layers :]
    return found


def layer_locations(config: DecoderConfig) -> tuple[tuple[int, int], ...]:
    """For each layer, the (run, row in the run's stacked parameters) that hold its parameters."""
    return tuple((i, row) for i, run in enumerate(layer_runs(config)) for row in range(run.layers))
