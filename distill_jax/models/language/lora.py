"""Low-rank adaptation of a decoder (Hu et al., 2021, LoRA): y = x W + (x A) B * alpha / rank.

    student = adapt(load("/models/Llama-3.2-1B"), rank=8, alpha=16.0, seed=0)
    trained, base = split_adapters(models.split(student)[1])  # trained: A and B alone
    dense = merge_adapters(trained, base, alpha / rank)       # the parameters of a plain decoder

W stays as it was; A and B of every adapted matrix are trained, stacked over the layers as W is. A
run keeps the base among its frozen parameters, so that it is in no gradient, optimizer state,
average or checkpoint. Our own and not qwix, since qwix 0.1.8 puts its arrays into
the modules that it meets in a call, which under our scan are those of one layer and are gone after
it. Left out on purpose: dropout before A; adapted embeddings, heads, routers and experts, all of
which stay as they were: of a mixture of experts the attention alone is adapted.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from distill_jax.errors import UsageError
from distill_jax.models.functional import Flat, merge, split
from distill_jax.models.language.decoder import PROJECTIONS, Decoder, projections
from distill_jax.models.language.layers import Linear

#: The matrices that can be adapted.
TARGETS = tuple(name for names in PROJECTIONS.values() for name in names)
_MARK = "/low_rank/"


class LowRank(nnx.Module):
    """(x @ A) @ B * scale, in the dtype of x.

    A begins as peft has it, uniform in ±1 / sqrt(inputs); the paper (section 4.1) says Gaussian,
    and of what deviation it does not say. B begins at zero, so that nothing is added at first.

    Args:
      kernel: [layers, inputs, outputs], what is adapted.
      rank: of A @ B.
      scale: alpha / rank.
      key: of A's values.
    """

    def __init__(self, kernel: Array, *, rank: int, scale: float, key: Array):
        layers, inputs, outputs = kernel.shape
        bound = inputs**-0.5

        def first(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        shared = dict(lead=(layers,), bias=False, param_dtype=jnp.float32, rngs=nnx.Rngs(key))
        self.a = Linear(inputs, rank, start=first, **shared)
        self.b = Linear(rank, outputs, start=jax.nn.initializers.zeros, **shared)
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
    """A decoder with adapters, which computes the same until they are trained.

    Args:
      model: the base; it is not changed, and its arrays are shared.
      rank: of the adapters, from 1 to the smaller side of every adapted matrix.
      alpha: their factor is alpha / rank.
      targets: some of TARGETS; all of them are as many as the model has outside of experts.
      seed: of A's values.

    Raises:
      UsageError: a target that the model does not have, or too high a rank.
    """
    graphdef, params, _ = split(model)
    adapted = merge(graphdef, params)
    # Matrices of experts have an axis more.
    own = [(name, linear) for name, linear in projections(adapted) if linear.kernel.ndim == 3]
    there = {name.rpartition("/")[2] for name, _ in own}
    missing = [name for name in targets if name not in there]
    if missing and set(targets) != set(TARGETS):
        lacking = "adapts no experts' " if adapted.config.experts else "has no "
        raise UsageError(
            f"student.lora_targets={tuple(targets)!r}: the student {lacking}{missing[0]!r}; "
            f"expected some of {', '.join(name for name in TARGETS if name in there)}"
        )
    chosen = [(name, linear) for name, linear in own if name.rpartition("/")[2] in targets]
    most = min(min(linear.kernel.shape[1:]) for _, linear in chosen)
    if rank > most:
        raise UsageError(
            f"student.lora_rank={rank}: expected at most {most}, the smaller side of the smallest "
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
    """What is trained of an adapted decoder, and its base; all and nothing of another decoder."""
    trained = {name: value for name, value in params.items() if _MARK in name}
    if not trained:
        return dict(params), {}
    return trained, {name: value for name, value in params.items() if name not in trained}


@dataclasses.dataclass(frozen=True)
class Merged:
    """W + A @ B * scale in float32, or W alone; computed on the host when a part is asked for.

    Attributes:
      kernel: W, [layers, inputs, outputs] where there are adapters.
      low_rank: A and B; () for none.
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
        self, place: tuple[int, ...], fetch: Callable[..., np.ndarray | None]
    ) -> np.ndarray | None:
        """What lies at the place, as `fetch` of the arrays gives it; see `parallel.fetch_slice`."""
        fetched = [fetch(value, place) for value in (self.kernel, *self.low_rank)]
        if fetched[0] is None:
            return None
        dense, *low_rank = (value.astype(np.float32) for value in fetched)
        if low_rank:
            dense += np.float32(self.scale) * (low_rank[0] @ low_rank[1])
        return dense


def merge_adapters(
    params: Mapping[str, Array], base: Mapping[str, Array], scale: float
) -> dict[str, Merged]:
    """The parameters of a plain decoder that computes what the adapted one does.

    Args:
      params: the adapters.
      base: of the same decoder, from `split_adapters`.
      scale: alpha / rank.

    Returns:
      What `parallel.fetch_slice` fetches: float32, W + A @ B * scale where W is adapted, else W.
    """
    whole = {}
    for name, value in base.items():
        stem = name.removesuffix("/kernel") + _MARK
        adapted = stem + "a/kernel" in params
        low_rank = tuple(params[f"{stem}{end}/kernel"] for end in "ab") if adapted else ()
        whole[name] = Merged(value, low_rank, scale)
    return whole
