"""Training: the state, the compiled step, the loop, evaluation, checkpoints and metric writers.

Every module here knows batches, losses and steps, never a data set, an architecture or a method by
name: those arrive from `distill_jax.runs.experiment`. Nothing is re-exported, so that importing one
module (the writers, say) does not import JAX for the sake of another.
"""
