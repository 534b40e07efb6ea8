"""What a store keeps of a distribution over a vocabulary: samples of it, or its likeliest ids.

A whole distribution of 128,256 ids in float16 would take 256 kB a token; 50 draws take 250 bytes.
Left out on purpose: files, see `text`, and the loss, `losses.vocab_sparse_kl`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

from distill_jax import parallel
from distill_jax.errors import UsageError
from distill_jax.losses.vocab import Readout, chunk_size

#: The kinds of answers, and how many draws or ids each keeps by default.
KINDS = {"sampled": 50, "top_k": 64}
DTYPES = ("float16", "float32")
_MOST_DRAWS = 2**16 - 1
_LEAST_LOG = -60000.0  # float16 holds it, and its exponential is 0


@dataclasses.dataclass(frozen=True)
class SparseFormat:
    """What is kept of each token's distribution over a vocabulary.

    Attributes:
      kind: "sampled", the ids of draws with replacement and how often each was drawn (Anshumann et
        al. 2025, RS-KD), or "top_k", the likeliest ids, their log-probabilities and that of
        all other ids together.
      count: how many draws or ids.
      vocab_size: how many ids there are.
      dtype: of log-probabilities, one of DTYPES.
    """

    kind: str
    count: int
    vocab_size: int
    dtype: str = "float16"

    @classmethod
    def parse(
        cls, value: str, vocab_size: int, dtype: str = "float16", *, key: str
    ) -> "SparseFormat":
        """The format that "sampled", "sampled:50", "top_k" or "top_k:64" names.

        Raises:
          UsageError: it is none of these, or a number is out of range; the error names `key`.
        """
        kind, colon, number = value.partition(":")
        if kind not in KINDS or (colon and not number.isdecimal()):
            raise UsageError(f"{key}={value!r}: expected sampled:DRAWS or top_k:IDS, as sampled:50")
        count = int(number) if colon else KINDS[kind]
        most = _MOST_DRAWS if kind == "sampled" else vocab_size
        if not 1 <= count <= most:
            raise UsageError(f"{key}={value!r}: expected a number from 1 to {most}")
        if dtype not in DTYPES:
            raise UsageError(f"dtype={dtype!r}: expected {' or '.join(DTYPES)} on text")
        return cls(kind, count, vocab_size, dtype)

    def __str__(self) -> str:
        return f"{self.kind}:{self.count}"

    @property
    def arrays(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and the dtype of each array of a token."""
        ids = np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.int32)
        if self.kind == "sampled":
            width = (min(self.count, self.vocab_size),)
            counts = np.dtype(np.uint8 if self.count < 2**8 else np.uint16)
            return {"ids": (width, ids), "counts": (width, counts)}
        logs = np.dtype(self.dtype)
        width = (self.count,)
        return {"ids": (width, ids), "log_probs": (width, logs), "log_rest": ((), logs)}

    @property
    def nbytes(self) -> int:
        """Bytes a token."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.arrays.values())

    def loss_arguments(self, stored: Mapping[str, Array]) -> dict[str, Any]:
        """The arguments of `losses.vocab_sparse_kl` from stored arrays of N tokens."""
        ids = stored["ids"].astype(jnp.int32)
        if self.kind == "top_k":
            return {**stored, "ids": ids}
        counts = stored["counts"].astype(jnp.int32)
        logs = jnp.log(jnp.maximum(counts, 1).astype(jnp.float32))
        return {"ids": jnp.where(counts > 0, ids, -1), "log_probs": logs}

    def compress(self, log_p: Array, uniforms: Array | None) -> dict[str, Array]:
        """The stored arrays of distributions.

        Args:
          log_p: [C, vocab_size], normalised.
          uniforms: [C, count, 2] in [0, 1), of draws.

        Returns:
          The arrays, and "finite", bool [C].
        """
        rows = jnp.arange(log_p.shape[0])[:, None]
        if self.kind == "sampled":
            assert uniforms is not None
            found = self._drawn(log_p, uniforms, rows)
        else:
            values, ids = jax.lax.top_k(log_p, self.count)
            others = log_p.at[rows, ids].set(-jnp.inf)
            found = {
                "ids": ids,
                "log_probs": jnp.maximum(values, _LEAST_LOG),
                "log_rest": jax.nn.logsumexp(others, axis=-1),
            }
        found = {name: a.astype(self.arrays[name][1]) for name, a in found.items()}
        return {**found, "finite": jnp.all(jnp.isfinite(log_p), axis=-1)}

    def _drawn(self, log_p: Array, uniforms: Array, rows: Array) -> dict[str, Array]:
        """Draws ids by inverting the cumulative distribution at uniform numbers.

        The result has each drawn id once, ascending, and how often it was drawn. The first number
        of a draw chooses one of about sqrt(vocab_size) runs of ids and the second an id in the run:
        in one cumulative sum over all ids, float32 has no digits left for rare ids, which would be
        drawn too seldom or too often.
        """
        side = math.isqrt(self.vocab_size - 1) + 1
        p = jnp.pad(jnp.exp(log_p), ((0, 0), (0, side**2 - self.vocab_size)))
        within = jnp.cumsum(p.reshape(-1, side, side), axis=-1)
        among = jnp.cumsum(within[..., -1], axis=-1)
        find = jax.vmap(functools.partial(jnp.searchsorted, side="right"))
        run = jnp.minimum(find(among, uniforms[..., 0] * among[:, -1:]), side - 1)
        chosen = jnp.take_along_axis(within, run[..., None], axis=1)
        offset = jax.vmap(find)(chosen, uniforms[..., 1:] * chosen[..., -1:])[..., 0]
        drawn = jnp.sort(jnp.minimum(run * side + offset, self.vocab_size - 1), axis=-1)
        new = drawn[:, 1:] != drawn[:, :-1]
        slot = jnp.pad(jnp.cumsum(new, axis=-1), ((0, 0), (1, 0)))
        empty = jnp.zeros((log_p.shape[0], min(self.count, self.vocab_size)), jnp.int32)
        return {"ids": empty.at[rows, slot].set(drawn), "counts": empty.at[rows, slot].add(1)}

    def uniforms(self, seed: int, rows: Array, length: int) -> Array | None:
        """The uniform numbers of some rows' draws: a function of the seed and a row's number.

        Args:
          seed: of the draws.
          rows: int32 [B], their numbers.
          length: T, tokens of a row.

        Returns:
          float32 [B * T, count, 2]; None where nothing is drawn.
        """
        if self.kind != "sampled":
            return None
        base = jax.random.key(seed, impl="threefry2x32")
        keys = jax.vmap(jax.random.fold_in, (None, 0))(base, rows)
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (length, self.count, 2)))(keys)
        return drawn.reshape(-1, self.count, 2)


def compute_sparse_answers(
    sparse: SparseFormat,
    hidden: Array,
    head: Array,
    uniforms: Array | None,
    *,
    readout: Readout,
    temperature: float,
    mesh: Mesh,
) -> dict[str, Any]:
    """Compresses a decoder's distributions, a chunk of tokens at a time.

    On a mesh each device has its own tokens. The head stays sharded over `tensor`; only
    the logits of one chunk are gathered, because sorting needs them all.

    Args:
      sparse: what is kept.
      hidden: [N, D] of N tokens.
      head: [D, V].
      uniforms: [N, count, 2], of draws.
      readout: of the logits.
      temperature: T.
      mesh: the devices.

    Returns:
      The arrays of `SparseFormat.arrays`, [N, ...], and "finite", bool [N].
    """
    parts = mesh.shape["tensor"]
    head = jnp.pad(head, ((0, 0), (0, -head.shape[1] % parts)))

    def on_device(hidden, head, uniforms):
        count = hidden.shape[0]
        size = min(chunk_size(count, head.shape[1] * parts, parallel.platform(mesh)), count)
        missing = -count % size

        def split(array):
            padded = jnp.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))
            return padded.reshape(-1, size, *array.shape[1:])

        def body(chunk):
            own, drawn = chunk
            z = readout.logits(own, head)
            if parts > 1:
                z = jax.lax.all_gather(z, "tensor", axis=1, tiled=True)
            log_p = jax.nn.log_softmax(z[:, : sparse.vocab_size] / temperature, axis=-1)
            return sparse.compress(log_p, drawn)

        found = jax.lax.map(body, jax.tree.map(split, (hidden, uniforms)))
        return {name: a.reshape(-1, *a.shape[2:])[:count] for name, a in found.items()}

    rows, columns = PartitionSpec(parallel.BATCH), PartitionSpec(None, "tensor")
    mapped = jax.shard_map(
        on_device, mesh=mesh, in_specs=(rows, columns, rows), out_specs=rows, check_vma=False
    )
    return mapped(hidden, head, uniforms)
