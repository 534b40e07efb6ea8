"""Losses over a vocabulary from hidden states and heads, a chunk of tokens at a time.

The logits [N, V] of a batch are never built. `divergence` compares with teachers that are computed
in the same step, `sparse` with stored answers; `chunks` is the loop over tokens, `formulas` the
divergences by name: one row a divergence.
"""

from distill_jax.losses.vocab.divergence import vocab_cross_entropy, vocab_divergence
from distill_jax.losses.vocab.formulas import FORMULAS, VocabDivergence
from distill_jax.losses.vocab.sparse import vocab_sparse_kl

__all__ = [
    "FORMULAS",
    "VocabDivergence",
    "vocab_cross_entropy",
    "vocab_divergence",
    "vocab_sparse_kl",
]
