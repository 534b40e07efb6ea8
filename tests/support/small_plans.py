"""A run small enough to be planned in seconds: decoders of shapes alone."""

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from distill_jax import config as configs

LLAMA = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "tie_word_embeddings": False,
}
STUDENT = LLAMA | {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 96}


def folder(where: pathlib.Path, name: str, content: dict[str, Any]) -> str:
    """A folder that has a config.json alone."""
    path = where / name
    path.mkdir()
    (path / "config.json").write_text(json.dumps(content))
    return str(path)


def config(where: pathlib.Path, **changes: Any) -> ConfigDict:
    """A resolved config of text; changes are of flat keys, with __ for the point."""
    flat = {
        "data.name": "text",
        "data.length": 32,
        "student.name": "decoder",
        "student.path": folder(where, "student", STUDENT),
        "teacher.path": folder(where, "teacher", LLAMA),
        "teacher.compute_dtype": "bfloat16",
        "method.name": "soft_target",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-3,
        "training.steps": 100,
        "training.batch_size": 8,
        "training.ema_decay": 0.9,
        "evaluation.batch_size": 8,
    }
    flat |= {key.replace("__", "."): value for key, value in changes.items()}
    return configs.resolve(configs.unflatten(flat))
