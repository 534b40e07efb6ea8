"""Rematerialisation: what a layer keeps for its backward pass; the rest is computed again."""

import jax

from distill_jax import parallel

#: The values of `training.remat`. "none" keeps everything; "full" keeps the layer's input alone;
#: "dots" keeps its input and the results of its matrix products with parameters.
POLICIES = {
    # Gathered parameters are never kept: a layer at a time, or sharding would save no memory.
    "none": jax.checkpoint_policies.save_anything_except_these_names(parallel.GATHERED),
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name == "ragged_dot_general",
    ),
}
REMAT = tuple(POLICIES)
