"""Relations between the examples of a batch: similarities, distances and angles of embeddings.

The student is compared with the teacher only through relations inside each batch, so the two may
have different widths, and every value depends on the batch: B is the number of rows that arrive. A
batch of one has no relations; its loss is 0. Left out on purpose: weights, and the projections that
some papers put in front.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from distill_jax.losses.vectors import (
    check_batch,
    check_same_shape,
    check_variant,
    einsum,
    flat,
    float_pair,
    magnitude,
    map_rows,
    safe_sqrt,
    unit,
)

# Inside the logarithm of `probabilistic_transfer`, as in the authors' code.
PROBABILITY_EPSILON = 1e-7


def _embeddings(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *teacher_features"]
) -> tuple[Float[Array, "batch dim"], Float[Array, "batch teacher_dim"]]:
    """Both as float32 [B, D]; the teacher's a constant."""
    check_batch(student, teacher)
    student, teacher = float_pair(student, teacher)
    return flat(student), flat(teacher)


def _gram(x: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    """Inner products of the rows, [B, B]."""
    return einsum("id,jd->ij", x, x)


def similarity_preserving(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *teacher_features"]
) -> Float[Array, " batch"]:
    """Similarity-preserving distillation (SP): are the same examples alike?

    (1 / B) sum_j (G_s - G_t)_bj^2, with G = F F^T of the flattened features F [B, D], each row
    divided by its Euclidean norm. Its mean over b is ||G_s - G_t||_F^2 / B^2.

    Args:
      student: [B, ...], flattened.
      teacher: [B, ...], flattened; its gradient is stopped.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: B differs, or either has no axis after B.

    Example:
      >>> student, teacher = jnp.array([[1.0], [1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> [f"{value:.4f}" for value in similarity_preserving(student, teacher)]
      ['0.2929', '0.2929']

    Reference:
      Tung and Mori 2019, "Similarity-preserving knowledge distillation", section 3.
    """
    s, t = (unit(_gram(x)) for x in _embeddings(student, teacher))
    return jnp.mean(jnp.square(s - t), axis=1)


def correlation_congruence(
    student: Float[Array, " batch *features"],
    teacher: Float[Array, " batch *teacher_features"],
    *,
    variant: str = "code",
) -> Float[Array, " batch"]:
    """Correlation congruence (CC): the correlation between examples, not the examples alone.

    "code", a form that common benchmarks share: sum_d D_bd D_(b+1)d with D = |s - t|, summed over
    neighbours in the batch and divided by their number B - 1 (here times B for each example, the
    last of which is 0, so that the mean is that value). It needs embeddings of one width.

    "paper": mean_j (K_s - K_t)_bj^2, where K is the correlation of the embeddings by a Gaussian
    kernel expanded to second order, K_ij = exp(-2 g) sum_p (2 g)^p (x_i . x_j)^p / p! for
    p = 0, 1, 2, with x of length 1 and g = 0.4.

    The benchmarks also train the teacher's projection, through a loss that is symmetric in both.
    To do the same, pass (s - t, zeros): "code" reads only s - t.

    Args:
      student: [B, D].
      teacher: [B, D] for "code", [B, D'] for "paper"; its gradient is stopped.
      variant: "code" or "paper".

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: B or, for "code", D differs, either has no axis after B, or `variant` is neither
        of the two.

    Example:
      >>> student, teacher = jnp.zeros((3, 2)), jnp.array([[1.0, 0.0], [2.0, 3.0], [0.0, 1.0]])
      >>> print(correlation_congruence(student, teacher))
      [3.  4.5 0. ]

    Reference:
      Peng, Jin, Liu, Li, Wu, Liu, Zhou and Zhang 2019, "Correlation congruence for knowledge
      distillation", section 3 ("paper").
    """
    check_variant(variant)
    if variant == "paper":
        s, t = (_taylor_kernel(x) for x in _embeddings(student, teacher))
        return jnp.mean(jnp.square(s - t), axis=1)
    check_same_shape(student, teacher, "[B, D]")
    s, t = _embeddings(student, teacher)
    gap, batch = magnitude(s - t), s.shape[0]
    neighbours = jnp.sum(gap[:-1] * gap[1:], axis=1) * (batch / max(batch - 1, 1))
    return jnp.concatenate([neighbours, jnp.zeros(1, jnp.float32)])


def _taylor_kernel(
    x: Float[Array, "batch dim"], gamma: float = 0.4, order: int = 2
) -> Float[Array, "batch batch"]:
    """exp(-gamma ||x_i - x_j||^2) of unit rows, expanded in their inner product."""
    cosine = _gram(unit(x))
    terms = ((2 * gamma) ** p / math.factorial(p) * cosine**p for p in range(order + 1))
    return math.exp(-2 * gamma) * sum(terms, jnp.float32(0))


def _squared_distances(x: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    """[B, B], from differences: unlike those from inner products they are exact for near points."""
    return map_rows(lambda row: jnp.sum(jnp.square(x - row[None]), axis=-1), x, x.size)


def _huber(gap: Array) -> Array:
    """Half the square up to 1, then linear with slope 1."""
    size = magnitude(gap)
    return jnp.where(size < 1.0, 0.5 * jnp.square(gap), size - 0.5)


def relational_distance(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *teacher_features"]
) -> Float[Array, " batch"]:
    """Relational knowledge distillation by distances (RKD-D).

    mean_j huber(d_s(b, j) - d_t(b, j)), with d the Euclidean distance of two embeddings divided by
    its mean over the pairs of two different examples, and huber with threshold 1. The mean over j
    counts b itself, with value 0. Where points coincide the gradient of their distance is zero.

    Args:
      student: [B, D]; [B, ...] is flattened.
      teacher: [B, D']; its gradient is stopped.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: B differs, or either has no axis after B.

    Example:
      >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [1.0], [1.0]])
      >>> [f"{value:.4f}" for value in relational_distance(student, teacher)]
      ['0.0938', '0.1875', '0.0938']

    Reference:
      Park, Kim, Lu and Cho 2019, "Relational knowledge distillation", section 3.2 (RKD-D);
      the usual weight is 25, with 50 for the angles.
    """
    s, t = (_relative_distances(x) for x in _embeddings(student, teacher))
    return jnp.mean(_huber(s - t), axis=1)


def _relative_distances(x: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    """Distances [B, B] over their mean off the diagonal; zero where all points coincide."""
    distance = safe_sqrt(_squared_distances(x))
    batch = x.shape[0]
    mean = jnp.sum(distance) / max(batch * (batch - 1), 1)
    distinct = mean > 0
    return jnp.where(distinct, distance / jnp.where(distinct, mean, 1.0), 0.0)


def relational_angle(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *teacher_features"]
) -> Float[Array, " batch"]:
    """Relational knowledge distillation by angles (RKD-A).

    mean_ij huber(cos_s(i, b, j) - cos_t(i, b, j)), with cos(i, b, j) the cosine of the angle at b
    between the directions to i and to j, over all B^2 pairs, and huber with threshold 1. A pair
    that coincides with b has no angle: its cosine is 0, with zero gradient.

    Cosines come from the B^2 distances by the law of cosines, so that a vertex costs B^2 numbers
    whatever the width of the embeddings; in large batches a few vertices are computed at a time.
    The rounding of a cosine grows with the ratio of the two distances.

    Args:
      student: [B, D]; [B, ...] is flattened.
      teacher: [B, D']; its gradient is stopped.

    Returns:
      float32 [B], from 0; not averaged.

    Raises:
      UsageError: B differs, or either has no axis after B.

    Example:
      >>> student, teacher = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[0.0], [2.0], [1.0]])
      >>> [f"{value:.4f}" for value in relational_angle(student, teacher)]
      ['0.0000', '0.3333', '0.3333']

    Reference:
      Park, Kim, Lu and Cho 2019, "Relational knowledge distillation", section 3.2 (RKD-A).
    """
    s, t = (_squared_distances(x) for x in _embeddings(student, teacher))

    def at_vertex(rows: tuple[Array, Array]) -> Array:
        return jnp.mean(_huber(_cosines(rows[0], s) - _cosines(rows[1], t)))

    return map_rows(at_vertex, (s, t), s.size)


def _cosines(
    to_vertex: Float[Array, " batch"], between: Float[Array, "batch batch"]
) -> Float[Array, "batch batch"]:
    """Cosines [B, B] of the angles at one vertex; 0 for a point that coincides with it.

    `to_vertex` [B] are the squared distances of the points to it, `between` [B, B] their own.
    """
    distinct = to_vertex > 0
    inverse = jnp.where(distinct, 1.0 / jnp.sqrt(jnp.where(distinct, to_vertex, 1.0)), 0.0)
    numerator = to_vertex[:, None] + to_vertex[None, :] - between
    return 0.5 * numerator * inverse[:, None] * inverse[None, :]


def probabilistic_transfer(
    student: Float[Array, " batch *features"], teacher: Float[Array, " batch *teacher_features"]
) -> Float[Array, " batch"]:
    """Probabilistic knowledge transfer (PKT): who is whose neighbour, as probabilities.

    mean_j p_t(j | b) log((p_t(j | b) + e) / (p_s(j | b) + e)) with e = 1e-7, where p(j | b) is
    (1 + cos(x_b, x_j)) / 2 divided by its sum over j, j = b included.

    A mean over the B^2 entries, as in the authors' code, not a sum over j: with B = 64 it is 64
    times smaller than a divergence, which the usual weight of 30000 belongs to.

    Args:
      student: [B, D]; [B, ...] is flattened.
      teacher: [B, D']; its gradient is stopped.

    Returns:
      float32 [B], from 0 (beyond rounding); not averaged.

    Raises:
      UsageError: B differs, or either has no axis after B.

    Example:
      >>> student, teacher = jnp.array([[1.0], [1.0]]), jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> [f"{value:.4f}" for value in probabilistic_transfer(student, teacher)]
      ['0.0283', '0.0283']

    Reference:
      Passalis and Tefas 2018, "Learning deep representations with probabilistic knowledge
      transfer", section 3 (cosine kernel).
    """
    s, t = (_neighbour_probabilities(x) for x in _embeddings(student, teacher))
    # Adding s - t, whose sum over j is zero, makes each summand second order in the difference, as
    # does log1p: the rounding of the probabilities no longer drowns a small divergence.
    ratio = jnp.log1p((t - s) / (s + PROBABILITY_EPSILON))
    return jnp.mean(t * ratio + (s - t), axis=1)


def _neighbour_probabilities(x: Float[Array, "batch dim"]) -> Float[Array, "batch batch"]:
    # The cosine of opposite vectors can round to just below -1.
    kernel = jax.nn.relu(0.5 * (1.0 + _gram(unit(x))))
    return kernel / jnp.sum(kernel, axis=1, keepdims=True)
