"""Checkpoints whose logits transformers computed, and models made of them."""

import functools
import importlib.util
import json
import pathlib

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from distill_jax.models import language, split

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "language"
_SPEC = importlib.util.spec_from_file_location("language_golden", GOLDEN / "make.py")
make = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(make)

TOKENS = make.TOKENS.astype(np.int32)
NAMES = tuple(make.FAMILIES)


@functools.cache
def golden(name: str) -> dict:
    """Config.json, the shapes of the tensors by name, and the logits [2, 11, 40] of `TOKENS`."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def tensors(name: str) -> dict[str, np.ndarray]:
    """The tensors of a golden checkpoint."""
    return {own: make.fill(own, tuple(shape)) for own, shape in golden(name)["tensors"].items()}


def write(folder: pathlib.Path, name: str, **changes) -> pathlib.Path:
    """A golden checkpoint as a folder of one file; `changes` are those of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(golden(name)["config"] | changes))
    safetensors.numpy.save_file(tensors(name), folder / "model.safetensors")
    return folder


def forward(model: language.Decoder, tokens: np.ndarray, **options) -> language.DecoderOutput:
    """A compiled forward pass."""
    graphdef, state = nnx.split(model)
    return _forward(graphdef, state, tokens, options)


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, state, tokens, options):
    return nnx.merge(graphdef, state)(tokens, **options)


def logits(model: language.Decoder, tokens: np.ndarray) -> np.ndarray:
    """The logits of a compiled forward pass, float32 [B, T, V]."""
    graphdef, state = nnx.split(model)
    return np.asarray(_logits(graphdef, state, tokens))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, tokens):
    model = nnx.merge(graphdef, state)
    return model.logits(model(tokens).hidden)


def parameters(model: language.Decoder) -> dict[str, jax.Array]:
    """Flat dictionary of a decoder's parameters."""
    return split(model)[1]
