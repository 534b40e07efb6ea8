"""Small but complete runs on text: a tokenizer trained on the spot, a random teacher."""

import json
import pathlib

import jax
import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from distill_jax import config as configs
from distill_jax.models import language, split
from distill_jax.runs import experiment
from distill_jax.training import step
from distill_jax.training.state import copy_to

# Sentences are drawn from these; no page of the project, whose edits would move every number.
WORDS = (
    "the a small large student teacher learns reads writes answers every some token word sentence "
    "letter number from with without until because and or not once twice never often slowly warm "
    "cold green river mountain window paper lamp bread water morning evening winter summer"
).split()


def sentence(length: int, seed: int) -> list[str]:
    """So many words, by a seed."""
    chosen = np.random.default_rng(seed).integers(0, len(WORDS), length)
    return [WORDS[index] for index in chosen]


SIZES = {"vocab_size": 320, "dim": 16, "layers": 2, "heads": 2, "kv_heads": 1}
TEACHER = language.DecoderConfig(**SIZES, head_dim=8, mlp_dim=24)


def write_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level BPE of 300 ids; the models have 320."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([" ".join(sentence(2000, seed=1))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def write_records(path: pathlib.Path, count: int = 60) -> None:
    """Prompts and responses of unequal lengths."""
    lines = []
    for index in range(count):
        length = 3 + (index * 7) % 23
        part = sentence(length, seed=100 + index)
        cut = 1 + index % (len(part) - 1)
        prompt, response = " ".join(part[:cut]), " " + " ".join(part[cut:])
        lines.append(json.dumps({"prompt": prompt, "response": response}))
    path.write_text("\n".join(lines) + "\n")


def make_teacher(folder: pathlib.Path, config: language.DecoderConfig = TEACHER) -> pathlib.Path:
    """A folder with a random teacher and its tokenizer."""
    # Standard deviation 0.02 would make every distribution flat.
    _, params, _ = split(language.create(config, seed=3))
    params = {name: v if "norm" in name else 8 * v for name, v in params.items()}
    language.save(folder, language.from_params(config, params))
    write_tokenizer(folder)
    return folder


def config(teacher: pathlib.Path, records: pathlib.Path) -> dict:
    """A run of 20 steps."""
    return {
        "data": {"name": "text", "path": str(records), "length": 64, "validation": 8},
        "student": {"name": "decoder", "dim": 8, "depth": 2, "heads": 2, "mlp_dim": 16},
        "teacher": {"path": (str(teacher),)},
        "method": {"name": "soft_target", "temperature": 2.0, "hard_weight": "linear(0.5, 0.1)"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "weight_decay": 0.01},
        "training": {"steps": 20, "batch_size": 8, "ema_decay": 0.9},
        "evaluation": {"every_epochs": 1.0, "batch_size": 8, "select": "nll"},
        "checkpoint": {"every_epochs": 0.0, "every_steps": 5},
        "logging": {"progress": "off", "tensorboard": False, "every_steps": 3},
        "mesh": {"data": 1},
    }


def first_step(config: dict):
    """The parts of a run, its first batch, and its state after one step."""
    parts = experiment.prepare(configs.resolve(config))
    compiled = step.compile_steps(parts.recipe, parts.mesh, parts.layout)
    batch = next(parts.feed.at(0))
    now = copy_to(parts.initial, parts.layout)
    batches = step.put_batches([batch], parts.mesh)
    return parts, batch, compiled(now, parts.frozen, {}, batches)


def networks(parts) -> tuple[language.Decoder, language.Decoder]:
    """Student and teacher of a run before its first step, on one device whatever its mesh."""
    compared = parts.recipe.comparison
    arrays = jax.device_put(jax.device_get((parts.initial.params, parts.frozen.teachers[0])))
    pairs = zip((compared.student, compared.teacher), arrays, strict=True)
    return tuple(language.from_params(network.config, params) for network, params in pairs)


def alone(function, length: int = 64):
    """Compiles a function of one document, [1, T] ids, once for documents of every length.

    Zeros fill up the document to `length`: a decoder looks back only, so that they change nothing.

    Args:
      function: ids [1, length] -> arrays with the tokens on their second last axis.

    Returns:
      ids [T] -> those arrays in float64, with T tokens.
    """
    compiled = jax.jit(function)

    def of_document(ids):
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        return jax.tree.map(lambda a: np.float64(a)[..., : len(ids), :], compiled(padded))

    return of_document
