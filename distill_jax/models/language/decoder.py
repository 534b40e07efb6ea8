"""The decoder of all families: blocks in a scan, from tokens to hidden states.

    model = create(config, seed=0)
    decoded = model(tokens)                         # hidden [B, T, D]
    logits = model.logits(decoded.hidden)           # float32 [B, T, V]: never in training

The parameters of the layers are stacked, and a `lax.scan` runs over the repeats of the pattern of
windows, so that compile time does not grow with depth and every window is known to the compiler.
Left out on purpose: dropout, and logits in the forward pass (the losses take `hidden` and `head`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh, Sharding
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.models.functional import split
from distill_jax.models.language.attention import (
    attend,
    check_implementation,
    look,
    write,
)
from distill_jax.models.language.block import Block
from distill_jax.models.language.cache import Cache
from distill_jax.models.language.config import DecoderConfig, Run, places, runs
from distill_jax.models.language.layers import INITIAL, Linear, Norm, frequencies, rotation
from distill_jax.models.language.layout import Layout
from distill_jax.models.language.remat import POLICIES

#: The matrices of a layer, by the part that they are in.
PROJECTIONS = {"attention": ("query", "key", "value", "output"), "mlp": ("gate", "up", "down")}
#: (flat name of a parameter, its shape) -> how it is laid out over devices; None for the default.
ShardingFn = Callable[[str, tuple[int, ...]], Sharding | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """What a decoder makes of tokens [B, T].

    Attributes:
      hidden: [B, T, D] after the last norm, in the compute dtype.
      states: [L + 1, B, T, D], the residual stream: the embedding, then after each layer, before
        the last norm. Under `jit` computed only where it is used.
      cache: the cache after these tokens; None without one.
    """

    hidden: Array
    states: Array
    cache: Cache | None


def document_positions(segments: Array) -> Array:
    """The place of every token within its document: int [B, T] -> int32 [B, T], from 0."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


class Decoder(nnx.Module):
    """A causal language model; see `DecoderConfig` for what it computes.

    Args:
      config: what it is.
      dtype: in which it computes; norms, softmax and rotations are float32 whatever it is.
      param_dtype: of the parameters.
      remat: "none", "full" or "dots"; see `remat.POLICIES`.
      attention: "auto", "xla", "cudnn" or "splash"; see `attention.IMPLEMENTATIONS`.
      mesh: over which activations are laid out; None leaves it to the compiler.
      rngs: of the initial values.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        attention: str = "auto",
        mesh: Mesh | None = None,
        rngs: nnx.Rngs,
    ):
        if remat not in POLICIES:
            raise ValueError(f"remat={remat!r}: expected one of {', '.join(POLICIES)}")
        check_implementation(attention, dtype)

        def table(*shape: int) -> nnx.Param:
            return nnx.Param(INITIAL(rngs.params(), shape, param_dtype))

        learned = config.positions == "learned"
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        self.implementation = attention
        self.layout = None if mesh is None else Layout(mesh)
        self.embedding = table(config.vocab_size, config.dim)
        self.position_embedding = table(config.max_positions, config.dim) if learned else None
        self.runs = nnx.List(
            Block(config, run.layers, layout=self.layout, param_dtype=param_dtype, rngs=rngs)
            for run in runs(config)
        )
        self.final_norm = Norm(config, config.dim, lead=(), param_dtype=param_dtype)
        self.untied_head = None if config.tied else table(config.dim, config.vocab_size)

    @property
    def head(self) -> Array:
        """[D, V], in the dtype of the parameters."""
        return self.embedding[...].T if self.untied_head is None else self.untied_head[...]

    def logits(self, hidden: Array) -> Array:
        """Float32 [..., V] of hidden states [..., D], scaled and capped as the config says."""
        head = self.head.astype(hidden.dtype)
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        logits = logits * self.config.logit_scale
        cap = self.config.logit_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def __call__(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
        cache: Cache | None = None,
    ) -> DecoderOutput:
        """Hidden states of tokens.

        Args:
          tokens: int32 [B, T], in [0, V); the states of others are NaN.
          positions: int32 [B, T], places for the position embedding. By default they count from 0
            in each document, or from the length of the cache.
          segments: int32 [B, T]: a token attends only to tokens of its own segment. 0 is padding;
            its states are of no use. With a cache, a row is tokens and then padding.
          cache: of the tokens before these, with room for T more; each row goes on where it ended.

        Raises:
          ValueError: shapes that do not fit, or more tokens than the model has positions.
        """
        batch, length = tokens.shape
        self._check(tokens, positions, segments, cache)
        index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        slots = None if cache is None else cache.lengths[:, None] + index
        if positions is None and cache is None:
            positions = index if segments is None else document_positions(segments)
        elif positions is None:
            positions = slots
        x = self._embed(tokens, positions)
        mesh = self.layout and self.layout.mesh
        asked = (self.config, self.implementation, mesh, self.dtype)
        context = {
            local: (
                self._turns(positions, local),
                look(*asked, index, segments, cache, local=local),
            )
            for local in set(self.config.sliding_layers())
        }
        states, keys, values = [x[None]], [], []
        for i, run in enumerate(runs(self.config)):
            cached = None if cache is None else (cache.keys[i], cache.values[i])
            x, cached, after = self._scan(i, run, x, context, cached, slots)
            states.append(after)
            if cached is not None:
                keys.append(cached[0])
                values.append(cached[1])
        if cache is not None:
            new = length if segments is None else jnp.sum(segments != 0, axis=1, dtype=jnp.int32)
            cache = Cache(tuple(keys), tuple(values), cache.lengths + new)
        return DecoderOutput(self.final_norm(x), jnp.concatenate(states), cache)

    def attention_inputs(
        self, decoded: DecoderOutput, layer: int, positions: Array
    ) -> tuple[Array, ...]:
        """What the attention of one layer mixes, from the stream that enters it.

        Args:
          decoded: of tokens [B, T].
          layer: its number, from 0.
          positions: int32 [B, T], those of the tokens.

        Returns:
          Queries [B, T, N, H], keys and values [B, T, K, H], rotated where the model does that.
        """
        run, row = places(self.config)[layer]
        graphdef, stacked = nnx.split(self.runs[run])
        block = nnx.merge(graphdef, jax.tree.map(lambda a: a[row], stacked))
        local = bool(self.config.sliding_layers()[layer])
        return block.start(decoded.states[layer], self._turns(positions, local))

    def _check(self, tokens, positions, segments, cache) -> None:
        for name, value in (("positions", positions), ("segments", segments)):
            if value is not None and value.shape != tokens.shape:
                raise ValueError(
                    f"{name} {value.shape}: expected the shape of tokens {tokens.shape}"
                )
        batch, length = tokens.shape
        limit = self.config.max_positions if self.config.positions == "learned" else length
        if length > limit:
            raise ValueError(f"{length} tokens: the model has max_positions={limit}")
        if cache is not None and (cache.lengths.shape != (batch,) or length > cache.capacity):
            raise ValueError(
                f"tokens {tokens.shape}: the cache is for {cache.lengths.shape[0]} texts "
                f"of at most {cache.capacity} tokens"
            )

    def _embed(self, tokens: Array, positions: Array) -> Array:
        def rows(table: Array, index: Array) -> Array:
            # A wrong index must not quietly take the nearest row.
            return table.at[index].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)

        table = self.embedding[...]
        if self.layout is None:
            x = rows(table, tokens)
        else:
            x = self.layout.rows("embedding", table.astype(self.dtype), tokens)
        x = x * jnp.asarray(self.config.embedding_scale, self.dtype)
        if self.position_embedding is not None:
            x = x + rows(self.position_embedding[...], positions)
        return x if self.layout is None else self.layout.stream(x)

    def _turns(self, positions: Array, local: bool) -> tuple[Array, Array] | None:
        config = self.config
        if config.positions != "rope":
            return None
        theta, scaling = config.rope_theta, config.rope_scaling
        if local and config.rope_local_theta is not None:
            theta, scaling = config.rope_local_theta, None
        return rotation(positions, frequencies(config.head_dim, theta, scaling))

    def _scan(self, index: int, run: Run, x, context, cached, slots):
        """A run of layers: the stream and the cache after it, and the stream after each layer."""
        graphdef, stacked = nnx.split(self.runs[index])
        size, layout = len(run.pattern), self.layout
        stacked = jax.tree.map(lambda a: a.reshape(run.repeats, size, *a.shape[1:]), stacked)

        def layer(x, cached, number, state, local: bool):
            turns, seen = context[local]
            if layout is not None:
                state = layout.weights(f"runs/{index}", state, self.dtype)
            part = nnx.merge(graphdef, state)
            query, key, value = part.start(x, turns)
            if layout is not None:
                query, key, value = map(layout.heads, (query, key, value))
            if cached is not None:
                pairs = zip(cached, (key, value), strict=True)
                cached = tuple(write(held, number, new, slots) for held, new in pairs)
                key, value = (held[number].astype(x.dtype) for held in cached)
            scale, cap = self.config.scale, self.config.attention_cap
            mixed = attend(query, key, value, seen, scale=scale, cap=cap)
            x = part.finish(x, mixed)
            return x if layout is None else layout.stream(x), cached

        if self.remat != "none" or (layout is not None and layout.in_shards):
            # Within a loop the two passes are apart, and XLA cannot merge what is computed again.
            layer = jax.checkpoint(
                layer,
                policy=POLICIES[self.remat],
                prevent_cse=run.repeats == 1,
                static_argnums=(4,),
            )

        def repeat(carry, inputs):
            x, cached = carry
            number, state = inputs
            after = []
            for place, local in enumerate(run.pattern):
                own = jax.tree.map(lambda a, place=place: a[place], state)
                x, cached = layer(x, cached, number * size + place, own, local)
                after.append(x)
            return (x, cached), jnp.stack(after)

        numbers = jnp.arange(run.repeats, dtype=jnp.int32)
        (x, cached), after = jax.lax.scan(repeat, (x, cached), (numbers, stacked))
        return x, cached, after.reshape(run.layers, *x.shape)


def create(
    config: DecoderConfig, *, seed: int = 0, sharding_fn: ShardingFn | None = None, **options: Any
) -> Decoder:
    """A decoder with random parameters: weights N(0, 0.02^2), norms 1, biases 0 (as GPT-2).

    Args:
      config: what it is.
      seed: of the parameters.
      sharding_fn: the sharding of each parameter; they are drawn in the memory of the host.
      **options: dtype, param_dtype, remat, attention and mesh of `Decoder`.
    """

    def make() -> Decoder:
        rngs = nnx.Rngs(params=jax.random.key(seed, impl="threefry2x32"))
        return Decoder(config, rngs=rngs, **options)

    if sharding_fn is None:
        return make()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = split(make())[1]
    for name, value in params.items():
        params[name] = parallel.put(value, sharding_fn(name, value.shape))
    return from_params(config, params, **options)


def abstract(config: DecoderConfig, **options: Any) -> Decoder:
    """The same decoder with shapes in place of arrays: quick, and no memory."""
    return nnx.eval_shape(lambda: create(config, **options))


def projections(model: Decoder) -> Iterator[tuple[str, Linear]]:
    """The matrices of all layers with their flat names, "runs/0/attention/query" and so on."""
    for run, block in enumerate(model.runs):
        for part, names in PROJECTIONS.items():
            for name in names:
                linear = getattr(getattr(block, part), name)
                if linear is not None:
                    yield f"runs/{run}/{part}/{name}", linear


def from_params(config: DecoderConfig, params: Mapping[str, Array], **options: Any) -> Decoder:
    """A decoder of given parameters.

    Args:
      config: what it is.
      params: flat dictionary, as from `models.split`; kernels of layers may be those of `int8`.
      **options: dtype, remat, attention and mesh of `Decoder`.
    """
    model = abstract(config, **options)
    for name, linear in projections(model):
        if f"{name}/kernel_scale" in params:
            linear.kernel_scale = nnx.data(nnx.Param(params[f"{name}/kernel_scale"]))
    graphdef, state = nnx.split(model)
    named = [(path, params["/".join(map(str, path))]) for path, _ in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(named))


def from_layers(
    model: Decoder, layers: Sequence[int], *, key: str = "student.layers", **options: Any
) -> Decoder:
    """A smaller decoder from some layers of another, with its embedding, head and last norm.

    Args:
      model: the one to take from; it is not changed, and shares no array that training donates.
      layers: their numbers from 0, in the order in which the new decoder has them.
      key: what an error calls them.
      **options: dtype, remat, attention and mesh of `Decoder`; by default the model's.

    Raises:
      UsageError: no layers, or a number that the model does not have.
    """
    config = model.config
    chosen = list(layers)
    if not chosen or not all(type(i) is int and 0 <= i < config.layers for i in chosen):
        raise UsageError(
            f"{key}={chosen!r}: expected numbers of layers, from 0 to {config.layers - 1}"
        )
    sliding = tuple(config.sliding_layers()[i] for i in chosen)
    window = config.window if any(sliding) else None
    smaller = config.replace(layers=len(chosen), sliding=sliding, window=window)
    _, params, _ = split(model)
    taken = {name: jnp.copy(v) for name, v in params.items() if not name.startswith("runs/")}
    # Every run has the parameters of one and the same block.
    names = [name.removeprefix("runs/0/") for name in params if name.startswith("runs/0/")]
    old, new = places(config), places(smaller)
    for run in range(len(runs(smaller))):
        sources = [old[chosen[i]] for i, (own, _) in enumerate(new) if own == run]
        for name in names:
            rows = [params[f"runs/{source}/{name}"][row] for source, row in sources]
            taken[f"runs/{run}/{name}"] = jnp.stack(rows)
    inherited = {
        "dtype": model.dtype,
        "remat": model.remat,
        "attention": model.implementation,
        "mesh": model.layout and model.layout.mesh,
    }
    return from_params(smaller, taken, **inherited | options)
