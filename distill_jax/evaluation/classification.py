"""Metrics of evaluation: sums over a batch on the device, figures from their total on the host.

`batch_sums` returns sums only, so that batches of any size, padded or not, add up to exactly the
figures of the whole split; the caller adds them in float64 and `summarise` divides once at the end.
Left out on purpose: anything that needs all examples at once (AUC, adaptive bins), and training
metrics, which are means over one batch that the step already has.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import losses
from distill_jax.errors import UsageError

ECE_BINS = 15
TOP = 5


def confidence_bin(confidence: jax.Array) -> jax.Array:
    """The calibration bin of each confidence: i for a value in (i/15, (i+1)/15], 0 for 0 itself.

    The edges are compared as float32 values, so a confidence that is equal to the float32 nearest
    to an edge is in the bin below it.

    Args:
      confidence: float32 [...], from 0 to 1.

    Returns:
      int32 [...], from 0 to 14.
    """
    inner_edges = jnp.asarray(np.arange(1, ECE_BINS) / ECE_BINS, jnp.float32)
    inner_edges = jnp.expand_dims(inner_edges, range(confidence.ndim))
    return jnp.sum(confidence[..., None] > inner_edges, axis=-1, dtype=jnp.int32)


def _network_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """The sums of one network, student or teacher; the names are those of `batch_sums`."""
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    is_label = jax.nn.one_hot(labels, classes, dtype=jnp.float32)

    # Rank of the label: how many classes come before it, an equal logit at a lower id included.
    # Written as "not behind", so that a NaN comes before everything and never counts as correct.
    own = jnp.max(jnp.where(is_label > 0, logits, -jnp.inf), axis=-1, keepdims=True)
    after_on_tie = jnp.arange(classes)[None] >= labels[:, None]
    behind = (logits < own) | ((logits == own) & after_on_tie)
    rank = jnp.sum(~behind, axis=-1)
    correct = jnp.where(mask, rank == 0, False).astype(jnp.float32)

    probabilities = jnp.exp(jax.nn.log_softmax(logits, axis=-1))
    confidence = jnp.where(mask, jnp.max(probabilities, axis=-1), 0.0)
    brier = jnp.sum(jnp.square(probabilities - is_label), axis=-1)
    nll = losses.cross_entropy(logits, labels)
    in_bin = jax.nn.one_hot(confidence_bin(confidence), ECE_BINS, dtype=jnp.float32)
    return {
        "correct": jnp.sum(correct),
        "top5": jnp.sum(jnp.where(mask, rank < TOP, False), dtype=jnp.float32),
        "nll": jnp.sum(jnp.where(mask, nll, 0.0)),
        "brier": jnp.sum(jnp.where(mask, brier, 0.0)),
        "ece_count": jnp.sum(jnp.where(mask[:, None], in_bin, 0.0), axis=0),
        "ece_confidence": jnp.sum(in_bin * confidence[:, None], axis=0),
        "ece_correct": jnp.sum(in_bin * correct[:, None], axis=0),
        "class_correct": jnp.sum(is_label * correct[:, None], axis=0),
    }


def batch_sums(
    logits: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    teacher_logits: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """The sums of one evaluation batch, from which `summarise` makes figures.

    The prediction is the class of the largest logit, the lowest class id on a tie. In the same
    order, "top5" counts the labels among the first five classes. A NaN logit is never correct.

    Args:
      logits: [batch, classes], any real dtype, unnormalised.
      labels: integer [batch], from 0 to classes - 1 where unmasked.
      mask: bool [batch]; a row that is False contributes nothing, whatever its values.
      teacher_logits: [batch, classes], or None when there is no teacher.

    Returns:
      float32 sums over the unmasked rows. Scalars: "count", "correct", "top5", "nll" (nats) and
      "brier" (sum over classes of the squared difference from the one-hot label). [15], by the bin
      of the largest probability: "ece_count", "ece_confidence", "ece_correct". [classes], by label:
      "class_count", "class_correct". With a teacher: "agreement" (equal predictions), "kl"
      (KL(teacher || student), nats), and each but the two counts again as "teacher_...".

    Raises:
      UsageError: the shapes of logits, labels and mask do not fit together.

    Reference:
      Brier 1950, "Verification of forecasts expressed in terms of probability", eq. 2; Guo, Pleiss,
      Sun and Weinberger 2017, "On calibration of modern neural networks", section 2 (ECE).
    """
    if labels.shape != logits.shape[:1] or mask.shape != labels.shape or mask.dtype != bool:
        raise UsageError(
            f"logits{list(logits.shape)}, labels{list(labels.shape)}, "
            f"mask {mask.dtype}{list(mask.shape)}: expected [batch, classes], [batch], bool[batch]"
        )
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    sums = {
        "count": jnp.sum(mask, dtype=jnp.float32),
        "class_count": jnp.sum(jnp.where(mask[:, None], is_label, 0.0), axis=0),
        **_network_sums(logits, labels, mask),
    }
    if teacher_logits is not None:
        agree = jnp.argmax(logits, axis=-1) == jnp.argmax(teacher_logits, axis=-1)
        kl = losses.forward_kl(logits, teacher_logits)
        sums["agreement"] = jnp.sum(jnp.where(mask, agree, False), dtype=jnp.float32)
        sums["kl"] = jnp.sum(jnp.where(mask, kl, 0.0))
        teacher = _network_sums(teacher_logits, labels, mask)
        sums |= {f"teacher_{name}": value for name, value in teacher.items()}
    return sums


def _network_figures(sums: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    """The figures of one network from its sums; the names are those of `summarise`."""
    count, class_count = float(sums["count"]), sums["class_count"]
    correct = float(sums[prefix + "correct"])
    gaps = np.abs(sums[prefix + "ece_correct"] - sums[prefix + "ece_confidence"])
    figures: dict[str, Any] = {
        "errors": round(count - correct),
        "accuracy": correct / count,
        "nll": float(sums[prefix + "nll"]) / count,
        "ece": float(np.sum(gaps)) / count,
        "brier": float(sums[prefix + "brier"]) / count,
        "per_class": [
            float(right) / float(of) if of else None
            for right, of in zip(sums[prefix + "class_correct"], class_count, strict=True)
        ],
    }
    filled = np.maximum(sums[prefix + "ece_count"], 1.0)
    figures["reliability"] = {
        "count": [round(float(number)) for number in sums[prefix + "ece_count"]],
        "confidence": (sums[prefix + "ece_confidence"] / filled).tolist(),
        "accuracy": (sums[prefix + "ece_correct"] / filled).tolist(),
    }
    if len(class_count) > TOP:
        figures["top5"] = float(sums[prefix + "top5"]) / count
    return {prefix + name: value for name, value in figures.items()}


def summarise(sums: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Figures of a whole split from the total of its `batch_sums`.

    ECE = sum_b (n_b / n) |accuracy_b - confidence_b| over 15 equal-width bins.

    Args:
      sums: the sums of `batch_sums`, added over batches; float64 arrays, shape [], [15], [classes].

    Returns:
      "count" and "errors" (integers); "accuracy", "ece", and "top5" where there are more than five
      classes (fractions of 1); "nll" (nats, mean); "brier" (mean, from 0 to 2); "per_class", the
      accuracy of each class, None for a class with no example; "reliability", per bin the "count"
      and the mean "confidence" and "accuracy" (0 in an empty bin). With a teacher also "agreement"
      (fraction), "kl" (mean of KL(teacher || student), nats), and every figure but the count again
      as "teacher_...". Plain Python numbers, ready for JSON.

    Raises:
      UsageError: no example was counted.

    Reference:
      Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks", eq. 3.
    """
    count = float(sums["count"])
    if not count:
        raise UsageError("count=0: expected at least one example to evaluate")
    figures = {"count": round(count), **_network_figures(sums, "")}
    if "kl" in sums:
        figures["agreement"] = float(sums["agreement"]) / count
        figures["kl"] = float(sums["kl"]) / count
        figures |= _network_figures(sums, "teacher_")
    return figures
