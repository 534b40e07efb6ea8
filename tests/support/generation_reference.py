"""What the tests of generation share: golden files, small checkpoints, a teacher in a folder."""

import functools
import importlib.util
import json
import pathlib
import tempfile

import jax
import numpy as np
import safetensors.numpy
from flax import nnx

from distill_jax.models import language

ROOT = pathlib.Path(__file__).resolve().parents[1] / "golden"
GOLDEN = ROOT / "generation"
TOKENIZER = ROOT / "text" / "tokenizer.json"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def _module(name: str, path: pathlib.Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = _module("generation_golden", GOLDEN / "make.py")
_language = _module("language_golden_for_generation", ROOT / "language" / "make.py")


@functools.cache
def golden_model(name: str) -> language.Decoder:
    """A checkpoint of tests/golden/language, whose logits are tested there."""
    content = json.loads((ROOT / "language" / f"{name}.json").read_text())
    tensors = {own: _language.fill(own, tuple(s)) for own, s in content["tensors"].items()}
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(content["config"]))
        safetensors.numpy.save_file(tensors, pathlib.Path(folder) / "model.safetensors")
        return language.load(folder)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state, tokens):
    model = nnx.merge(graphdef, state)
    return model.logits(model(tokens).hidden)


def logits_of(model: language.Decoder, ids: list[int]) -> np.ndarray:
    """Float64 [T, V] of one text of up to 32 ids, in one pass without a cache."""
    # What follows a token does not change its logits.
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : len(ids)] = ids
    return np.asarray(_logits(*nnx.split(model), tokens), np.float64)[0, : len(ids)]


def small_teacher(folder: pathlib.Path, *, seed: int = 0, licence: str = "apache-2.0"):
    """A folder as from the Hub: weights, a tokenizer of 300 or so ids, and a README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = json.loads(TOKENIZER.read_text())
    size = max(ids["model"]["vocab"].values()) + 1
    size = max([size, *(token["id"] + 1 for token in ids["added_tokens"])])
    config = language.DecoderConfig(
        vocab_size=size + 5,  # padded, as models are
        dim=16,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp_dim=24,
    )
    model = language.create(config, seed=seed)
    model.untied_head[...] = model.untied_head[...] * 40  # far from uniform distributions
    language.save(folder, model)
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text(f"---\nlanguage: en\nlicense: {licence}\n---\n# A model\n")
    return folder
