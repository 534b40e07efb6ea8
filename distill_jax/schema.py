"""Every key a run may have: its default, what it accepts and one line of meaning.

The table `SCHEMA` is the whole surface of a config, but for the options of the named model and
method (`student.*`, `method.*`), which come from their signatures. `config.py` reads files against
this table; `distill-jax train --help-config` prints it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from distill_jax import methods, models
from distill_jax.data.text.packing import LONG
from distill_jax.data.text.packing import STRATEGIES as PACKING
from distill_jax.data.text.sources import DOCUMENTS, FIELDS
from distill_jax.generation import METRICS
from distill_jax.models.language.decoder import REMAT
from distill_jax.models.language.int8 import CHOICES as QUANTIZE
from distill_jax.models.language.student import STUDENT_NAME as DECODER
from distill_jax.training import optimizers, schedules

Check = Callable[[Any], Any]  # returns the value in its canonical form or raises ValueError


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      default: the value where a config says nothing.
      check: turns what a config says into the canonical value, or raises ValueError.
      expected: what the check accepts, in words.
      meaning: one line for a reader.
      lasting: whether a resumed run must have the same value.
    """

    default: Any
    check: Check
    expected: str
    meaning: str
    lasting: bool = True


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _within(value: float, low: float, high: float, open_low: bool, open_high: bool) -> None:
    below = value <= low if open_low else value < low
    if below or (value >= high if open_high else value > high):
        raise ValueError


def integer(default: int, meaning: str, *, low: int = 0, high: int = 2**31 - 1, **kwargs) -> Key:
    def check(value: Any) -> int:
        value = _integer(value)
        _within(value, low, high, False, False)
        return value

    words = f"an integer >= {low}" if high == 2**31 - 1 else f"an integer from {low} to {high}"
    return Key(default, check, words, meaning, **kwargs)


def number(
    default: float,
    meaning: str,
    *,
    low: float = 0.0,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    **kwargs,
) -> Key:
    def check(value: Any) -> float:
        value = _number(value)
        _within(value, low, high, open_low, open_high and math.isfinite(high))
        return value

    words = f"a number {'>' if open_low else '>='} {low:g}"
    if math.isfinite(high):
        words = (
            f"a number in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        )
    return Key(default, check, words, meaning, **kwargs)


def flag(default: bool, meaning: str, **kwargs) -> Key:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    return Key(default, check, "true or false", meaning, **kwargs)


def text(default: str, meaning: str, **kwargs) -> Key:
    def check(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError
        return value

    return Key(default, check, "a text", meaning, **kwargs)


def choice(default: str, names: Iterable[str], meaning: str, **kwargs) -> Key:
    names = tuple(names)

    def check(value: Any) -> str:
        if value not in names:
            raise ValueError
        return value

    return Key(default, check, "one of " + ", ".join(names), meaning, **kwargs)


def several(default: tuple, item: Check, words: str, meaning: str, **kwargs) -> Key:
    def check(value: Any) -> tuple:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            raise ValueError
        return tuple(item(part) for part in value)

    return Key(default, check, words, meaning, **kwargs)


def scheduled(
    default: float | str, meaning: str, *, low: float = 0.0, open_low: bool = False
) -> Key:
    def check(value: Any) -> float | str:
        schedule = schedules.parse(value)
        _within(schedule.extremes[0], low, math.inf, open_low, False)
        return schedule.start if schedule.kind == "constant" else value

    words = f"{schedules.EXPECTED}, {'>' if open_low else '>='} {low:g} throughout"
    return Key(default, check, words, meaning)


def _share_or_count(value: Any) -> float | int:
    if isinstance(value, float) and not value.is_integer():
        _within(value, 0.0, 1.0, False, True)
        return value
    value = _integer(value)
    _within(value, 0, math.inf, False, False)
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _metric(value: Any) -> str:
    if value not in METRICS:
        raise ValueError
    return value


def _class_index(value: Any) -> int:
    value = _integer(value)
    _within(value, 0, math.inf, False, False)
    return value


def _positive(value: Any) -> float:
    value = _number(value)
    _within(value, 0.0, math.inf, True, False)
    return value


def _not_negative(value: Any) -> float:
    value = _number(value)
    _within(value, 0.0, math.inf, False, False)
    return value


DTYPES = ("float32", "bfloat16")

SCHEMA: dict[str, Key] = {
    "seed": integer(0, "seed of the initial parameters, the order, the views and the dropout"),
    "imports": several(
        (),
        _path,
        "module names, or paths of .py files",
        "modules that register models, methods or data sets of your own",
    ),
    # data
    "data.name": text(
        "digits", "digits, idx, npz, folder, text, or any TFDS image-classification set"
    ),
    "data.path": text("", "folder or file of the idx, npz, folder and text sets", lasting=False),
    "data.tfds_dir": text("", "folder of prepared TFDS sets; empty: TFDS's own", lasting=False),
    "data.image_size": integer(0, "resize the shorter side to this and crop the centre; 0: as is"),
    "data.validation": Key(
        0.1,
        _share_or_count,
        "a fraction in [0, 1) or a count",
        "part of the training split held out to select a model; 0: none",
    ),
    "data.split_seed": integer(0, "seed of the split: one split for every run, whatever its seed"),
    "data.fraction": number(1.0, "part of the training data that is used", high=1.0, open_low=True),
    "data.only_classes": several(
        (), _class_index, "class indices >= 0", "train on these classes alone; (): all"
    ),
    "data.exclude_classes": several(
        (), _class_index, "class indices >= 0", "leave these classes out of the training data"
    ),
    "data.resident": choice(
        "auto",
        ("auto", "yes", "no"),
        "whole set on the device as uint8, or streamed; auto: up to 4 GiB",
        lasting=False,
    ),
    "data.workers": integer(
        0, "grain worker processes of a streamed set; 0: in this process", lasting=False
    ),
    "data.mean": several(
        (), _number, "numbers, one a channel", "mean of the pixels in [0, 1]; (): measured"
    ),
    "data.std": several(
        (), _positive, "numbers > 0, one a channel", "deviation of the pixels; (): measured"
    ),
    "data.augment.crop_padding": integer(
        0, "pixels of padding before a random crop: shifts by up to this many"
    ),
    "data.augment.padding_mode": choice("zero", ("zero", "reflect"), "what the padding holds"),
    "data.augment.flip": flag(False, "horizontal flip with probability 1/2"),
    "data.augment.color_jitter": number(
        0.0, "brightness and contrast factors in 1 ± this", high=1.0, open_high=True
    ),
    "data.augment.mixup": number(0.0, "alpha of mixup's Beta distribution; 0: off"),
    "data.augment.cutmix": number(0.0, "alpha of cutmix's Beta distribution; 0: off"),
    "data.augment.strong_ops": integer(
        0, "RandAugment operations of the strong view; only methods with one (mlkd) read it"
    ),
    "data.augment.strong_cutout": number(
        0.5,
        "side of the grey square in the strong view, a part of the image's; 0: none; mlkd alone",
        high=1.0,
    ),
    # text
    "data.tokenizer": text(
        "", "folder or file of the tokenizer; empty: the teacher's, or the student's", lasting=False
    ),
    "data.length": integer(512, "tokens of a row, T; a batch is training.batch_size rows", low=2),
    "data.packing": choice(
        "whole",
        PACKING,
        "documents stay whole where they fit, run on from row to row, or have a row each",
    ),
    "data.long": choice("split", LONG, "documents longer than a row go on in another, or are cut"),
    "data.documents": choice(
        "blank_line", DOCUMENTS, "what is a document in a .txt file: up to a blank line, ..."
    ),
    "data.fields": text(
        "",
        "where prompt and response stand in a record: " + ", ".join(FIELDS) + "; empty: as named",
    ),
    "data.test_path": text(
        "", "file of the test documents; empty: as many as validation, held out", lasting=False
    ),
    # on-policy distillation
    "rollout.probability": number(
        0.0,
        "probability that the student itself writes the responses of a batch, lambda; 0: never",
        high=1.0,
    ),
    "rollout.max_new_tokens": integer(128, "tokens of the longest such response", low=1),
    "rollout.prompt_tokens": integer(
        1, "tokens of a prompt, at least: of a text without one, its first", low=1
    ),
    "rollout.temperature": number(1.0, "temperature of the student's draws; 0: greedy"),
    "rollout.top_k": integer(0, "draw among the k most likely tokens; 0: all"),
    "rollout.top_p": number(
        1.0, "draw among the most likely tokens of this mass", high=1.0, open_low=True
    ),
    # models
    "student.name": text(
        "mlp", f"what is trained: {DECODER} (of text), " + ", ".join(models.names())
    ),
    "teacher.path": several(
        (), _path, "paths", "workdirs or model folders of the teachers; (): none", lasting=False
    ),
    "teacher.weights": several(
        (), _not_negative, "numbers >= 0, one a teacher", "weights of the teachers; (): equal"
    ),
    "teacher.combine": choice(
        "mean_probabilities",
        ("mean_probabilities", "sum_losses"),
        "several teachers: one mean distribution, or a loss to each",
    ),
    "teacher.store": text(
        "", "folder of stored answers, made by `distill-jax store`; empty: none", lasting=False
    ),
    "teacher.resident": choice(
        "auto",
        ("auto", "yes", "no"),
        "stored answers on the device, or read batch by batch; auto: up to 4 GiB",
        lasting=False,
    ),
    "teacher.own_average": flag(
        False, "the teacher is the student's own moving average (training.ema_decay)"
    ),
    "teacher.look_ahead": integer(
        0, "steps whose teacher answers are computed at once; 0: 1 on a CPU, more on others"
    ),
    "teacher.compute_dtype": choice("float32", DTYPES, "dtype of the teachers' computation"),
    "teacher.quantize": choice(
        "none", QUANTIZE, "int8: the teacher's matrices, one scale a channel; the rest stays"
    ),
    # method
    "method.name": text(
        "supervised", "the loss, or several joined by +: " + ", ".join(methods.names())
    ),
    "method.hard_weight": scheduled(1.0, "weight of the cross-entropy with the labels"),
    "method.soft_weight": scheduled(
        1.0, "weight of the loss against the teacher; default: the published one of the method"
    ),
    "method.temperature": scheduled(4.0, "temperature T of the soft targets", open_low=True),
    "method.label_smoothing": number(
        0.0, "mass spread over all classes in the hard targets", high=1.0, open_high=True
    ),
    # optimizer
    "optimizer.name": text("sgd", "the optimizer: " + ", ".join(optimizers.NAMES)),
    "optimizer.learning_rate": number(0.1, "learning rate after the warm-up", open_low=True),
    "optimizer.momentum": number(0.9, "momentum of sgd and muon", high=1.0, open_high=True),
    "optimizer.nesterov": flag(False, "Nesterov's momentum (sgd)"),
    "optimizer.b1": number(0.9, "first decay rate (adamw, lion)", high=1.0, open_high=True),
    "optimizer.b2": number(0.999, "second decay rate (adamw, lion)", high=1.0, open_high=True),
    "optimizer.weight_decay": number(
        0.0, "sgd: L2 term in the gradient; others: decoupled, times the learning rate"
    ),
    "optimizer.decay_mask": choice(
        "all", ("all", "kernels"), "what decays: everything, or kernels alone (no bias, no norm)"
    ),
    "optimizer.clip_norm": number(0.0, "largest global norm of the gradient; 0: off"),
    "optimizer.max_norm": number(
        0.0, "largest norm of a unit's incoming weights, in dense layers; 0: off"
    ),
    # learning-rate schedule
    "schedule.name": choice("cosine", optimizers.SCHEDULES, "shape of the learning rate"),
    "schedule.warmup_epochs": number(0.0, "epochs of linear warm-up from 0"),
    "schedule.milestones": several(
        (), _positive, "epochs > 0", "step: epochs after which the rate is multiplied"
    ),
    "schedule.factor": number(0.1, "step: the multiplier", open_low=True, high=1.0),
    "schedule.end_factor": number(
        0.0, "cosine, linear: last rate as a part of the first", high=1.0
    ),
    # training
    "training.epochs": number(10.0, "passes over the training data", open_low=True),
    "training.steps": integer(0, "number of steps, in place of epochs; 0: by epochs"),
    "training.batch_size": integer(128, "examples a step, over all devices", low=1),
    "training.accumulate": integer(1, "parts of a batch whose gradients add up", low=1),
    "training.ema_decay": number(
        0.0,
        "decay a step of the averaged student that is evaluated and saved; 0: off",
        high=1.0,
        open_high=True,
    ),
    "training.remat": choice(
        "none", REMAT, "what a decoder's layer computes again for its gradient", lasting=False
    ),
    "training.compute_dtype": choice("float32", DTYPES, "dtype of the student's computation"),
    "training.steps_per_call": integer(
        0, "steps in one compiled call; 0: 1 on a CPU, up to 32 on others", lasting=False
    ),
    "training.deterministic": flag(
        True, "on a GPU: refuse kernels whose sums have no fixed order", lasting=False
    ),
    # evaluation
    "evaluation.every_epochs": number(
        1.0, "epochs between evaluations on the validation split; 0: at the end alone"
    ),
    "evaluation.batch_size": integer(500, "examples a step of evaluation", low=1),
    "evaluation.track_test": flag(
        False, "evaluate the test split as often: shown beside the last epoch, chooses nothing"
    ),
    "evaluation.select": choice(
        "accuracy",
        ("accuracy", "nll", *METRICS),
        "validation figure that chooses the selected model",
    ),
    "evaluation.prompts": text(
        "",
        "JSONL of prompts with responses, answered at each evaluation; empty: none",
        lasting=False,
    ),
    "evaluation.test_prompts": text(
        "", "the same for the figures of the test split; empty: none", lasting=False
    ),
    "evaluation.fields": choice(
        "same",
        ("same", "named", *FIELDS),
        "where they stand in a line; same: data.fields, named: prompt or messages, and response",
    ),
    "evaluation.max_prompts": integer(0, "prompts of a file that are used, the first; 0: all"),
    "evaluation.max_new_tokens": integer(256, "tokens of the longest answer", low=1),
    "evaluation.prompt_batch_size": integer(32, "prompts that are answered at a time", low=1),
    "evaluation.metrics": several(
        ("rouge_l",),
        _metric,
        "names among " + ", ".join(METRICS),
        "what compares an answer with the response, each in [0, 1]",
    ),
    # checkpoints
    "checkpoint.every_epochs": number(
        1.0, "epochs between checkpoints; 0: at the end and on SIGTERM alone", lasting=False
    ),
    "checkpoint.every_steps": integer(0, "steps between checkpoints, besides", lasting=False),
    "checkpoint.keep_last": integer(2, "newest checkpoints that are kept", low=1, lasting=False),
    # logging
    "logging.every_steps": integer(50, "steps between lines of metrics.jsonl", low=1),
    "logging.progress": choice(
        "auto", ("auto", "plain", "off"), "bar on a terminal, lines elsewhere", lasting=False
    ),
    "logging.tensorboard": flag(True, "write TensorBoard files", lasting=False),
    "logging.wandb": text("", "Weights & Biases project; empty: off", lasting=False),
    # mesh
    "mesh.data": integer(-1, "devices along the axis of the batch; -1: all", low=-1, lasting=False),
    "mesh.fsdp": integer(
        1, "devices that share the parameters' shards (1 so far)", low=1, high=1, lasting=False
    ),
    "mesh.tensor": integer(
        1, "devices that share a layer (1 so far)", low=1, high=1, lasting=False
    ),
}

TEXT = "text"  # of data.name: a run on text, with a decoder
# What is answered, and how: nothing but the figures of evaluations depends on it.
ANSWERS = tuple(
    "evaluation." + name
    for name in ("prompts", "test_prompts", "fields", "max_prompts", "max_new_tokens")
) + ("evaluation.prompt_batch_size", "evaluation.metrics")
TEXT_ALONE = (
    *ANSWERS,
    *("data." + name for name in ("tokenizer", "length", "packing", "long", "documents")),
    *("data.fields", "data.test_path", "training.remat", "teacher.quantize"),
    *("rollout." + name for name in ("probability", "max_new_tokens", "prompt_tokens")),
    *("rollout." + name for name in ("temperature", "top_k", "top_p")),
)
IMAGES_ALONE = (
    *("data." + name for name in ("tfds_dir", "image_size", "only_classes", "exclude_classes")),
    *("data.mean", "data.std", "data.workers", "data.resident"),
    *("teacher." + name for name in ("weights", "store", "own_average", "look_ahead", "resident")),
    *("method.label_smoothing", "optimizer.max_norm", "teacher.combine"),
)

SECTIONS = tuple(dict.fromkeys(path.split(".")[0] for path in SCHEMA))


def describe() -> str:
    """Every key with its default, what it accepts and its meaning, for `--help-config`."""
    lines = ["Keys of a config: default · accepted values · meaning", ""]
    section = None
    for path, key in SCHEMA.items():
        if path.split(".")[0] != section:
            section = path.split(".")[0]
            lines.append(f"[{section}]")
        lines.append(f"  {path} = {key.default!r}")
        lines.append(f"      {key.expected}")
        lines.append(f"      {key.meaning}")
    lines.append("")
    for title, prefix, room in (("Models", "student", models), ("Methods", "method", methods)):
        lines.append(f"{title} and their options:")
        for name in room.names():
            options = ", ".join(f"{prefix}.{k}={v!r}" for k, v in room.options(name).items())
            lines.append(f"  {name}: {options or 'no options'}")
    return "\n".join(lines)
