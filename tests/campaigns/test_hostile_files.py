"""Files that somebody wrote to do harm, from grammars: one line each, time and memory bounded."""

import io
import json
import os
import pathlib
import resource
import struct
import tempfile
import time
import zipfile

import hypothesis
import numpy as np
import pytest
from bench import counts
from hypothesis import strategies as st

from distill_jax.data import text
from distill_jax.data.images.sources import folder, idx, npz
from distill_jax.data.text import template_process
from distill_jax.errors import UsageError
from distill_jax.generation import prompts
from distill_jax.models import language
from distill_jax.models.files import model_folder
from distill_jax.models.files.state_dict import read_state_dict

SECONDS = 30.0  # for one file
MEMORY = 2**31  # bytes by which all files together may raise the peak

sizes = st.sampled_from([0, 1, 2, 4, 2**16, 2**31, 2**40, 2**63 - 1, -1])
small = st.binary(max_size=64)
numbers = st.one_of(st.integers(), st.floats(), sizes)
leaves = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20))
trees = st.recursive(
    leaves, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4)
)


def json_bytes(tree: object) -> bytes:
    return json.dumps(tree).encode()


def npy(shape: tuple[int, ...], dtype: str, content: bytes) -> bytes:
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(head) + 1) + head + b"\n" + content


shapes = st.lists(sizes, max_size=4).map(tuple)
dtypes = st.sampled_from(["|u1", "<f4", "<i8", "|O", "|S1000000", "<U4", "wrong", "[('a','<i4')]"])
arrays = st.builds(npy, shapes, dtypes, small)


def npz_of(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


names = ("x_train", "y_train", "x_test", "y_test")
npz_files = st.builds(npz_of, st.fixed_dictionaries(dict.fromkeys(names, arrays | small)))
idx_files = st.builds(
    lambda magic, shape, rest: struct.pack(f">{1 + len(shape)}I", magic, *shape) + rest,
    st.sampled_from([0x803, 0x801, 0x903, 0]),
    st.lists(st.sampled_from([0, 1, 28, 2**16, 2**31, 2**32 - 1]), min_size=1, max_size=4),
    small,
)
heads = st.sampled_from(
    [
        b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\n",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        b"\xff\xd8\xff",
        b"II*\0",
        b"8BPS",
    ]
)
images = st.builds(lambda head, rest: head + rest, heads, st.binary(max_size=200))
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "F8", "X"]),
        "shape": st.lists(sizes),
        "data_offsets": st.lists(sizes, min_size=2, max_size=2),
    }
)
safetensors_files = st.builds(
    lambda length, tree, rest: struct.pack("<Q", length % 2**64) + json_bytes(tree) + rest,
    sizes | st.integers(0, 300),
    st.dictionaries(st.text(max_size=8), tensors | leaves),
    small,
)
pickles = st.builds(
    lambda ops: b"\x80\2" + b"".join(ops) + b".",
    st.lists(
        st.sampled_from(
            [
                b"cos\nsystem\n",
                b"cbuiltins\neval\n",
                b"X\2\0\0\0ls",
                b"\x85R",
                b"}",
                b"]",
                b"(",
                b"t",
                b"q\0",
                b"h\0",
                b"N",
                b"\x94",
                b"K\1",
                b"u",
                b"Q",
            ]
        )
    ),
)
llama = {
    "model_type": "llama",
    "hidden_size": 8,
    "vocab_size": 8,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 8,
}
configs = st.builds(
    lambda changes, more: {**llama, **changes, **more},
    st.dictionaries(
        st.sampled_from(
            sorted(llama)[:-1]
            + ["num_key_value_heads", "rope_scaling", "head_dim", "rope_theta", "torch_dtype"]
        ),
        leaves | trees,
    ),
    st.dictionaries(st.text(max_size=10), trees, max_size=2),
)
words = st.sampled_from(
    [
        "{{ x }}",
        "{% set s = s ~ s %}",
        "{% set s = 'x' * 1000 %}",
        "{% if x %}",
        "{{ s }}",
        "{{ messages | tojson(indent=100000000) }}",
        "{% for i in range(99999) %}",
        "{% endfor %}",
        "{% endif %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ x | join(s) }}",
        "{{ raise_exception(s) }}",
        "{% include '/etc/passwd' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}",
    ]
)
templates = st.lists(words, max_size=60).map("".join)


def read_folder_of_images(file: pathlib.Path) -> None:
    for name in "ab":
        (file.parent / "set" / name).mkdir(parents=True)
        for number in range(5):
            (file.parent / "set" / name / f"{number}.png").write_bytes(file.read_bytes())
    folder.load(str(file.parent / "set"), "train", image_size=8)[0]


def read_idx(file: pathlib.Path) -> None:
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (file.parent / name).write_bytes(file.read_bytes())
    idx.load(str(file.parent), "train")


def read_config(file: pathlib.Path) -> None:
    (file.parent / "config.json").write_bytes(file.read_bytes())
    language.load(file.parent, key="teacher.path")


def read_model(file: pathlib.Path) -> None:
    (file.parent / "model.json").write_bytes(file.read_bytes())
    (file.parent / "weights.safetensors").write_bytes(b"")
    model_folder.load(file.parent, key="teacher.path")


def render(file: pathlib.Path) -> None:
    try:
        template_process.render(file.read_text(), {"x": 1, "messages": [], "s": "s"}, None)
    except template_process.TemplateFault as fault:
        raise UsageError(str(fault)) from None


def read_tokenizer(file: pathlib.Path) -> None:
    (file.parent / "tokenizer.json").write_bytes(file.read_bytes())
    text.load_tokenizer(file.parent / "tokenizer.json")


rules = st.builds(
    lambda rules, model: {
        "version": "1.0",
        "normalizer": {"type": "Sequence", "normalizers": rules},
        "model": model,
        "added_tokens": [],
    },
    st.lists(
        st.fixed_dictionaries(
            {
                "type": st.sampled_from(["Replace", "Prepend", "NFKC", "X"]),
                "pattern": st.sampled_from(
                    [{"String": "a"}, {"Regex": ""}, {"Regex": "(a+)+$"}, 1]
                ),
                "content": st.sampled_from(["aa", "a" * 1000, ""]),
                "prepend": st.just("a"),
            }
        ),
        max_size=40,
    ),
    st.just({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}) | trees,
)

KINDS = {
    "npz": (npz_files, lambda file: npz.load(str(file), "train"), ".npz"),
    "idx": (idx_files, read_idx, ".idx"),
    "images": (images, read_folder_of_images, ".png"),
    "safetensors": (safetensors_files, read_state_dict, ".safetensors"),
    "pickles": (pickles, read_state_dict, ".pth"),
    "npz weights": (npz_files, read_state_dict, ".npz"),
    "config.json": (configs.map(json_bytes), read_config, ".json"),
    "model.json": (trees.map(json_bytes), read_model, ".json"),
    "tokenizer.json": (rules.map(json_bytes), read_tokenizer, ".json"),
    "templates": (templates.map(str.encode), render, ".jinja"),
    "prompts": (
        st.lists(trees).map(lambda t: b"\n".join(map(json_bytes, t))),
        prompts.read,
        ".jsonl",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@counts(10, 2200)
def test_hostile_files(count, kind, monkeypatch):
    strategy, read, suffix = KINDS[kind]
    for name in ("system", "popen", "execv", "posix_spawn"):
        monkeypatch.setattr(os, name, lambda *_, **__: pytest.fail("a file was executed"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried = 0

    @hypothesis.settings(
        max_examples=max(5, count // len(KINDS)),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def attempt(content: bytes) -> None:
        nonlocal tried
        tried += 1
        with tempfile.TemporaryDirectory() as place:
            file = pathlib.Path(place, f"hostile{suffix}")
            file.write_bytes(content)
            began = time.monotonic()
            try:
                read(file)
            except UsageError as error:
                assert "\n" not in str(error)
            assert time.monotonic() - began < SECONDS

    attempt()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MEMORY
    print(f"hostile files: {tried} of {kind}; peak memory + {grown >> 20} MiB")


def test_the_grammars_reach_what_is_good():
    """A reader that refused everything would pass the campaign."""
    buffer = io.BytesIO()
    images_of = np.zeros((4, 4, 4), np.uint8)
    labels = np.arange(4)
    np.savez(buffer, x_train=images_of, y_train=labels, x_test=images_of, y_test=labels)
    with tempfile.TemporaryDirectory() as place:
        file = pathlib.Path(place, "good.npz")
        file.write_bytes(buffer.getvalue())
        assert len(npz.load(str(file), "train")) == 4
        assert set(read_state_dict(file)) == set(names)
