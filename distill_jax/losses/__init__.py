"""Losses: pure functions of arrays that measure how far a student is from its labels or teacher.

Every loss returns one float32 value per example; `mean` averages over examples, once, with the
mask. The losses over a vocabulary (`vocab`), which never hold a value per token, return sums and
measures. Logits have their classes on the last axis, feature maps are [B, H, W, C], embeddings
[B, D]. Directions are in the names: `forward_kl(student, teacher)` is
KL(teacher || student). Left out on purpose: weights, schedules and the choice of what is compared
(methods/ has them), and adapters with parameters of their own.

What holds for all of them:

- They work in log space and float32, whatever dtype arrives, so values and gradients stay finite
  where a softmax saturates; where a vector is zero or a row constant, its direction is zero and so
  is its gradient.
- The teacher is a constant: its gradient is zero.
- The mean over the batch is the published loss, without its weight. A loss that compares examples
  with each other gives each example its share, or, where it cannot be shared out, the same value.
- In a divergence between distributions, a logit of -inf marks a class that does not exist (a padded
  vocabulary), and contributes nothing where both networks mark it. Losses that compare the logits
  themselves need all of them finite.
"""

from distill_jax.losses.classification import cross_entropy
from distill_jax.losses.contrastive import contrastive_nce
from distill_jax.losses.decoupled import decoupled_kd, decoupled_parts
from distill_jax.losses.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_target,
    total_variation,
)
from distill_jax.losses.logits import entropy, logit_mse
from distill_jax.losses.maps import (
    attention_transfer,
    factor_transfer,
    flow_of_solution,
    neuron_selectivity,
)
from distill_jax.losses.pooling import adaptive_average, match_size
from distill_jax.losses.reduction import mean
from distill_jax.losses.regression import (
    activation_boundary,
    feature_mse,
    hierarchical_context,
    overhaul,
    overhaul_margin,
    variational_information,
)
from distill_jax.losses.relational_logits import (
    batch_correlation,
    class_correlation,
    dist,
    standardise,
)
from distill_jax.losses.relations import (
    correlation_congruence,
    probabilistic_transfer,
    relational_angle,
    relational_distance,
    similarity_preserving,
)
from distill_jax.losses.states import attention_relation, hidden_cosine, hidden_mse
from distill_jax.losses.vocab import vocab_cross_entropy, vocab_divergence
from distill_jax.losses.vocab.sparse import vocab_sparse_kl

__all__ = [
    "activation_boundary",
    "adaptive_average",
    "attention_relation",
    "attention_transfer",
    "batch_correlation",
    "class_correlation",
    "contrastive_nce",
    "correlation_congruence",
    "cross_entropy",
    "decoupled_kd",
    "decoupled_parts",
    "dist",
    "entropy",
    "factor_transfer",
    "feature_mse",
    "flow_of_solution",
    "forward_kl",
    "hidden_cosine",
    "hidden_mse",
    "hierarchical_context",
    "jensen_shannon",
    "logit_mse",
    "match_size",
    "mean",
    "neuron_selectivity",
    "overhaul",
    "overhaul_margin",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "reverse_kl",
    "similarity_preserving",
    "skew_kl",
    "skew_reverse_kl",
    "soft_target",
    "standardise",
    "total_variation",
    "variational_information",
    "vocab_cross_entropy",
    "vocab_divergence",
    "vocab_sparse_kl",
]
