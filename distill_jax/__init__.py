"""distill_jax: knowledge distillation in JAX and Flax NNX.

A student is trained to match a teacher in one compiled step, on one device or on many.

    import distill_jax

    # A whole run, from a config: trains, evaluates, saves, and resumes after a kill.
    distill_jax.run({"data": {"name": "digits"}, "student": {"name": "mlp"}}, "runs/teacher")

    # Or the parts, for a training loop of your own.
    teacher = distill_jax.models.load("runs/teacher")       # spec, params, stats
    student = distill_jax.models.create("mlp", input_shape=(8, 8, 1), num_classes=10, seed=1)
    values = distill_jax.losses.soft_target(student_logits, teacher_logits, temperature=4.0)  # [B]
    method = distill_jax.methods.create("dkd")              # a published recipe as one callable
    digits = distill_jax.data.load("digits", "train")

The names, each imported when it is first used, so that `import distill_jax` loads no JAX:

    run         run(config, workdir) -> Result
    losses      pure functions of arrays, one value per example
    methods     what a student is trained to match: losses, taps and trained adapters
    models      image classifiers and their files; decoders are in `distill_jax.models.language`
    data        images; text is in `distill_jax.data.text`
    teachers    saved networks, several of them, moving averages, precomputed answers

`distill-jax --help` lists the commands.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill_jax import data, losses, methods, models, teachers
    from distill_jax.runs.experiment import run

__version__ = "0.1.0"

__all__ = ["data", "losses", "methods", "models", "run", "teachers"]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "run":
        value = importlib.import_module("distill_jax.runs.experiment").run
    else:
        value = importlib.import_module(f"distill_jax.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
