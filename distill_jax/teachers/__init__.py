"""Where the teacher's answer comes from: frozen networks that answer online, the student's own
average, or a store of answers that were given before.

A teacher is a saved model in evaluation mode. Its parameters are an argument of the step, never
donated, never in a checkpoint; a fingerprint names it in the manifest of a run.
"""

from distill_jax.teachers.answers.reading import GIVEN, Store, Stored
from distill_jax.teachers.answers.reading import load as load_store
from distill_jax.teachers.answers.schemes import Finite, Seeded, host_draws, view_key
from distill_jax.teachers.answers.sparse import Sparse
from distill_jax.teachers.answers.sparse import answers as sparse_answers
from distill_jax.teachers.answers.text import described as describe_text_store
from distill_jax.teachers.answers.text import gather as gather_answers
from distill_jax.teachers.answers.text import load as load_text_store
from distill_jax.teachers.answers.text import write as write_text_store
from distill_jax.teachers.answers.writing import write as write_store
from distill_jax.teachers.answers.writing import write_seeded as write_steps
from distill_jax.teachers.average import Average
from distill_jax.teachers.online import Teachers, load, mean_probabilities
from distill_jax.teachers.views import Teacher, View

__all__ = [
    "GIVEN",
    "Average",
    "Finite",
    "Seeded",
    "Sparse",
    "Store",
    "Stored",
    "Teacher",
    "Teachers",
    "View",
    "describe_text_store",
    "gather_answers",
    "host_draws",
    "load",
    "load_store",
    "load_text_store",
    "mean_probabilities",
    "sparse_answers",
    "view_key",
    "write_steps",
    "write_store",
    "write_text_store",
]
