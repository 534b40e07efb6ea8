"""Losses over a vocabulary from hidden states and heads, a chunk of tokens at a time.

The logits [N, V] of a batch are never built. From the outside in:

- `divergence`: `vocab_divergence` from teachers that are computed in the same step, and
  `vocab_cross_entropy`; `sparse`: `vocab_sparse_kl` from stored answers;
- `loop`: the sum over chunks and over the devices of a mesh, and its derivative;
- `chunk`: one chunk, value and slope of each term; `shard`: sums over a sharded vocabulary;
- `formulas`: the divergences by name, one row each; `operands`: readouts, settings and arrays.
"""

from distill_jax.losses.vocab.divergence import vocab_cross_entropy, vocab_divergence
from distill_jax.losses.vocab.formulas import FORMULAS, VocabDivergence
from distill_jax.losses.vocab.loop import chunk_size
from distill_jax.losses.vocab.operands import Readout, VocabSettings
from distill_jax.losses.vocab.sparse import vocab_sparse_kl

__all__ = [
    "FORMULAS",
    "Readout",
    "VocabDivergence",
    "VocabSettings",
    "chunk_size",
    "vocab_cross_entropy",
    "vocab_divergence",
    "vocab_sparse_kl",
]
