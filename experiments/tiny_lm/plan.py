"""The runs of the study: networks, text and losses.

Every run is one of the configs `configs/lm_*.py` with the overrides of this file, so each can be
repeated by itself with `distill-jax train`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

from ml_collections import ConfigDict

from distill_jax import config as configs
from experiments.tiny_lm import corpus

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
ROWS = 8  # a step
LENGTH = 2 * corpus.HALF
STEPS = 100
TEACHER_STEPS = 800
WARMUP = 0.05  # of the steps
EVALUATIONS = 4
SEEDS = 3
SAMPLES = 4  # answers of the teacher to a question; about one of them fits into a row
RESPONSES = "responses.jsonl"  # the answers that the teacher ended itself

# Selected on validation documents by tune.py.
LEARNING_RATE = 4e-3
TEACHER_LEARNING_RATE = 2e-3


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table: students that differ only in their seed.

    Attributes:
      name: the start of the names of its runs' folders.
      title: its title in the table.
      config: a file of `configs/`.
      text: the file that the students are trained on.
      overrides: changes of the config.
    """

    name: str
    title: str
    config: str
    text: str = corpus.STUDENT
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)


FORWARD = {"method.hard_weight": "0.0", "method.soft_weight": "1.0"}
REVERSE = {**FORWARD, "method.name": "reverse_kl"}
JSD = {"method.beta": "0.5"}
OFF_POLICY = {"rollout.probability": "0.0"}
ROLLOUT = {"rollout.max_new_tokens": str(corpus.HALF)}

ARMS: tuple[Arm, ...] = (
    Arm("hard", "the text alone", "lm_sequence"),
    Arm("forward_kl", "forward KL", "lm_logits", overrides=FORWARD),
    Arm("reverse_kl", "reverse KL", "lm_logits", overrides=REVERSE),
    Arm("jsd", "JSD, β = 0.5", "lm_on_policy", overrides={**JSD, **OFF_POLICY}),
    Arm(
        "logits_and_hard", "forward KL and the text, 1 : 1", "lm_logits",
        overrides={"method.hard_weight": "0.5", "method.soft_weight": "0.5"},
    ),
    Arm("sequence", "what the teacher wrote", "lm_sequence", RESPONSES),
    Arm("on_policy", "JSD, half of the batches written by the student", "lm_on_policy",
        overrides={**JSD, **ROLLOUT}),
    Arm("few_hard", "an eighth of the text: the text alone", "lm_sequence", corpus.FEW),
    Arm("few_forward_kl", "an eighth of the text: forward KL", "lm_logits", corpus.FEW, FORWARD),
)  # fmt: skip
ARM = {arm.name: arm for arm in ARMS}

STUDENT = {"student.layers": "(0, 4)"}  # the first and the last of the teacher's five


def _shared(steps: int, documents: float, seed: int) -> dict[str, str]:
    """The keys that teacher and students share; `documents` is the number of rows of their text."""
    epochs = steps * ROWS / documents
    return {
        "seed": str(seed),
        "data.length": str(LENGTH),
        "data.validation": "0",
        "training.steps": str(steps),
        "training.batch_size": str(ROWS),
        "training.compute_dtype": "float32",
        "training.remat": "none",
        "optimizer.learning_rate": str(LEARNING_RATE),
        "schedule.warmup_epochs": repr(WARMUP * epochs),
        "evaluation.every_epochs": repr(epochs / EVALUATIONS),
        "evaluation.batch_size": str(ROWS),
        "checkpoint.every_epochs": repr(epochs / EVALUATIONS),
        "logging.progress": "off",
        "logging.tensorboard": "false",
        "logging.every_steps": str(min(20, steps)),
        "mesh.data": "1",
    }


def teacher_config(text: corpus.Corpus, steps: int) -> ConfigDict:
    """The teacher: stories260K, trained further on all but validation and test documents."""
    return configs.load(
        str(CONFIGS / "lm_sequence.py"),
        {
            # The number of rows is not known before packing, and nothing depends on it.
            **_shared(steps, text.documents[corpus.TEACHER], 0),
            "schedule.warmup_epochs": "0.0",
            "evaluation.every_epochs": "0.0",
            "checkpoint.every_epochs": "0.0",
            "checkpoint.every_steps": "200",
            "data.path": str(text.folder / corpus.TEACHER),
            "data.test_path": str(text.folder / corpus.TEST),
            "data.tokenizer": str(text.tokenizer),
            "student.path": str(text.stories),
            "optimizer.learning_rate": str(TEACHER_LEARNING_RATE),
        },
    )


def student_config(
    arm: Arm,
    seed: int,
    text: corpus.Corpus,
    teacher: pathlib.Path,
    steps: int,
    overrides: Mapping[str, str] | None = None,
) -> ConfigDict:
    """The resolved config of a student.

    Args:
      arm: the arm.
      seed: the seed of the order of the text, and of the student's samples.
      text: the prepared text, with `RESPONSES` for an arm that reads them.
      teacher: the workdir of the teacher's run. Every arm names it; those whose loss does not use
        it compare the student with it in evaluations only.
      steps: training steps.
      overrides: further changes, such as another file of test documents.
    """
    return configs.load(
        str(CONFIGS / f"{arm.config}.py"),
        {
            **_shared(steps, text.documents[arm.text], seed),
            **STUDENT,
            "data.packing": "single",
            "data.long": "cut",
            "data.path": str(text.folder / arm.text),
            "data.test_path": str(text.folder / corpus.TEST),
            "data.tokenizer": str(text.tokenizer),
            "evaluation.track_test": "true",
            "evaluation.test_prompts": str(text.folder / corpus.TEST),
            "evaluation.max_prompts": "32",
            "evaluation.prompt_batch_size": "32",
            "evaluation.max_new_tokens": str(corpus.HALF),
            "teacher.path": f"({str(teacher)!r},)",
            "teacher.compute_dtype": "float32",
            **arm.overrides,
            **(overrides or {}),
        },
    )
