"""Hidden states and attention relations of two decoders on the same tokens, one value a token.

Left out on purpose: the projection of the student's states to the teacher's width, which is a
method's adapter and comes before; the choice of layers, weights, and the mask over tokens.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from distill_jax.errors import UsageError
from distill_jax.losses.vectors import check_same_shape, einsum, float_pair, unit

# Added to a mean square, so that its root can be divided by.
EPSILON = 1e-12


def hidden_mse(
    student: Float[Array, "*tokens dim"],
    teacher: Float[Array, "*tokens dim"],
    *,
    normalise: bool = False,
) -> Float[Array, "*tokens"]:
    """Squared difference of hidden states, averaged over their width, per token.

    Args:
      student: [..., D], after its projection.
      teacher: same shape; its gradient is stopped.
      normalise: whether both are divided by their root mean square over D first, so that the few
        very large features of a language model's stream do not set the scale: the value is then
        2 - 2 cos of the two.

    Returns:
      float32 [...], from 0.

    Raises:
      UsageError: the shapes differ.

    Example:
      >>> print(hidden_mse(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]])))
      [5.]

    Reference:
      Jiao et al. 2020, "TinyBERT: distilling BERT for natural language understanding", equation 8
      (hidden states), without its projection.
    """
    check_same_shape(student, teacher, "[..., D]")
    student, teacher = float_pair(student, teacher)
    if normalise:
        student, teacher = (
            x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + EPSILON)
            for x in (student, teacher)
        )
    return jnp.mean(jnp.square(student - teacher), axis=-1)


def hidden_cosine(
    student: Float[Array, "*tokens dim"], teacher: Float[Array, "*tokens dim"]
) -> Float[Array, "*tokens"]:
    """1 - cos of the angle between hidden states, per token.

    Args:
      student: [..., D], after its projection.
      teacher: same shape; its gradient is stopped.

    Returns:
      float32 [...], in [0, 2]; 1 where one of them is zero.

    Raises:
      UsageError: the shapes differ.

    Example:
      >>> print(hidden_cosine(jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])))
      [1.]

    Reference:
      Sanh, Debut, Chaumond and Wolf 2019, "DistilBERT, a distilled version of BERT", section 3.
    """
    check_same_shape(student, teacher, "[..., D]")
    student, teacher = float_pair(student, teacher)
    return 1.0 - jnp.sum(unit(student) * unit(teacher), axis=-1)


StudentHeads = Float[Array, "batch tokens heads width"]
TeacherHeads = Float[Array, "batch tokens heads teacher_width"]


def attention_relation(
    student: tuple[StudentHeads, StudentHeads],
    teacher: tuple[TeacherHeads, TeacherHeads],
    mask: Bool[Array, "batch tokens tokens"],
) -> Float[Array, "batch tokens"]:
    """KL(teacher || student) of the attention relations, averaged over heads, per token.

    The relation of vectors a and b is softmax(a b^T / sqrt(H)) over the tokens that the mask
    leaves: queries with keys give the attention itself, values with values MiniLM's value relation.
    The heads of both networks may differ in width, not in number.

    One head is computed at a time, and recomputed for the gradient: at most one [B, T, T] of each
    network is alive.

    Args:
      student: a and b, each [B, T, A, Hs].
      teacher: a and b, each [B, T, A, Ht]; their gradient is stopped.
      mask: bool [B, T, T], which tokens (last axis) each token attends to; the value of a token
        that attends to none is 0.

    Returns:
      float32 [B, T], from 0.

    Raises:
      UsageError: the number of heads or tokens differs.

    Example:
      >>> a, b = jnp.ones((1, 2, 1, 1)), jnp.arange(2.0).reshape(1, 2, 1, 1)
      >>> values = attention_relation((a, b), (a, 3 * b), jnp.tril(jnp.ones((1, 2, 2), bool)))
      >>> print([f"{value:.4f}" for value in values[0]])
      ['0.0000', '0.1698']

    Reference:
      Wang et al. 2020, "MiniLM: deep self-attention distillation for task-agnostic compression of
      pre-trained transformers", section 3, equations 6 and 7; Wang et al. 2021, "MiniLMv2:
      multi-head self-attention relation distillation", section 3.
    """
    shapes = {jnp.shape(x)[:3] for x in (*student, *teacher)}
    if len(shapes) != 1 or jnp.ndim(student[0]) != 4:
        raise UsageError(
            f"relations of {jnp.shape(student[0])} and {jnp.shape(teacher[0])}: expected "
            "[B, T, A, H] with the same B, T and A"
        )

    attends = jnp.any(mask, axis=-1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_head(total, head):
        (a_s, b_s), (a_t, b_t) = head
        q, p = _log_relation(a_s, b_s, mask, attends), _log_relation(a_t, b_t, mask, attends)
        gap = jnp.where(mask, p - q, 0.0)
        return total + jnp.sum(jnp.where(mask, jnp.exp(p), 0.0) * gap, axis=-1), None

    def by_head(pair):
        return tuple(jnp.moveaxis(jnp.asarray(x, jnp.float32), 2, 0) for x in pair)

    heads = (by_head(student), jax.lax.stop_gradient(by_head(teacher)))
    nothing = jnp.zeros(jnp.shape(student[0])[:2], jnp.float32)
    total, _ = jax.lax.scan(one_head, nothing, heads)
    return total / jnp.shape(student[0])[2]


def _log_relation(
    a: Float[Array, "batch tokens width"],
    b: Float[Array, "batch tokens width"],
    mask: Bool[Array, "batch tokens tokens"],
    attends: Bool[Array, "batch tokens"],
) -> Float[Array, "batch tokens tokens"]:
    """log softmax(a b^T / sqrt(H)) over the mask; `attends` is False where it leaves no token."""
    scores = einsum("bth,bsh->bts", a, b) * (a.shape[-1] ** -0.5)
    scores = jnp.where(mask, scores, -jnp.inf)
    # A row that the mask leaves empty is made uniform: -inf everywhere has no softmax.
    return jax.nn.log_softmax(jnp.where(attends[..., None], scores, 0.0), axis=-1)
