"""Every key a run may have: its default, what it accepts and one line of meaning.

The table `SCHEMA` is the whole surface of a config, but for the options of the named model and
method (`student.*`, `method.*`), which come from their signatures.
`distill-jax train --help-config` prints it.
"""

from typing import Any, Final

from distill_jax import kernels, methods, models, parallel
from distill_jax.config import keys
from distill_jax.data.text.chat import TURNS
from distill_jax.data.text.packing import LONG
from distill_jax.data.text.packing import STRATEGIES as PACKING
from distill_jax.data.text.sources import DOCUMENTS, FIELDS, parse_fields
from distill_jax.errors import UsageError
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.models.class_names import CHOICES as CLASSES
from distill_jax.models.language.attention import IMPLEMENTATIONS as ATTENTION
from distill_jax.models.language.quantized import CHOICES as QUANTIZE
from distill_jax.models.language.remat import REMAT
from distill_jax.models.language.student import STUDENT_NAME as DECODER
from distill_jax.optim import optimizers
from distill_jax.quantization.recipes import RECIPES


def _check_metric(value: Any) -> str:
    if value not in METRICS:
        raise ValueError
    return value


def _check_fields(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    try:
        parse_fields(value)
    except UsageError:
        raise ValueError from None
    return value


def _check_part(value: Any) -> str:
    if value not in parallel.PARTS:
        raise ValueError
    return value


#: The kinds of data that a key may be for; TEXT is also a value of data.name.
TEXT: Final = "text"
IMAGES: Final = "images"
DTYPES = ("float32", "bfloat16")

SCHEMA: dict[str, keys.Key] = {
    "seed": keys.integer(0, "seed of the initial parameters, order, augmentation and dropout"),
    "imports": keys.several(
        (),
        keys.local_path,
        "module names, or paths of .py files",
        "modules that register your own models, methods or data sets",
    ),
    # data
    "data.name": keys.text(
        "digits", "digits, idx, npz, folder, text, or any TFDS image-classification set"
    ),
    "data.path": keys.file(
        "", "folder or file of the idx, npz, folder and text sets", lasting=False
    ),
    "data.tfds_dir": keys.file(
        "", "folder of prepared TFDS sets; empty: TFDS's own", lasting=False, only=IMAGES
    ),
    "data.image_size": keys.integer(
        0, "resize the shorter side to this and crop the centre; 0: as is", only=IMAGES
    ),
    "data.validation": keys.Key(
        0.1,
        keys.share_or_count,
        "a fraction in [0, 1) or a count",
        "part of the training split held out to select a model, such as 0.1 or 5000; 0: none",
    ),
    "data.split_seed": keys.integer(0, "seed of the validation split, independent of `seed`"),
    "data.fraction": keys.number(
        1.0, "fraction of the training data to use", high=1.0, open_low=True
    ),
    "data.only_classes": keys.several(
        (),
        keys.class_index,
        "class indices >= 0",
        "train on these classes only; (): all",
        only=IMAGES,
    ),
    "data.exclude_classes": keys.several(
        (),
        keys.class_index,
        "class indices >= 0",
        "leave these classes out of the training data",
        only=IMAGES,
    ),
    "data.resident": keys.choice(
        "auto",
        ("auto", "yes", "no"),
        "keep the data on the device, as uint8, or stream it; auto: up to 4 GiB, no resized_crop",
        lasting=False,
        only=IMAGES,
    ),
    "data.workers": keys.integer(
        0,
        "grain worker processes for streamed data; 0: this process",
        lasting=False,
        only=IMAGES,
    ),
    "data.mean": keys.several(
        (),
        keys.finite,
        "numbers, one a channel",
        "mean of the pixels in [0, 1]; (): measured",
        only=IMAGES,
    ),
    "data.std": keys.several(
        (),
        keys.positive,
        "numbers > 0, one a channel",
        "standard deviation of the pixels; (): measured",
        only=IMAGES,
    ),
    "data.augment.crop_padding": keys.integer(
        0, "padding in pixels before a random crop, the largest shift", only=IMAGES
    ),
    "data.augment.padding_mode": keys.choice(
        "zero", ("zero", "reflect"), "content of the padding", only=IMAGES
    ),
    "data.augment.resized_crop": keys.number(
        0.0,
        "smallest area of a random resized crop, of streamed images; usually 0.08; 0: off",
        high=1.0,
        only=IMAGES,
    ),
    "data.augment.flip": keys.flag(False, "horizontal flip with probability 1/2", only=IMAGES),
    "data.augment.color_jitter": keys.number(
        0.0, "brightness and contrast factors in 1 ± this", high=1.0, open_high=True, only=IMAGES
    ),
    "data.augment.mixup": keys.number(
        0.0, "alpha of mixup's Beta distribution; 0: off", only=IMAGES
    ),
    "data.augment.cutmix": keys.number(
        0.0, "alpha of cutmix's Beta distribution; 0: off", only=IMAGES
    ),
    "data.augment.strong_ops": keys.integer(
        0,
        "RandAugment operations of the strong view; only for methods that show one (mlkd)",
        only=IMAGES,
    ),
    "data.augment.strong_cutout": keys.number(
        0.5,
        "side of the grey square in the strong view, relative to the image; 0: none; only mlkd",
        high=1.0,
        only=IMAGES,
    ),
    # text
    "data.tokenizer": keys.file(
        "",
        "folder or file of the tokenizer; empty: the teacher's, or the student's",
        remote=True,
        lasting=False,
        only=TEXT,
    ),
    "data.length": keys.integer(
        512, "tokens in a row, T; a batch has training.batch_size rows", low=2, only=TEXT
    ),
    "data.packing": keys.choice(
        "whole",
        PACKING,
        "whole: no document is split that fits a row; concatenate: rows cut the stream of all "
        "documents; single: one document a row",
        only=TEXT,
    ),
    "data.long": keys.choice(
        "split",
        LONG,
        "split: a document longer than a row continues in others; cut: it is truncated",
        only=TEXT,
    ),
    "data.documents": keys.choice(
        "blank_line",
        DOCUMENTS,
        "what separates the documents of a .txt file",
        only=TEXT,
    ),
    "data.fields": keys.Key(
        "",
        _check_fields,
        f"one of {', '.join(FIELDS)}, or parts and their fields, such as 'prompt=question, "
        "response=answer' or 'messages=dialogue'",
        "the fields of a record that hold its parts: the name of a data set, or prompt=..., "
        "response=...; empty: messages, prompt and response, or text",
        only=TEXT,
    ),
    "data.chat": keys.flag(
        False,
        "write prompt and response, and the prompts of evaluations, by the chat template of the "
        "tokenizer",
        only=TEXT,
    ),
    "data.turns": keys.choice(
        "all",
        TURNS,
        "the turns of the assistant in a conversation that have a loss: all, or the last",
        only=TEXT,
    ),
    "data.test_path": keys.file(
        "",
        "file of the test documents; empty: hold out as many as for validation",
        lasting=False,
        only=TEXT,
    ),
    # on-policy distillation
    "rollout.probability": keys.number(
        0.0,
        "probability, lambda, that the student generates the responses of a batch; 0: never",
        high=1.0,
        only=TEXT,
    ),
    "rollout.max_new_tokens": keys.integer(
        128, "length of the longest generated response", low=1, only=TEXT
    ),
    "rollout.prompt_tokens": keys.integer(
        1,
        "tokens of the shortest prompt; a text without a prompt is cut after as many",
        low=1,
        only=TEXT,
    ),
    "rollout.temperature": keys.number(
        1.0, "temperature of the student's draws; 0: greedy", only=TEXT
    ),
    "rollout.top_k": keys.integer(0, "draw among the k most likely tokens; 0: all", only=TEXT),
    "rollout.top_p": keys.number(
        1.0, "draw among the most likely tokens of this mass", high=1.0, open_low=True, only=TEXT
    ),
    # models
    "student.name": keys.text(
        "mlp", f"the model to train: {DECODER} (text), " + ", ".join(models.names())
    ),
    "student.quantize": keys.text(
        "none",
        "train the student with quantized matrices, by a recipe as of `distill-jax quantize` "
        f"({', '.join(RECIPES)}, or rules PATTERN=GRID;PATTERN=GRID); none: as they are",
    ),
    "teacher.path": keys.several(
        (),
        keys.path_or_url,
        "paths",
        "workdirs or model folders of the teachers; (): none",
        lasting=False,
    ),
    "teacher.weights": keys.several(
        (), keys.not_negative, "numbers >= 0, one a teacher", "weights of the teachers; (): equal"
    ),
    "teacher.combine": keys.choice(
        "mean_probabilities",
        ("mean_probabilities", "sum_losses"),
        "several teachers: match their mean distribution, or sum the losses against each",
        only=IMAGES,
    ),
    "teacher.classes": keys.choice(
        "same",
        CLASSES,
        "same: a teacher whose class names differ from the data's is refused; by_name: its classes "
        "are put in the order of the data; by_position: class k is class k whatever the names",
        only=IMAGES,
    ),
    "teacher.licence": keys.several(
        (),
        keys.one_line,
        "names, one a teacher, such as apache-2.0",
        "licences of the teachers; (), or an empty name: what their folders name",
        lasting=False,
    ),
    "teacher.outputs_may_train_other_models": keys.several(
        (),
        keys.truth,
        "true or false, one a teacher",
        "your statement that a teacher's owner permits, or forbids, to train other models on its "
        "outputs; (): by its licence",
        lasting=False,
    ),
    "teacher.saw_validation": keys.choice(
        "unknown",
        ("unknown", "yes", "no"),
        "whether the teachers were trained on the examples that data.validation holds out here; "
        "unknown: their own records tell, where they have some",
        lasting=False,
    ),
    "teacher.store": keys.file(
        "",
        "folder of answers that `distill-jax precompute` wrote; empty: none; in a plan of text "
        "also sampled:50 or top_k:64",
        lasting=False,
    ),
    "teacher.resident": keys.choice(
        "auto",
        ("auto", "yes", "no"),
        "keep precomputed answers on the device, or read them for each batch; auto: up to 4 GiB",
        lasting=False,
        only=IMAGES,
    ),
    "teacher.own_average": keys.flag(
        False,
        "use the student's own moving average (training.ema_decay) as the teacher",
        only=IMAGES,
    ),
    "teacher.look_ahead": keys.integer(
        0,
        "steps whose teacher outputs are computed at once; 0: 1 on a CPU, more on accelerators",
        only=IMAGES,
    ),
    "teacher.compute_dtype": keys.choice("float32", DTYPES, "dtype of the teachers' computation"),
    "teacher.quantize": keys.choice(
        "none",
        QUANTIZE,
        "int8: quantize the teacher's matrices, one scale for each channel",
        only=TEXT,
    ),
    # method
    "method.name": keys.text(
        "supervised", "the method, or several joined by +: " + ", ".join(methods.names())
    ),
    "method.hard_weight": keys.scheduled(1.0, "weight of the cross-entropy with the labels"),
    "method.soft_weight": keys.scheduled(
        1.0, "weight of the loss against the teacher; default: the method's published weight"
    ),
    "method.temperature": keys.scheduled(4.0, "temperature T of the soft targets", open_low=True),
    "method.label_smoothing": keys.number(
        0.0,
        "probability spread over all classes in the hard targets",
        high=1.0,
        open_high=True,
        only=IMAGES,
    ),
    # optimizer
    "optimizer.name": keys.text("sgd", "the optimizer: " + ", ".join(optimizers.NAMES)),
    "optimizer.learning_rate": keys.number(0.1, "learning rate after the warm-up", open_low=True),
    "optimizer.momentum": keys.number(0.9, "momentum of sgd and muon", high=1.0, open_high=True),
    "optimizer.nesterov": keys.flag(False, "Nesterov's momentum (sgd)"),
    "optimizer.b1": keys.number(0.9, "first decay rate (adamw, lion)", high=1.0, open_high=True),
    "optimizer.b2": keys.number(0.999, "second decay rate (adamw, lion)", high=1.0, open_high=True),
    "optimizer.weight_decay": keys.number(
        0.0, "sgd: L2 term in the gradient; other optimizers: decoupled, times the learning rate"
    ),
    "optimizer.decay_mask": keys.choice(
        "all",
        ("all", "kernels"),
        "the parameters that decay: all, or only kernels (no bias, no norm)",
    ),
    "optimizer.clip_norm": keys.number(0.0, "clip the global norm of the gradient to this; 0: off"),
    "optimizer.max_norm": keys.number(
        0.0, "largest norm of the incoming weights of a unit in dense layers; 0: off", only=IMAGES
    ),
    # learning-rate schedule
    "schedule.name": keys.choice("cosine", optimizers.SCHEDULES, "shape of the learning rate"),
    "schedule.warmup_epochs": keys.number(0.0, "epochs of linear warm-up from 0"),
    "schedule.milestones": keys.several(
        (), keys.positive, "epochs > 0", "step: epochs after which the rate is multiplied by factor"
    ),
    "schedule.factor": keys.number(0.1, "step: the multiplier", open_low=True, high=1.0),
    "schedule.end_factor": keys.number(
        0.0, "cosine, linear: last rate relative to the first", high=1.0
    ),
    # training
    "training.epochs": keys.number(10.0, "passes over the training data", open_low=True),
    "training.steps": keys.integer(0, "number of steps, overrides epochs; 0: use epochs"),
    "training.batch_size": keys.integer(128, "examples in a step, over all devices", low=1),
    "training.accumulate": keys.integer(
        1, "microbatches whose gradients are accumulated in a step", low=1
    ),
    "training.ema_decay": keys.number(
        0.0,
        "decay of the moving average of the student, which is evaluated and saved; 0: off",
        high=1.0,
        open_high=True,
    ),
    "training.ema_warmup": keys.flag(
        False,
        "begin the moving average with smaller decays, (1 + step) / (10 + step) up to ema_decay, "
        "so that it catches up in short runs",
    ),
    "training.remat": keys.choice(
        "none",
        REMAT,
        "what a decoder's layer recomputes for its gradient",
        lasting=False,
        only=TEXT,
    ),
    "training.attention": keys.choice(
        "auto",
        ATTENTION,
        "implementation of the attention of decoders; auto: splash on a TPU, cudnn on a GPU, "
        "where they support the shapes, else xla",
        lasting=False,
        only=TEXT,
    ),
    "training.compute_dtype": keys.choice("float32", DTYPES, "dtype of the student's computation"),
    "training.cpu_kernels": keys.choice(
        "auto",
        kernels.CHOICES,
        "on one CPU device: oneDNN's kernels or XLA's; auto: oneDNN's where `pip install "
        "'distill_jax[cpu]'` and a C++ compiler provide them",
        lasting=False,
    ),
    "training.steps_per_call": keys.integer(
        0, "steps in one compiled call; 0: 1 on a CPU, up to 32 on accelerators", lasting=False
    ),
    "training.deterministic": keys.flag(
        True, "on a GPU: exclude kernels that sum in no fixed order", lasting=False
    ),
    "training.compilation_cache": keys.Key(
        "auto",
        keys.local_path,
        "auto, off, or a folder",
        "where compiled programs are kept for the next start; auto: the user's cache folder, at "
        "most 1 GiB; with several processes a folder that all of them see, or none",
        lasting=False,
    ),
    # evaluation
    "evaluation.every_epochs": keys.number(
        1.0, "epochs between evaluations of the validation split; 0: only at the end"
    ),
    "evaluation.batch_size": keys.integer(500, "examples in a batch of evaluation", low=1),
    "evaluation.track_test": keys.flag(
        False, "also evaluate the test split each time: reported, selects nothing"
    ),
    "evaluation.select": keys.choice(
        "accuracy",
        ("accuracy", "nll", *METRICS),
        "validation metric that selects a model",
    ),
    "evaluation.prompts": keys.file(
        "",
        "JSONL of prompts with references, answered at each evaluation; empty: none",
        lasting=False,
        only=TEXT,
    ),
    "evaluation.test_prompts": keys.file(
        "", "the same for the test split; empty: none", lasting=False, only=TEXT
    ),
    "evaluation.fields": keys.Key(
        "same",
        lambda value: value if value in ("same", "named") else _check_fields(value),
        f"same, named, one of {', '.join(FIELDS)}, or parts and their fields, such as "
        "'prompt=question, response=answer'",
        "the fields of such a file; same: data.fields, named: prompt or messages, and response",
        only=TEXT,
    ),
    "evaluation.max_prompts": keys.integer(
        0, "use only so many prompts of a file, from its start; 0: all", only=TEXT
    ),
    "evaluation.long_prompts": keys.choice(
        "refuse",
        ("refuse", "skip"),
        "a prompt that with its answer exceeds a model's context ends the run, or is left out",
        only=TEXT,
    ),
    "evaluation.max_new_tokens": keys.integer(
        256, "length of the longest answer in tokens", low=1, only=TEXT
    ),
    "evaluation.prompt_batch_size": keys.integer(
        32, "prompts in a batch of generation", low=1, only=TEXT
    ),
    "evaluation.metrics": keys.several(
        ("rouge_l",),
        _check_metric,
        "names among " + ", ".join(METRICS),
        "metrics of an answer against its reference, each in [0, 1]",
        only=TEXT,
    ),
    # checkpoints
    "checkpoint.every_epochs": keys.number(
        1.0, "epochs between checkpoints; 0: only at the end and on SIGTERM", lasting=False
    ),
    "checkpoint.every_steps": keys.integer(
        0, "steps between additional checkpoints; 0: none", lasting=False
    ),
    "checkpoint.keep_last": keys.integer(2, "newest checkpoints to keep", low=1, lasting=False),
    # logging
    "logging.every_steps": keys.integer(50, "steps between lines of metrics.jsonl", low=1),
    "logging.progress": keys.choice(
        "auto", ("auto", "plain", "off"), "bar on a terminal, lines elsewhere", lasting=False
    ),
    "logging.tensorboard": keys.flag(True, "write TensorBoard files", lasting=False),
    "logging.wandb": keys.text("", "Weights & Biases project; empty: off", lasting=False),
    "logging.trackio": keys.text("", "trackio project, on this machine; empty: off", lasting=False),
    # mesh
    "mesh.data": keys.integer(
        -1, "devices along the data axis; -1: all that are left", low=-1, lasting=False
    ),
    "mesh.fsdp": keys.integer(
        1,
        "devices along the fsdp axis, which split the batch and the parameters",
        low=1,
        lasting=False,
    ),
    "mesh.tensor": keys.integer(
        1, "devices along the tensor axis, which split each layer", low=1, lasting=False
    ),
    "mesh.replicate": keys.several(
        (),
        _check_part,
        f"some of {', '.join(parallel.PARTS)}",
        "parts to replicate on every device instead of sharding them",
        lasting=False,
    ),
}

#: Keys that decide which prompts are answered and how: only figures of evaluations depend on them,
#: and `eval` may set them for a finished run.
PROMPT_KEYS = (
    *("evaluation.prompts", "evaluation.test_prompts", "evaluation.fields"),
    *("evaluation.max_prompts", "evaluation.long_prompts", "evaluation.max_new_tokens"),
    *("evaluation.prompt_batch_size", "evaluation.metrics"),
)

SECTIONS = tuple(dict.fromkeys(path.split(".")[0] for path in SCHEMA))
