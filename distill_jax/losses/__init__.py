"""Losses: pure functions of arrays that say how far a student is from its labels or its teacher.

Every function returns one float32 value per example (the class axis, always the last, is gone) and
averages nothing; `mean` does that, once, with the mask. Directions are in the names:
`forward_kl(student, teacher)` is KL(teacher || student). Left out on purpose: weights, schedules
and the choice of what is compared (methods/ has them), and adapters with parameters of their own.

What holds for all of them:

- They work in log space and float32, whatever dtype arrives, so values and gradients stay finite
  where a softmax saturates.
- The teacher is a constant: its gradient is zero.
- A logit of -inf marks a class that does not exist (a padded vocabulary). Where both networks mark
  the same classes, they contribute nothing to a divergence.
"""

from distill_jax.losses.classification import cross_entropy
from distill_jax.losses.divergences import (
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
    soft_target,
    total_variation,
)
from distill_jax.losses.logits import entropy, logit_mse
from distill_jax.losses.reduction import mean

__all__ = [
    "cross_entropy",
    "entropy",
    "forward_kl",
    "jensen_shannon",
    "logit_mse",
    "mean",
    "reverse_kl",
    "skew_kl",
    "soft_target",
    "total_variation",
]
