"""Where the teacher's outputs come from: frozen networks that compute them in the step, the
student's own average, or an answer store, which holds what a teacher computed earlier.

A teacher is a saved model in evaluation mode. Its parameters are an argument of the step, never
donated, never in a checkpoint; a fingerprint names it in the manifest of a run.
"""

from distill_jax.teachers.answers.computing import AnswerComputation
from distill_jax.teachers.answers.given import GivenLogits, store_given_logits
from distill_jax.teachers.answers.images import precompute_steps, precompute_views
from distill_jax.teachers.answers.schemes import Finite, Seeded, host_draws, view_key
from distill_jax.teachers.answers.sparse import SparseFormat, compute_sparse_answers
from distill_jax.teachers.answers.store import ANSWER_PREFIX, AnswerStore
from distill_jax.teachers.answers.stored_teacher import (
    ImageRequirements,
    StoredTeacher,
    open_image_store,
)
from distill_jax.teachers.answers.text import (
    TextSource,
    describe_text_store,
    gather_answers,
    open_text_store,
    precompute_text,
)
from distill_jax.teachers.average import AverageTeacher
from distill_jax.teachers.classes import with_classes_of
from distill_jax.teachers.online import Teachers, load, mean_probabilities
from distill_jax.teachers.views import Teacher, View

__all__ = [
    "ANSWER_PREFIX",
    "AnswerComputation",
    "AnswerStore",
    "AverageTeacher",
    "Finite",
    "GivenLogits",
    "Seeded",
    "ImageRequirements",
    "SparseFormat",
    "StoredTeacher",
    "Teacher",
    "Teachers",
    "TextSource",
    "View",
    "compute_sparse_answers",
    "describe_text_store",
    "gather_answers",
    "host_draws",
    "load",
    "mean_probabilities",
    "open_image_store",
    "open_text_store",
    "precompute_steps",
    "precompute_text",
    "precompute_views",
    "store_given_logits",
    "view_key",
    "with_classes_of",
]
