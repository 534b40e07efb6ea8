"""A decoder one layer at a time, and the second moments of what its matrices multiply.

For quantization from calibration data: sum over tokens of x x^T, of the inputs x of every matrix of
a layer (`decoder.PROJECTIONS`), those of an expert over the tokens that the router sends to it.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from distill_jax.models.language.block import Block
from distill_jax.models.language.config import LayerKind
from distill_jax.models.language.decoder import PROJECTIONS, Decoder
from distill_jax.models.language.experts import Experts
from distill_jax.models.language.layers import ACTIVATIONS, Linear


@dataclasses.dataclass(frozen=True)
class Stream:
    """The residual stream of some rows between two layers.

    Attributes:
      x: [B, T, D].
      positions: int32 [B, T].
      segments: int32 [B, T]; 0 is padding.
    """

    x: Array
    positions: Array
    segments: Array


class _Watched:
    """A matrix that adds the second moment of what it multiplies to `found`.

    Args:
      linear: the matrix.
      name: of its kernel, "attention/query/kernel" and so on.
      weights: of the tokens, [B * T].
      found: gets the moment by the name.
    """

    def __init__(self, linear: Linear, name: str, weights: Array, found: dict[str, Array]):
        self._linear, self._name, self._weights, self._found = linear, name, weights, found

    def __call__(self, x: Array) -> Array:
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        self._found[self._name] = _moment(rows, self._weights)
        return self._linear(x)


def _watch(block: Block, weights: Array, found: dict[str, Array]) -> None:
    """Lets the matrices of a layer add their second moments to `found` when it is called."""
    for part, names in PROJECTIONS.items():
        module = getattr(block, part)
        if isinstance(module, Experts):
            module.mix = _watch_experts(module.mix, weights, found)
            continue
        for name in names:
            if (linear := getattr(module, name)) is not None:
                watched = _Watched(linear, f"{part}/{name}/kernel", weights, found)
                setattr(module, name, watched)


def _watch_experts(
    mix: functools.partial[Array], weights: Array, found: dict[str, Array]
) -> functools.partial[Array]:
    """`Experts.mix` that adds the moments of each expert, over the tokens that the router sends it.

    The router's choice does not depend on the inputs that the experts before it have rounded: these
    are of the same layer, and are computed here without the gates.
    """
    top_k, activation = mix.keywords["top_k"], ACTIVATIONS[mix.keywords["activation"]]

    def watched(
        x: Array, logits: Array, kernels: Mapping[str, Array], **activations: str | None
    ) -> Array:
        rows = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        scores = logits.reshape(-1, logits.shape[-1])
        chosen = jax.lax.top_k(scores, top_k)[1]
        of_expert = jnp.sum(jax.nn.one_hot(chosen, scores.shape[-1]), axis=-2).T * weights

        def moments(item: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            own, gate, up = item
            inner = activation(rows @ gate) * (rows @ up)
            return _moment(rows, own), _moment(inner, own)

        wide = (kernels[f"{name}/kernel"].astype(jnp.float32) for name in ("gate", "up"))
        outer, inner = jax.lax.map(moments, (of_expert, *wide))
        found.update({"mlp/gate/kernel": outer, "mlp/up/kernel": outer, "mlp/down/kernel": inner})
        return mix(x, logits, kernels, **activations)

    return functools.partial(watched)


def _moment(x: Array, weights: Array) -> Array:
    """sum over t of weights_t x_t x_t^T: float32 [T, I] and [T] -> [I, I]."""
    return jnp.matmul(x.T * weights, x, precision=jax.lax.Precision.HIGHEST)


class Layers:
    """The layers of a decoder as functions of their parameters, by names as "mlp/up/kernel".

    Each function is compiled once for all layers of a kind.

    Args:
      decoder: with float kernels, without adapters.
    """

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._kinds = decoder.config.layer_kinds()
        self._graphdef = nnx.split(decoder.block(0))[0]
        self._after = jax.jit(self._compute_after, static_argnums=0)
        self._moments = jax.jit(self._compute_moments, static_argnums=0)

    def __len__(self) -> int:
        return len(self._kinds)

    def params(self, layer: int) -> dict[str, Array]:
        """The parameters of a layer as the decoder has them, by name."""
        state = nnx.to_flat_state(nnx.split(self._decoder.block(layer))[1])
        return {"/".join(map(str, path)): value.get_value() for path, value in state}

    def begin(self, tokens: Array, positions: Array, segments: Array) -> Stream:
        """The stream before the first layer, of tokens [B, T]."""
        return Stream(self._decoder.embed(tokens, positions), positions, segments)

    def after(self, layer: int, params: Mapping[str, Array], stream: Stream) -> Stream:
        """The stream after a layer with these parameters."""
        x = self._after(self._kinds[layer], dict(params), *dataclasses.astuple(stream))
        return dataclasses.replace(stream, x=x)

    def moments(self, layer: int, params: Mapping[str, Array], stream: Stream) -> dict[str, Array]:
        """sum of x x^T over the tokens of a stream, without padding, for each matrix of a layer.

        Returns:
          float32 [inputs, inputs], or [experts, inputs, inputs], by the name of the kernel.
        """
        return self._moments(self._kinds[layer], dict(params), *dataclasses.astuple(stream))

    def _block(self, params: Mapping[str, Array]) -> Block:
        state = nnx.from_flat_state([(tuple(name.split("/")), v) for name, v in params.items()])
        return nnx.merge(self._graphdef, state)

    def _through(self, kind: LayerKind, block: Block, stream: Stream) -> Array:
        index = jnp.broadcast_to(jnp.arange(stream.x.shape[1]), stream.positions.shape)
        decoder = self._decoder
        context = decoder.layer_context(stream.positions, index, stream.segments, None, kind)
        return decoder.through(block, (stream.x, None), jnp.int32(0), context, None)[0]

    def _compute_after(self, kind: LayerKind, params: dict[str, Array], *stream: Array) -> Array:
        return self._through(kind, self._block(params), Stream(*stream))

    def _compute_moments(
        self, kind: LayerKind, params: dict[str, Array], *stream: Array
    ) -> dict[str, Array]:
        block, found = self._block(params), dict[str, Array]()
        real = (Stream(*stream).segments != 0).astype(jnp.float32).reshape(-1)
        _watch(block, real, found)
        self._through(kind, block, Stream(*stream))
        return found
