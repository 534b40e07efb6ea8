"""Low-rank adaptation of a decoder (Hu et al., 2021, LoRA): y = x W + (x A) B * alpha / rank.

    student = adapt(load("/models/Llama-3.2-1B"), rank=8, alpha=16.0, seed=0)
    trained, base = split_adapters(models.split(student)[1])  # A and B; everything else
    dense = merge_adapters(trained, base, alpha / rank)       # the parameters of a plain decoder

W stays as it is; A and B of every adapted matrix are trained, stacked over the layers as W is. A
run keeps the base among its frozen parameters, so that it is in no gradient, optimizer state,
average or checkpoint. This is not qwix, because qwix 0.1.8 adds its arrays to the modules that it
meets in a forward pass; under our scan these are copies that hold one layer and are gone after it.
Left out on purpose: dropout before A; adapters of embeddings, heads, routers and experts: of a
mixture of experts only the attention is adapted.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from distill_jax.errors import UsageError
from distill_jax.models.functional import Flat, merge, split
from distill_jax.models.language.decoder import PROJECTIONS, Decoder, projections
from distill_jax.models.language.layers import Linear

#: The matrices that can be adapted.
TARGETS = tuple(name for names in PROJECTIONS.values() for name in names)
_MARK = "/low_rank/"


class LowRank(nnx.Module):
    """(x @ A) @ B * scale, in the dtype of x.

    A starts as in peft, uniform in ±1 / sqrt(inputs); the paper (section 4.1) has a Gaussian, but
    does not give its deviation. B starts at zero, so that an adapter adds nothing before training.

    Args:
      kernel: the adapted kernels, [layers, inputs, outputs].
      rank: of A @ B.
      scale: alpha / rank.
      key: draws A.
    """

    def __init__(self, kernel: Array, *, rank: int, scale: float, key: Array):
        layers, inputs, outputs = kernel.shape
        bound = inputs**-0.5

        def uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        rngs = nnx.Rngs(key)

        def linear(inputs: int, outputs: int, init: Callable[..., Array]) -> Linear:
            return Linear(
                inputs,
                outputs,
                lead=(layers,),
                bias=False,
                param_dtype=jnp.float32,
                rngs=rngs,
                init=init,
            )

        self.a = linear(inputs, rank, uniform)
        self.b = linear(rank, outputs, jax.nn.initializers.zeros)
        self.scale = scale

    def __call__(self, x: Array) -> Array:
        return self.b(self.a(x)) * jnp.asarray(self.scale, x.dtype)


def adapt(
    model: Decoder,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> Decoder:
    """A decoder with adapters; until these are trained it computes what the base does.

    Args:
      model: the base; it is not changed, and its arrays are shared.
      rank: of the adapters, from 1 to the smaller side of every adapted matrix.
      alpha: the adapters' outputs are multiplied by alpha / rank.
      targets: some of TARGETS. With all of TARGETS, those that the model has outside of experts.
      seed: of the initial A.

    Raises:
      UsageError: a target that the model does not have, or too high a rank.
    """
    graphdef, params, _ = split(model)
    adapted = merge(graphdef, params)
    assert isinstance(adapted, Decoder)
    # Kernels of experts have one more axis.
    adaptable = [(name, linear) for name, linear in projections(adapted) if linear.kernel.ndim == 3]
    present = {name.rpartition("/")[2] for name, _ in adaptable}
    missing = [name for name in targets if name not in present]
    if missing and set(targets) != set(TARGETS):
        lacking = "adapts no experts' " if adapted.config.experts else "has no "
        raise UsageError(
            f"student.lora_targets={tuple(targets)!r}: the student {lacking}{missing[0]!r}; "
            f"expected some of {', '.join(name for name in TARGETS if name in present)}"
        )
    chosen = [(name, linear) for name, linear in adaptable if name.rpartition("/")[2] in targets]
    limit = min(min(linear.kernel.shape[1:]) for _, linear in chosen)
    if rank > limit:
        raise UsageError(
            f"student.lora_rank={rank}: expected at most {limit}, the smaller side of the smallest "
            "of the adapted matrices"
        )
    key = jax.random.key(seed, impl="threefry2x32")
    for number, (_, linear) in enumerate(chosen):
        adapter = LowRank(
            linear.kernel[...], rank=rank, scale=alpha / rank, key=jax.random.fold_in(key, number)
        )
        linear.low_rank = nnx.data(adapter)
    return adapted


def split_adapters(params: Mapping[str, Array]) -> tuple[Flat, Flat]:
    """Splits the parameters of a decoder into (trained, base).

    Of an adapted decoder the adapters are trained and the rest is the frozen base. Of a quantized
    one the base is the codes and their scales. Of any other decoder all is trained and the base is
    empty.
    """
    trained = {name: value for name, value in params.items() if _MARK in name}
    if not trained:
        codes = {name.removesuffix("_scale") for name in params if name.endswith("kernel_scale")}
        trained = {
            name: value
            for name, value in params.items()
            if name.removesuffix("_scale") not in codes
        }
    return trained, {name: value for name, value in params.items() if name not in trained}


@dataclasses.dataclass(frozen=True)
class MergedParam:
    """W + A @ B * scale in float32, or W alone, computed on the host one slice at a time.

    `parallel.fetch_slice` and `parallel.fetch_to_first` take it in place of an array.

    Attributes:
      kernel: W; [layers, inputs, outputs] where it is adapted.
      low_rank: (A, B), or () where it is not.
      scale: alpha / rank.
    """

    kernel: Array
    low_rank: tuple[Array, ...]
    scale: float

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    @property
    def ndim(self) -> int:
        return self.kernel.ndim

    @property
    def nbytes(self) -> int:
        return self.kernel.size * self.dtype.itemsize

    def fetch_slice(
        self, index: tuple[int, ...], fetch: Callable[..., np.ndarray | None]
    ) -> np.ndarray | None:
        """The slice at the first axes' `index`; None where `fetch` gives None.

        Args:
          index: as of `parallel.fetch_slice`.
          fetch: (array, index) -> the slice of one array; all processes call it together.
        """
        fetched = [fetch(value, index) for value in (self.kernel, *self.low_rank)]
        arrays = [value.astype(np.float32) for value in fetched if value is not None]
        if not arrays:
            return None
        dense, *low_rank = arrays
        if low_rank:
            a, b = low_rank
            dense += np.float32(self.scale) * (a @ b)
        return dense


def merge_adapters(
    params: Mapping[str, Array], base: Mapping[str, Array], scale: float
) -> dict[str, MergedParam]:
    """The parameters of a plain decoder that computes what the adapted one does.

    Args:
      params: the adapters, from `split_adapters`.
      base: of the same decoder, likewise.
      scale: alpha / rank.

    Returns:
      For each name of the base a float32 parameter for `parallel.fetch_slice`: W + A @ B * scale
      where W is adapted, else W.
    """
    merged = {}
    for name, value in base.items():
        stem = name.removesuffix("/kernel") + _MARK
        adapted = stem + "a/kernel" in params
        low_rank = tuple(params[f"{stem}{end}/kernel"] for end in "ab") if adapted else ()
        merged[name] = MergedParam(value, low_rank, scale)
    return merged
