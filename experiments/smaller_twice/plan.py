"""The models of the study, their text, and the commands that make them."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator

import numpy as np

from distill_jax.data import text
from distill_jax.data.text import chat
from distill_jax.errors import UsageError

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
TOKENS = 1_000_000  # that a student is trained on
LENGTH, ROWS = 256, 8
TEACHER_LAYERS = 30
SIZES = (24, 18, 12)
LEARNING_RATE = 3e-4
AWARE_PART = 4  # quantization-aware training goes on for a quarter of the tokens
AWARE_RATE = 3e-5
TYPES = ("f16", "q8_0", "q4_0")
SOURCES = ("dolly_dev.jsonl", "wikitext2_valid.txt", "wikitext2_test.txt", "dolly_valid.jsonl")

#: How a student is trained -> the config and the keys that it needs besides.
METHODS = {"text": "lm_sequence", "stored": "lm_stored"}


@dataclasses.dataclass(frozen=True)
class Student:
    """One dense student.

    Attributes:
      layers: how many of the teacher's it has.
      method: of `METHODS`: the text alone, or the teacher's stored answers.
      seed: of the order of the rows.
    """

    layers: int
    method: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.layers}-{self.method}-seed{self.seed}"

    @property
    def chosen(self) -> tuple[int, ...]:
        """The numbers of its layers in the teacher, at even distances, first and last included."""
        return tuple(int(i) for i in np.linspace(0, TEACHER_LAYERS - 1, self.layers).round())


@dataclasses.dataclass(frozen=True)
class Row:
    """One file of the table.

    Attributes:
      model: "teacher" or the name of a student.
      type: of the file.
      aware: whether the student's training went on with 4 bits.
    """

    model: str
    type: str
    aware: bool = False

    @property
    def name(self) -> str:
        return f"{self.model}-{self.type}{'-aware' if self.aware else ''}"


def students(seeds: int, sizes: tuple[int, ...] = SIZES) -> Iterator[Student]:
    """All students: of each size and method, by seed; the smallest first."""
    for seed in range(seeds):
        for layers in sorted(sizes):
            for method in METHODS:
                yield Student(layers, method, seed)


def rows(model: str) -> Iterator[Row]:
    """The files of a model."""
    yield from (Row(model, kind) for kind in TYPES)
    if model != "teacher":
        yield Row(model, "q4_0", aware=True)


def write_texts(data: pathlib.Path, tokenizer: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes train.jsonl: dolly's conversations in the teacher's template, and wikitext-2's text.

    Args:
      data: the folder with `SOURCES`.
      tokenizer: folder of the teacher's.
      folder: where to write; what is there is kept.
    """
    if (folder / "train.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    loaded = text.load_tokenizer(tokenizer)
    template = chat.load(loaded)
    lines = []
    for line in (data / "dolly_dev.jsonl").read_text().splitlines():
        record = json.loads(line)
        messages = [question(record), {"role": "assistant", "content": record["output"]}]
        lines.append(template.render(messages))
    paragraphs = (data / "wikitext2_valid.txt").read_text().split("\n = ")
    lines += [f" = {part}" if number else part for number, part in enumerate(paragraphs)]
    content = "".join(json.dumps({"text": line}) + "\n" for line in lines if line.strip())
    (folder / "train.jsonl").write_text(content)


def question(record: dict) -> dict[str, str]:
    """The user's message of a record of dolly."""
    content = "\n\n".join(part for part in (record["instruction"], record["input"]) if part)
    return {"role": "user", "content": content}


def find_data(given: pathlib.Path) -> pathlib.Path:
    """The folder of the texts.

    Raises:
      UsageError: it lacks one of them.
    """
    for folder in (given, given / "text"):
        if all((folder / name).is_file() for name in SOURCES):
            return folder
    raise UsageError(f"--data={given}: expected a folder with {', '.join(SOURCES)}")


def keys(root: pathlib.Path, tokens: int, rate: float) -> dict[str, object]:
    """The config keys that all students share."""
    steps = max(1, tokens // (LENGTH * ROWS))
    return {
        "data.path": root / "text" / "train.jsonl",
        "data.tokenizer": root / "teacher",
        "data.length": LENGTH,
        "data.validation": 0.01,
        "training.steps": steps,
        "training.batch_size": ROWS,
        "training.compute_dtype": "float32",
        "training.remat": "none",
        "optimizer.learning_rate": rate,
        "schedule.warmup_epochs": 0.0,
        "evaluation.every_epochs": 0.0,
        "evaluation.batch_size": ROWS,
        "checkpoint.every_epochs": 0.0,
        "checkpoint.every_steps": 50,
        "logging.progress": "off",
        "logging.tensorboard": "false",
        "logging.every_steps": min(10, steps),
        "mesh.data": 1,
    }


def train_command(root: pathlib.Path, student: Student, tokens: int) -> list[str]:
    """`distill-jax train` of a dense student."""
    own = {
        **keys(root, tokens, LEARNING_RATE),
        "seed": student.seed,
        "student.path": root / "teacher",
        "student.layers": student.chosen,
    }
    return _command(
        root, "train", METHODS[student.method], root / student.name, _answers(student, root, own)
    )


def aware_command(root: pathlib.Path, student: Student, tokens: int) -> list[str]:
    """`distill-jax train` that goes on from a dense student with its matrices on the Q4_0 grid."""
    own = {
        **keys(root, tokens // AWARE_PART, AWARE_RATE),
        "seed": student.seed,
        "student.path": root / student.name / "model",
        "student.quantize": "q4_0",
    }
    workdir = root / f"{student.name}-aware"
    return _command(root, "train", METHODS[student.method], workdir, _answers(student, root, own))


def _answers(student: Student, root: pathlib.Path, own: dict[str, object]) -> dict[str, object]:
    return own | ({"teacher.store": root / "store"} if student.method == "stored" else {})


def store_command(root: pathlib.Path, tokens: int) -> list[str]:
    """`distill-jax precompute`: 50 draws of each token of the teacher, which all students share."""
    own = {**keys(root, tokens, LEARNING_RATE), "teacher.path": root / "teacher"}
    own["student.path"] = root / "teacher"  # which is not read; any student can use the answers
    own["teacher.compute_dtype"] = "float32"
    return _command(root, "precompute", "lm_stored", root / "store", own)


def _command(
    root: pathlib.Path, verb: str, config: str, workdir: pathlib.Path, own: dict[str, object]
) -> list[str]:
    overrides = [f"--config.{key}={value}" for key, value in own.items()]
    return [verb, f"--config={CONFIGS / config}.py", f"--workdir={workdir}", *overrides]
