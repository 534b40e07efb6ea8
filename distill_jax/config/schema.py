"""Every key a run may have: its default, what it accepts and one line of meaning.

The table `SCHEMA` is the whole surface of a config, but for the options of the named model and
method (`student.*`, `method.*`), which come from their signatures.
`distill-jax train --help-config` prints it.
"""

from typing import Any, Final

from distill_jax import methods, models, parallel
from distill_jax.config import keys
from distill_jax.data.text.packing import LONG
from distill_jax.data.text.packing import STRATEGIES as PACKING
from distill_jax.data.text.sources import DOCUMENTS, FIELDS
from distill_jax.evaluation.text_metrics import METRICS
from distill_jax.models.language.attention import IMPLEMENTATIONS as ATTENTION
from distill_jax.models.language.int8 import CHOICES as QUANTIZE
from distill_jax.models.language.remat import REMAT
from distill_jax.models.language.student import STUDENT_NAME as DECODER
from distill_jax.optim import optimizers


def _metric(value: Any) -> str:
    if value not in METRICS:
        raise ValueError
    return value


def _part(value: Any) -> str:
    if value not in parallel.PARTS:
        raise ValueError
    return value


#: The kinds of data that a key may be for; TEXT is also a value of data.name.
TEXT: Final = "text"
IMAGES: Final = "images"
DTYPES = ("float32", "bfloat16")

SCHEMA: dict[str, keys.Key] = {
    "seed": keys.integer(0, "seed of the initial parameters, the order, the views and the dropout"),
    "imports": keys.several(
        (),
        keys.local_path,
        "module names, or paths of .py files",
        "modules that register models, methods or data sets of your own",
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
        "part of the training split held out to select a model; 0: none",
    ),
    "data.split_seed": keys.integer(
        0, "seed of the split: one split for every run, whatever its seed"
    ),
    "data.fraction": keys.number(
        1.0, "part of the training data that is used", high=1.0, open_low=True
    ),
    "data.only_classes": keys.several(
        (),
        keys.class_index,
        "class indices >= 0",
        "train on these classes alone; (): all",
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
        "whole set on the device as uint8, or streamed; auto: up to 4 GiB without resized_crop",
        lasting=False,
        only=IMAGES,
    ),
    "data.workers": keys.integer(
        0,
        "grain worker processes of a streamed set; 0: in this process",
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
        "deviation of the pixels; (): measured",
        only=IMAGES,
    ),
    "data.augment.crop_padding": keys.integer(
        0, "pixels of padding before a random crop: shifts by up to this many", only=IMAGES
    ),
    "data.augment.padding_mode": keys.choice(
        "zero", ("zero", "reflect"), "what the padding holds", only=IMAGES
    ),
    "data.augment.resized_crop": keys.number(
        0.0,
        "least area of a random crop that is resized, of streamed images; published: 0.08; 0: off",
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
        "RandAugment operations of the strong view; only methods with one (mlkd) read it",
        only=IMAGES,
    ),
    "data.augment.strong_cutout": keys.number(
        0.5,
        "side of the grey square in the strong view, a part of the image's; 0: none; mlkd alone",
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
        512, "tokens of a row, T; a batch is training.batch_size rows", low=2, only=TEXT
    ),
    "data.packing": keys.choice(
        "whole",
        PACKING,
        "documents stay whole where they fit, run on from row to row, or have a row each",
        only=TEXT,
    ),
    "data.long": keys.choice(
        "split", LONG, "documents longer than a row go on in another, or are cut", only=TEXT
    ),
    "data.documents": keys.choice(
        "blank_line",
        DOCUMENTS,
        "what is a document in a .txt file: up to a blank line, ...",
        only=TEXT,
    ),
    "data.fields": keys.text(
        "",
        "where prompt and response stand in a record: " + ", ".join(FIELDS) + "; empty: as named",
        only=TEXT,
    ),
    "data.test_path": keys.file(
        "",
        "file of the test documents; empty: as many as validation, held out",
        lasting=False,
        only=TEXT,
    ),
    # on-policy distillation
    "rollout.probability": keys.number(
        0.0,
        "probability that the student itself writes the responses of a batch, lambda; 0: never",
        high=1.0,
        only=TEXT,
    ),
    "rollout.max_new_tokens": keys.integer(
        128, "tokens of the longest such response", low=1, only=TEXT
    ),
    "rollout.prompt_tokens": keys.integer(
        1, "tokens of a prompt, at least: of a text without one, its first", low=1, only=TEXT
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
        "mlp", f"what is trained: {DECODER} (of text), " + ", ".join(models.names())
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
        "several teachers: one mean distribution, or a loss to each",
        only=IMAGES,
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
        "stored answers on the device, or read batch by batch; auto: up to 4 GiB",
        lasting=False,
        only=IMAGES,
    ),
    "teacher.own_average": keys.flag(
        False, "the teacher is the student's own moving average (training.ema_decay)", only=IMAGES
    ),
    "teacher.look_ahead": keys.integer(
        0,
        "steps whose teacher answers are computed at once; 0: 1 on a CPU, more on others",
        only=IMAGES,
    ),
    "teacher.compute_dtype": keys.choice("float32", DTYPES, "dtype of the teachers' computation"),
    "teacher.quantize": keys.choice(
        "none",
        QUANTIZE,
        "int8: the teacher's matrices, one scale a channel; the rest stays",
        only=TEXT,
    ),
    # method
    "method.name": keys.text(
        "supervised", "the loss, or several joined by +: " + ", ".join(methods.names())
    ),
    "method.hard_weight": keys.scheduled(1.0, "weight of the cross-entropy with the labels"),
    "method.soft_weight": keys.scheduled(
        1.0, "weight of the loss against the teacher; default: the published one of the method"
    ),
    "method.temperature": keys.scheduled(4.0, "temperature T of the soft targets", open_low=True),
    "method.label_smoothing": keys.number(
        0.0,
        "mass spread over all classes in the hard targets",
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
        0.0, "sgd: L2 term in the gradient; others: decoupled, times the learning rate"
    ),
    "optimizer.decay_mask": keys.choice(
        "all", ("all", "kernels"), "what decays: everything, or kernels alone (no bias, no norm)"
    ),
    "optimizer.clip_norm": keys.number(0.0, "largest global norm of the gradient; 0: off"),
    "optimizer.max_norm": keys.number(
        0.0, "largest norm of a unit's incoming weights, in dense layers; 0: off", only=IMAGES
    ),
    # learning-rate schedule
    "schedule.name": keys.choice("cosine", optimizers.SCHEDULES, "shape of the learning rate"),
    "schedule.warmup_epochs": keys.number(0.0, "epochs of linear warm-up from 0"),
    "schedule.milestones": keys.several(
        (), keys.positive, "epochs > 0", "step: epochs after which the rate is multiplied"
    ),
    "schedule.factor": keys.number(0.1, "step: the multiplier", open_low=True, high=1.0),
    "schedule.end_factor": keys.number(
        0.0, "cosine, linear: last rate as a part of the first", high=1.0
    ),
    # training
    "training.epochs": keys.number(10.0, "passes over the training data", open_low=True),
    "training.steps": keys.integer(0, "number of steps, in place of epochs; 0: by epochs"),
    "training.batch_size": keys.integer(128, "examples a step, over all devices", low=1),
    "training.accumulate": keys.integer(1, "parts of a batch whose gradients add up", low=1),
    "training.ema_decay": keys.number(
        0.0,
        "decay a step of the averaged student that is evaluated and saved; 0: off",
        high=1.0,
        open_high=True,
    ),
    "training.remat": keys.choice(
        "none",
        REMAT,
        "what a decoder's layer computes again for its gradient",
        lasting=False,
        only=TEXT,
    ),
    "training.attention": keys.choice(
        "auto",
        ATTENTION,
        "what computes the attention of decoders; auto: splash on a TPU, cudnn on a GPU, where "
        "they fit, else xla",
        lasting=False,
        only=TEXT,
    ),
    "training.compute_dtype": keys.choice("float32", DTYPES, "dtype of the student's computation"),
    "training.steps_per_call": keys.integer(
        0, "steps in one compiled call; 0: 1 on a CPU, up to 32 on others", lasting=False
    ),
    "training.deterministic": keys.flag(
        True, "on a GPU: refuse kernels whose sums have no fixed order", lasting=False
    ),
    # evaluation
    "evaluation.every_epochs": keys.number(
        1.0, "epochs between evaluations on the validation split; 0: at the end alone"
    ),
    "evaluation.batch_size": keys.integer(500, "examples a step of evaluation", low=1),
    "evaluation.track_test": keys.flag(
        False, "also evaluate the test split each time: reported, selects nothing"
    ),
    "evaluation.select": keys.choice(
        "accuracy",
        ("accuracy", "nll", *METRICS),
        "validation figure that chooses the selected model",
    ),
    "evaluation.prompts": keys.file(
        "",
        "JSONL of prompts with responses, answered at each evaluation; empty: none",
        lasting=False,
        only=TEXT,
    ),
    "evaluation.test_prompts": keys.file(
        "", "the same for the figures of the test split; empty: none", lasting=False, only=TEXT
    ),
    "evaluation.fields": keys.choice(
        "same",
        ("same", "named", *FIELDS),
        "where they stand in a line; same: data.fields, named: prompt or messages, and response",
        only=TEXT,
    ),
    "evaluation.max_prompts": keys.integer(
        0, "prompts of a file that are used, the first; 0: all", only=TEXT
    ),
    "evaluation.max_new_tokens": keys.integer(
        256, "tokens of the longest answer", low=1, only=TEXT
    ),
    "evaluation.prompt_batch_size": keys.integer(
        32, "prompts that are answered at a time", low=1, only=TEXT
    ),
    "evaluation.metrics": keys.several(
        ("rouge_l",),
        _metric,
        "names among " + ", ".join(METRICS),
        "what compares an answer with the response, each in [0, 1]",
        only=TEXT,
    ),
    # checkpoints
    "checkpoint.every_epochs": keys.number(
        1.0, "epochs between checkpoints; 0: at the end and on SIGTERM alone", lasting=False
    ),
    "checkpoint.every_steps": keys.integer(
        0, "also a checkpoint after every so many steps; 0: by epochs alone", lasting=False
    ),
    "checkpoint.keep_last": keys.integer(
        2, "newest checkpoints that are kept", low=1, lasting=False
    ),
    # logging
    "logging.every_steps": keys.integer(50, "steps between lines of metrics.jsonl", low=1),
    "logging.progress": keys.choice(
        "auto", ("auto", "plain", "off"), "bar on a terminal, lines elsewhere", lasting=False
    ),
    "logging.tensorboard": keys.flag(True, "write TensorBoard files", lasting=False),
    "logging.wandb": keys.text("", "Weights & Biases project; empty: off", lasting=False),
    # mesh
    "mesh.data": keys.integer(
        -1, "devices along the axis of the batch; -1: all", low=-1, lasting=False
    ),
    "mesh.fsdp": keys.integer(
        1, "devices that share the batch and the parameters' shards", low=1, lasting=False
    ),
    "mesh.tensor": keys.integer(1, "devices that share a layer", low=1, lasting=False),
    "mesh.replicate": keys.several(
        (),
        _part,
        f"some of {', '.join(parallel.PARTS)}",
        "what is whole on every device in place of in shards",
        lasting=False,
    ),
}

#: Keys that decide which prompts are answered and how: only figures of evaluations depend on them,
#: and `eval` may set them for a finished run.
PROMPT_KEYS = (
    *("evaluation.prompts", "evaluation.test_prompts", "evaluation.fields"),
    *("evaluation.max_prompts", "evaluation.max_new_tokens", "evaluation.prompt_batch_size"),
    "evaluation.metrics",
)

SECTIONS = tuple(dict.fromkeys(path.split(".")[0] for path in SCHEMA))
