"""Making decoders: of random parameters, of given ones, of shapes alone, or of another's layers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.models.functional import split
from distill_jax.models.language.config import DecoderConfig, layer_locations, layer_runs
from distill_jax.models.language.decoder import ComputeOptions, Decoder, projections

#: (flat name of a parameter, its shape) -> its sharding; None for JAX's default device.
ShardingFn = Callable[[str, tuple[int, ...]], Sharding | None]


def create(
    config: DecoderConfig,
    *,
    seed: int = 0,
    sharding_fn: ShardingFn | None = None,
    param_dtype: DTypeLike = jnp.float32,
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """A decoder with random parameters: weights N(0, 0.02^2), norms 1, biases 0 (as GPT-2).

    Args:
      config: sizes and choices.
      seed: of the parameters.
      sharding_fn: the sharding of each parameter; all are drawn in host memory and then copied to
        the devices. By default they are drawn on JAX's default device.
      param_dtype: of the parameters.
      **options: dtype, remat, attention and mesh of `Decoder`.
    """

    def make() -> Decoder:
        rngs = nnx.Rngs(params=jax.random.key(seed, impl="threefry2x32"))
        return Decoder(config, param_dtype=param_dtype, rngs=rngs, **options)

    if sharding_fn is None:
        return make()
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        params = split(make())[1]
    default = SingleDeviceSharding(jax.local_devices()[0])
    for name, value in params.items():
        params[name] = parallel.put(value, sharding_fn(name, value.shape) or default)
    return from_params(config, params, **options)


def abstract(
    config: DecoderConfig,
    *,
    param_dtype: DTypeLike = jnp.float32,
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """`create` with `jax.ShapeDtypeStruct`s in place of arrays, which takes no memory."""
    return nnx.eval_shape(lambda: create(config, param_dtype=param_dtype, **options))


def from_params(
    config: DecoderConfig,
    params: Mapping[str, Array],
    *,
    activations: Mapping[str, Any] | None = None,
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """A decoder with the given parameters.

    Args:
      config: sizes and choices.
      params: flat dictionary, as from `models.split`; kernels of the layers may be quantized, with
        their scales (see `quantized`).
      activations: how the inputs of quantized kernels are quantized, by the kernels' flat names.
      **options: dtype, remat, attention and mesh of `Decoder`.
    """
    model = abstract(config, **options)
    for name, linear in projections(model):
        if f"{name}/kernel_scale" in params:
            linear.kernel_scale = nnx.data(nnx.Param(params[f"{name}/kernel_scale"]))
        linear.activations = (activations or {}).get(f"{name}/kernel")
    graphdef, state = nnx.split(model)
    named = [(path, params["/".join(map(str, path))]) for path, _ in nnx.to_flat_state(state)]
    return nnx.merge(graphdef, nnx.from_flat_state(named))


def from_layers(
    model: Decoder,
    layers: Sequence[int],
    *,
    key: str = "student.layers",
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """A smaller decoder of some layers of another, with its embedding, head and final norm.

    Args:
      model: the decoder to copy from. It is not changed, and the new one shares no array with it,
        so that training may donate its buffers.
      layers: their numbers from 0, in the order in which the new decoder has them.
      key: the config key that errors name.
      **options: dtype, remat, attention and mesh of `Decoder`; by default the model's.

    Raises:
      UsageError: no layers, a number that the model does not have, none of the layers with experts
        of a model that has some, or a quantized model, whose layers would be trained.
    """
    config = model.config
    if any(linear.kernel_scale is not None for _, linear in projections(model)):
        raise UsageError(
            f"{key}={layers!r}: the model is quantized, and its codes cannot be trained; expected "
            "the layers of a model that is not"
        )
    chosen = list(layers)
    if not chosen or not all(type(i) is int and 0 <= i < config.layers for i in chosen):
        raise UsageError(
            f"{key}={chosen!r}: expected numbers of layers, from 0 to {config.layers - 1}"
        )
    sliding, no_rope, dense = zip(*(config.layer_kinds()[i] for i in chosen), strict=True)
    if all(dense):
        raise UsageError(f"{key}={chosen!r}: expected at least one layer with experts")
    smaller = config.replace(
        layers=len(chosen),
        sliding=sliding,
        window=config.window if any(sliding) else None,
        no_rope=no_rope,
        dense=dense,
        dense_mlp_dim=config.dense_mlp_dim if any(dense) else 0,
    )
    _, params, _ = split(model)
    taken = {name: jnp.copy(v) for name, v in params.items() if not name.startswith("runs/")}
    old, new = layer_locations(config), layer_locations(smaller)
    for run in range(len(layer_runs(smaller))):
        sources = [old[chosen[i]] for i, (own, _) in enumerate(new) if own == run]
        # All these layers have the same parameters, see `LayerRun`.
        prefix = f"runs/{sources[0][0]}/"
        for name in (name.removeprefix(prefix) for name in params if name.startswith(prefix)):
            rows = [params[f"runs/{source}/{name}"][row] for source, row in sources]
            taken[f"runs/{run}/{name}"] = jnp.stack(rows)
    inherited = ComputeOptions(
        dtype=model.dtype, remat=model.remat, attention=model.implementation, mesh=model.mesh
    )
    return from_params(smaller, taken, **(inherited | options))
