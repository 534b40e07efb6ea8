"""The decoder of all families: from tokens to hidden states, by a scan over its layers.

    model = create(config, seed=0)
    decoded = model(tokens)                         # hidden [B, T, D]
    logits = model.logits(decoded.hidden)           # float32 [B, T, V]: never in training

The parameters of the layers are stacked, and a `lax.scan` runs over the repeats of the pattern of
windows (see `config.layer_runs`): compile time does not grow with depth, and every window is a
constant of the program. Left out on purpose: dropout, and logits in the forward pass, because the
losses take `hidden` and `head` and never materialise [B, T, V].
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.models.language import cache as kv_cache
from distill_jax.models.language.attention import (
    AttentionMask,
    attend,
    check_implementation,
    make_mask,
)
from distill_jax.models.language.block import Block
from distill_jax.models.language.cache import Cache
from distill_jax.models.language.config import (
    DecoderConfig,
    LayerKind,
    LayerRun,
    layer_locations,
    layer_runs,
)
from distill_jax.models.language.layers import INITIAL, Linear, Norm
from distill_jax.models.language.remat import POLICIES
from distill_jax.models.language.rope import Rope, make_rope
from distill_jax.models.language.sharding import DecoderSharding
from distill_jax.models.language.stacked import of_row, to_bits

#: The matrices of a layer, by the part that they are in.
PROJECTIONS = {"attention": ("query", "key", "value", "output"), "mlp": ("gate", "up", "down")}

# The cached keys and values of a run of layers, [n, B, S, K, H] each.
_KeyValues = tuple[Array, Array]
# What the scan over layers carries: the residual stream, and the cache if there is one.
_Carry = tuple[Array, _KeyValues | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecoderOutput:
    """The result of a forward pass over tokens [B, T].

    Attributes:
      hidden: [B, T, D] after the final norm, in the compute dtype.
      states: [L + 1, B, T, D], the residual stream before the final norm: the embedding, then the
        stream after each layer. Under `jit` computed only if it is used.
      cache: the cache with these tokens added; None if none was given.
    """

    hidden: Array
    states: Array
    cache: Cache | None


class ComputeOptions(TypedDict, total=False):
    """Arguments of `Decoder` that say how it computes, which leave its parameters as they are."""

    dtype: DTypeLike
    remat: str
    attention: str
    mesh: Mesh | None


class LayerContext(NamedTuple):
    """What all layers of one kind have in common: their rotary embedding and their mask."""

    rope: Rope | None
    mask: AttentionMask


def document_positions(segments: Array) -> Array:
    """The position of every token within its document: int [B, T] -> int32 [B, T], from 0."""
    index = jnp.arange(segments.shape[1], dtype=jnp.int32)[None]
    first = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(first, index, 0), axis=1)


class Decoder(nnx.Module):
    """A causal language model; see `DecoderConfig` for what it computes.

    Args:
      config: sizes and choices.
      dtype: the compute dtype; norms, softmax and rotary embedding are float32 in any case.
      param_dtype: of the parameters.
      remat: "none", "full" or "dots"; see `remat.POLICIES`.
      attention: "auto", "xla", "cudnn" or "splash"; see `attention.IMPLEMENTATIONS`.
      mesh: over which activations are sharded; None leaves it to the compiler.
      rngs: draws the initial values.
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

        def table(*shape: int) -> nnx.Param[Array]:
            return nnx.Param(INITIAL(rngs.params(), shape, param_dtype))

        learned = config.positions == "learned"
        self.config = config
        self.dtype = jnp.dtype(dtype)
        self.remat = remat
        self.implementation = attention
        self.sharding = None if mesh is None else DecoderSharding(mesh)
        self.embedding = table(config.vocab_size, config.dim)
        self.position_embedding = table(config.max_positions, config.dim) if learned else None
        self.runs = nnx.List(
            Block(config, run, sharding=self.sharding, param_dtype=param_dtype, rngs=rngs)
            for run in layer_runs(config)
        )
        self.final_norm = Norm(config, config.dim, lead=(), param_dtype=param_dtype)
        self.untied_head = None if config.tied else table(config.dim, config.vocab_size)

    @property
    def mesh(self) -> Mesh | None:
        """The mesh over which activations are sharded."""
        return None if self.sharding is None else self.sharding.mesh

    @property
    def head(self) -> Array:
        """The output head, [D, V], in the dtype of the parameters."""
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
          tokens: int32 [B, T], in [0, V); the states of any other value are NaN.
          positions: int32 [B, T], for the position or rotary embedding. By default they count from
            0 in each document, or from the length of the cache.
          segments: int32 [B, T]: a token attends only to tokens of its own segment. 0 is padding;
            its states are of no use. With a cache, a row is tokens and then padding.
          cache: of the tokens before these, with room for T more; each row continues at its length.

        Raises:
          ValueError: shapes that do not fit, or more tokens than the model has positions.
        """
        self._check_shapes(tokens, positions, segments, cache)
        batch, length = tokens.shape
        index = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
        slots = None if cache is None else cache.lengths[:, None] + index
        if positions is None:
            if slots is not None:
                positions = slots
            else:
                positions = index if segments is None else document_positions(segments)
        x = self.embed(tokens, positions)
        contexts = {
            kind: self.layer_context(positions, index, segments, cache, kind)
            for kind in set(self.config.layer_kinds())
        }
        states, keys, values = [x[None]], [], []
        for i, run in enumerate(layer_runs(self.config)):
            kv = None if cache is None else (cache.keys[i], cache.values[i])
            x, kv, after = self._scan(i, run, x, contexts, kv, slots)
            states.append(after)
            if kv is not None:
                keys.append(kv[0])
                values.append(kv[1])
        if cache is not None:
            new = length if segments is None else jnp.sum(segments != 0, axis=1, dtype=jnp.int32)
            cache = Cache(tuple(keys), tuple(values), cache.lengths + new)
        return DecoderOutput(self.final_norm(x), jnp.concatenate(states), cache)

    def attention_inputs(
        self, decoded: DecoderOutput, layer: int, positions: Array
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values of one layer, recomputed from the residual stream before it.

        Args:
          decoded: the result for tokens [B, T].
          layer: its number, from 0.
          positions: int32 [B, T], those of the tokens.

        Returns:
          Queries [B, T, N, H], keys and values [B, T, K, H], after the rotary embedding if the
          model has one.
        """
        kind = self.config.layer_kinds()[layer]
        rope = self._rope(positions, kind)
        return self.block(layer).attention_inputs(decoded.states[layer], rope)

    def block(self, layer: int) -> Block:
        """One layer, by its number from 0, with parameters that are not stacked."""
        run, row = layer_locations(self.config)[layer]
        graphdef, stacked = nnx.split(self.runs[run])
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[row], stacked))

    def _check_shapes(
        self,
        tokens: Array,
        positions: Array | None,
        segments: Array | None,
        cache: Cache | None,
    ) -> None:
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

    def embed(self, tokens: Array, positions: Array) -> Array:
        """The residual stream before the first layer, [B, T, D], of tokens and positions [B, T]."""

        def rows(table: Array, index: Array) -> Array:
            # An index out of range must not silently read the nearest row.
            return table.at[index].get(mode="fill", fill_value=jnp.nan).astype(self.dtype)

        table = self.embedding[...]
        if self.sharding is None:
            x = rows(table, tokens)
        else:
            x = self.sharding.embed("embedding", table.astype(self.dtype), tokens)
        x = x * jnp.asarray(self.config.embedding_scale, self.dtype)
        if self.position_embedding is not None:
            x = x + rows(self.position_embedding[...], positions)
        return x if self.sharding is None else self.sharding.stream(x)

    def _rope(self, positions: Array, kind: LayerKind) -> Rope | None:
        config = self.config
        if config.positions != "rope" or kind.no_rope:
            return None
        theta, scaling = config.rope_theta, config.rope_scaling
        if kind.sliding and config.rope_local_theta is not None:
            theta, scaling = config.rope_local_theta, None
        return make_rope(positions, config.rotary_dim or config.head_dim, theta, scaling)

    def layer_context(
        self,
        positions: Array,
        index: Array,
        segments: Array | None,
        cache: Cache | None,
        kind: LayerKind,
    ) -> LayerContext:
        """What all layers of a kind read; `index` is the place of each token in its row, [B, T]."""
        rotation = self._rope(positions, kind)
        mask = make_mask(
            self.config,
            sliding=kind.sliding,
            implementation=self.implementation,
            mesh=self.mesh,
            dtype=self.dtype,
            index=index,
            segments=segments,
            cache=cache,
        )
        return LayerContext(rotation, mask)

    def _scan(
        self,
        index: int,
        run: LayerRun,
        x: Array,
        contexts: Mapping[LayerKind, LayerContext],
        kv: _KeyValues | None,
        slots: Array | None,
    ) -> tuple[Array, _KeyValues | None, Array]:
        """Scans over the repeats of a run of layers.

        Args:
          index: the number of the run.
          run: its pattern.
          x: the residual stream before the run, [B, T, D].
          contexts: of each kind of layers.
          kv: the run's cached keys and values; None without a cache.
          slots: int32 [B, T], where the tokens go in the cache.

        Returns:
          The stream and the cached keys and values after the run, and the stream after each of its
          n layers, [n, B, T, D].
        """
        graphdef, stacked = nnx.split(self.runs[index])
        size, sharding = len(run.pattern), self.sharding
        widens = parallel.platform(self.mesh) == "cpu"
        if size > 1:  # an axis of one would cost XLA's CPU compiler a copy of all kernels
            stacked = jax.tree.map(lambda a: a.reshape(run.repeats, size, *a.shape[1:]), stacked)

        def layer(carry: _Carry, row: Array, state: nnx.State, kind: LayerKind) -> _Carry:
            if sharding is not None:
                state = sharding.gather_layer(f"runs/{index}", state, self.dtype)
            block = nnx.merge(graphdef, state)
            x, kv = self.through(block, carry, row, contexts[kind], slots)
            return x if sharding is None else sharding.stream(x), kv

        if self.remat != "none" or (sharding is not None and sharding.gathers):
            layer = jax.checkpoint(
                layer,
                policy=POLICIES[self.remat],
                # A loop separates the forward from the backward pass, so that XLA cannot merge
                # what is computed again; without one, JAX has to prevent it.
                prevent_cse=run.repeats == 1,
                static_argnums=(3,),
            )

        def repeat(carry: _Carry, inputs: tuple[Array, Any]) -> tuple[_Carry, Array]:
            number, state = inputs
            state = of_row(state) if widens else state
            after = []
            for i, kind in enumerate(run.pattern):
                of_layer = jax.tree.map(lambda a, i=i: a[i], state) if size > 1 else state
                carry = layer(carry, number * size + i, of_layer, kind)
                after.append(carry[0])
            return carry, jnp.stack(after)

        numbers = jnp.arange(run.repeats, dtype=jnp.int32)
        rows = to_bits(stacked) if widens else stacked
        (x, kv), after = jax.lax.scan(repeat, (x, kv), (numbers, rows))
        return x, kv, after.reshape(run.layers, *x.shape)

    def through(
        self,
        block: Block,
        carry: _Carry,
        row: Array,
        context: LayerContext,
        slots: Array | None,
    ) -> _Carry:
        """One layer; `row` is its row in the cached keys and values of its run."""
        x, kv = carry
        query, key, value = block.attention_inputs(x, context.rope)
        if self.sharding is not None:
            query, key, value = map(self.sharding.heads, (query, key, value))
        if kv is not None and slots is not None:
            keys = kv_cache.update(kv[0], row, key, slots)
            values = kv_cache.update(kv[1], row, value, slots)
            kv = keys, values
            key, value = keys[row].astype(x.dtype), values[row].astype(x.dtype)
        scale, cap = self.config.scale, self.config.attention_cap
        return block.finish(x, attend(query, key, value, context.mask, scale=scale, cap=cap)), kv


def projections(model: Decoder) -> Iterator[tuple[str, Linear]]:
    """The matrices of all layers with their flat names, "runs/0/attention/query" and so on."""
    for run, block in enumerate(model.runs):
        for part, names in PROJECTIONS.items():
            for name in names:
                linear = getattr(getattr(block, part), name)
                if linear is not None:
                    yield f"runs/{run}/{part}/{name}", linear
