"""Decoders from the arrays that llama2.c trains (karpathy/llama2.c, a small Llama 2)."""

from collections.abc import Mapping
from typing import Unpack

import jax.numpy as jnp
import numpy as np

from distill_jax.errors import UsageError
from distill_jax.models.functional import split
from distill_jax.models.language.config import DecoderConfig
from distill_jax.models.language.construct import abstract, from_params
from distill_jax.models.language.decoder import ComputeOptions, Decoder

#: The arrays of a checkpoint.
ARRAYS = ("tok", "ra", "rf", "wq", "wk", "wv", "wo", "w1", "w2", "w3", "rn", "cls")
# The matrices of a layer, [L, out, in]: flat name of the parameter, name of the array.
_MATRICES = {
    "attention/query": "wq",
    "attention/key": "wk",
    "attention/value": "wv",
    "attention/output": "wo",
    "mlp/gate": "w1",
    "mlp/down": "w2",
    "mlp/up": "w3",
}


def from_llama2c(
    arrays: Mapping[str, np.ndarray],
    *,
    heads: int,
    max_positions: int = 512,
    key: str = "path",
    **options: Unpack[ComputeOptions],
) -> Decoder:
    """A decoder with the arrays of a llama2.c checkpoint.

    Args:
      arrays: tok [V, D]; of L layers the norms ra and rf [L, D] and the matrices wq, wk, wv, wo,
        w1, w2, w3 [L, out, in]; rn [D]; cls [V, D].
      heads: of queries, which the shapes of the arrays do not determine.
      max_positions: the longest context.
      key: the config key or flag that errors name.
      **options: dtype, remat, attention and mesh of `Decoder`.

    Raises:
      UsageError: an array is missing or of another shape.
    """
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise UsageError(f"{key}: array {missing[0]!r} is missing; expected {', '.join(ARRAYS)}")
    arrays = {name: np.asarray(arrays[name], np.float32) for name in ARRAYS}
    config = _config(arrays, heads, max_positions, key)
    params = _params(arrays, config)
    for name, value in split(abstract(config))[1].items():
        if params[name].shape != value.shape:
            raise UsageError(
                f"{key}: an array gives {name} as {list(params[name].shape)}, "
                f"not {list(value.shape)}"
            )
    return from_params(config, {name: jnp.asarray(v) for name, v in params.items()}, **options)


def _config(
    arrays: Mapping[str, np.ndarray], heads: int, max_positions: int, key: str
) -> DecoderConfig:
    (vocab_size, dim), (layers, mlp_dim) = arrays["tok"].shape, arrays["w1"].shape[:2]
    kv_width = arrays["wk"].shape[1]
    if dim % heads or kv_width % (dim // heads):
        raise UsageError(f"{key}: heads={heads!r}: expected a divisor of {dim} that fits the keys")
    return DecoderConfig(
        vocab_size=vocab_size,
        dim=dim,
        layers=layers,
        heads=heads,
        kv_heads=kv_width // (dim // heads),
        head_dim=dim // heads,
        mlp_dim=mlp_dim,
        tied=bool(np.array_equal(arrays["tok"], arrays["cls"])),
        max_positions=max_positions,
    )


def _params(arrays: Mapping[str, np.ndarray], config: DecoderConfig) -> dict[str, np.ndarray]:
    """The parameters by their flat names."""
    params = {
        "embedding": arrays["tok"],
        "final_norm/scale": arrays["rn"],
        "runs/0/attention_norm/scale": arrays["ra"],
        "runs/0/mlp_norm/scale": arrays["rf"],
    }
    if not config.tied:
        params["untied_head"] = arrays["cls"].T
    for name, of_array in _MATRICES.items():
        matrix = arrays[of_array]
        if of_array in ("wq", "wk"):
            matrix = _split_pairs(matrix, config)
        params[f"runs/0/{name}/kernel"] = matrix.swapaxes(1, 2)
    return params


def _split_pairs(matrix: np.ndarray, config: DecoderConfig) -> np.ndarray:
    """Reorders the rows of each head: (0, 1), (2, 3), ... become (0, H / 2), (1, H / 2 + 1), ...

    llama2.c rotates pairs of neighbouring rows, `rope.apply_rope` a row of the first half with one
    of the second.
    """
    pairs = matrix.reshape(config.layers, -1, config.head_dim // 2, 2, config.dim)
    return pairs.swapaxes(2, 3).reshape(matrix.shape)
