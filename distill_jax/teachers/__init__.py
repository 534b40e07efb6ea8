"""Where the teacher's answer comes from: frozen networks that answer online, the student's own
average, or a store of answers that were given before.

A teacher is a saved model in evaluation mode. Its parameters are an argument of the step, never
donated, never in a checkpoint; a fingerprint names it in the manifest of a run.
"""

from distill_jax.teachers.average import Average
from distill_jax.teachers.online import Teachers, load, mean_probabilities
from distill_jax.teachers.schemes import Finite, Seeded, host_draws, view_key
from distill_jax.teachers.store import write as write_store
from distill_jax.teachers.store import write_seeded as write_steps
from distill_jax.teachers.stored import Stored
from distill_jax.teachers.stored import load as load_store
from distill_jax.teachers.views import Teacher, View

__all__ = [
    "Average",
    "Finite",
    "Seeded",
    "Stored",
    "Teacher",
    "Teachers",
    "View",
    "host_draws",
    "load",
    "load_store",
    "mean_probabilities",
    "view_key",
    "write_steps",
    "write_store",
]
