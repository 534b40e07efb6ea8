"""Where the teacher's answer comes from: so far, frozen networks that answer online.

A teacher is a saved model in evaluation mode. Its parameters are an argument of the step, never
donated, never in a checkpoint; a fingerprint names it in the manifest of a run.
"""

from distill_jax.teachers.online import Teachers, load, mean_probabilities

__all__ = ["Teachers", "load", "mean_probabilities"]
