"""What a layer keeps for its gradient; the rest is computed again."""

import jax

from distill_jax import parallel

#: By the names of `training.remat`: everything; the layer's input alone; its input and the results
#: of its matrix products with parameters.
POLICIES = {
    # Parameters that were put together are not kept, or shards would save nothing.
    "none": jax.checkpoint_policies.save_anything_except_these_names(parallel.GATHERED),
    "full": None,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        lambda primitive, *_, **__: primitive.name == "ragged_dot_general",
    ),
}
REMAT = tuple(POLICIES)
