"""Hugging Face folders: memory, shards, dtypes, atomic writing, and what is refused."""

import json
import pathlib
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import language_reference as reference
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.errors import UsageError
from distill_jax.models import language
from distill_jax.models.language import DecoderConfig
from distill_jax.models.language.huggingface import writing

INDEX = "model.safetensors.index.json"
MB = 2**20


@pytest.fixture
def llama(tmp_path) -> pathlib.Path:
    """A golden checkpoint in one file."""
    return reference.write(tmp_path / "llama", "llama")


@pytest.fixture
def sharded(llama, tmp_path) -> pathlib.Path:
    """The same in several files, as we write it."""
    language.save(tmp_path / "sharded", language.load(llama), shard_bytes=8000)
    return tmp_path / "sharded"


def _edit(path: pathlib.Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _rewrite(folder: pathlib.Path, change) -> None:
    file = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    change(arrays)
    safetensors.numpy.save_file(arrays, file)


def _refusal(folder: pathlib.Path) -> str:
    with pytest.raises(UsageError) as caught:
        language.load(folder, key="teacher.path")
    message = str(caught.value)
    prefix = f"teacher.path={str(folder)!r}: "
    assert message.startswith(prefix) and "\n" not in message
    return message.removeprefix(prefix)


def test_loading_holds_no_more_than_two_of_the_largest_tensor(tmp_path):
    config = DecoderConfig(
        vocab_size=4096, dim=512, layers=5, heads=8, kv_heads=8, head_dim=64, mlp_dim=2048
    )
    language.save(tmp_path / "large", language.create(config), shard_bytes=40 * MB)
    size = sum(file.stat().st_size for file in (tmp_path / "large").glob("*.safetensors"))
    largest = 4096 * 512 * 4
    assert size > 10 * largest
    language.load(tmp_path / "large")  # what tracing leaves behind is not what a tensor costs
    tracemalloc.start()
    model = language.load(tmp_path / "large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reference.parameters(model)["embedding"].nbytes == largest
    assert largest <= peak <= 2 * largest + MB


def test_shards_are_loaded_into_place_on_a_mesh(sharded, llama):
    mesh = Mesh(
        np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2
    )

    def sharding_fn(name, shape):
        if name == "final_norm/scale":
            return None
        if len(shape) == 3:
            return NamedSharding(mesh, PartitionSpec(None, "a", "b"))
        return NamedSharding(mesh, PartitionSpec(None, "b") if len(shape) == 2 else PartitionSpec())

    model = language.load(sharded, sharding_fn=sharding_fn)
    placed = reference.parameters(model)
    for name, expected in reference.parameters(language.load(llama)).items():
        np.testing.assert_array_equal(placed[name], expected, err_msg=name)
        wanted = sharding_fn(name, expected.shape)
        if wanted is not None:
            assert placed[name].sharding.is_equivalent_to(wanted, expected.ndim), name
    np.testing.assert_allclose(
        reference.logits(model, reference.TOKENS),
        np.asarray(reference.golden("llama")["logits"]),
        rtol=0,
        atol=1e-4,
    )


def test_dtypes_are_converted_on_the_way_in_and_out(llama, tmp_path):
    _rewrite(llama, lambda a: a.update({k: v.astype(ml_dtypes.bfloat16) for k, v in a.items()}))
    model = language.load(llama)
    assert {v.dtype for v in reference.parameters(model).values()} == {jnp.dtype("float32")}
    half = language.load(llama, param_dtype=jnp.bfloat16)
    assert {v.dtype for v in reference.parameters(half).values()} == {jnp.dtype("bfloat16")}
    for number, options in enumerate((dict(), dict(dtype=jnp.bfloat16))):
        out = tmp_path / str(number)
        language.save(out, (half, model)[number], **options)
        saved = safetensors.numpy.load_file(out / "model.safetensors")
        for name, value in reference.tensors("llama").items():
            np.testing.assert_array_equal(saved[name], value.astype(ml_dtypes.bfloat16))
        assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_gpt2_loads_under_its_published_names_and_with_its_old_buffers(tmp_path):
    folder = reference.write(tmp_path / "gpt2", "gpt2")
    expected = reference.parameters(language.load(folder))

    def publish(arrays):
        for name in list(arrays):
            arrays[name.removeprefix("transformer.")] = arrays.pop(name)
        arrays["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)

    _rewrite(folder, publish)
    for name, value in reference.parameters(language.load(folder)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("prefix", ["", "module.model.", "_orig_mod.model."])
def test_names_without_the_attribute_of_the_base_model_or_within_wrappers(tmp_path, prefix):
    folder = reference.write(tmp_path / "base", "llama3", architectures=["LlamaModel"])
    file = folder / "model.safetensors"
    arrays = safetensors.numpy.load_file(file)
    renamed = {prefix + name.removeprefix("model."): value for name, value in arrays.items()}
    assert renamed.keys() != arrays.keys()
    safetensors.numpy.save_file(renamed, file)
    whole = language.load(reference.write(tmp_path / "whole", "llama3"))
    expected = reference.parameters(whole)
    for name, value in reference.parameters(language.load(folder)).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_of_a_multimodal_model_the_decoder_is_read(tmp_path, prefix):
    folder = reference.write(tmp_path / "both", "gemma3")
    _edit(
        folder / "config.json",
        lambda content: content.update(
            text_config={name: v for name, v in content.items() if name != "architectures"},
            model_type="gemma3",
            architectures=["Gemma3ForConditionalGeneration"],
            vision_config={"hidden_size": 8},
            mm_tokens_per_image=256,
        ),
    )

    def wrap(arrays):
        for name in list(arrays):
            arrays[prefix + name.removeprefix("model.")] = arrays.pop(name)
        arrays["vision_tower.layers.0.weight"] = np.zeros((3, 3), np.float32)
        arrays["model.multi_modal_projector.weight"] = np.zeros((3, 3), np.float32)

    _rewrite(folder, wrap)
    model = language.load(folder)
    assert model.config.family == "gemma3_text"
    expected = reference.parameters(language.load(reference.write(tmp_path / "text", "gemma3")))
    for name, value in reference.parameters(model).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_the_published_config_of_gemma_3_leaves_out_what_is_the_default():
    text = dict(hidden_size=2560, intermediate_size=10240, num_hidden_layers=34)
    text |= dict(model_type="gemma3_text", sliding_window=1024)
    text |= dict(rope_scaling={"factor": 8.0, "rope_type": "linear"})
    config = language.from_huggingface({"model_type": "gemma3", "text_config": text})
    assert (config.heads, config.kv_heads, config.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.tied, config.sliding) == (262208, True, config.sliding)
    assert sum(config.sliding_layers()) == 29


def test_a_tensor_under_both_of_its_names_is_refused(llama):
    _rewrite(llama, lambda arrays: arrays.update({"norm.weight": arrays["model.norm.weight"]}))
    assert _refusal(llama).startswith("model.norm.weight is in the files twice")


def test_a_file_may_repeat_a_tied_head_if_it_equals_the_embedding(tmp_path):
    folder = reference.write(tmp_path / "llama3", "llama3")
    _rewrite(folder, lambda a: a.update({"lm_head.weight": a["model.embed_tokens.weight"]}))
    assert language.load(folder).config.tied
    _rewrite(folder, lambda a: a.update({"lm_head.weight": a["lm_head.weight"] + 1}))
    assert "lm_head.weight differs from model.embed_tokens.weight" in _refusal(folder)


def test_a_folder_is_replaced_as_a_whole_and_a_folder_with_other_files_is_not(llama, tmp_path):
    model = language.load(llama)
    out = tmp_path / "out"
    language.save(out, model, shard_bytes=8000)
    language.save(out, model, extra_config={"eos_token_id": 3})
    names = ["SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(p.name for p in out.iterdir()) == names
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "out"]
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="found 'notes.txt', which replacing it would delete"):
        language.save(out, model)


def test_a_write_that_is_killed_leaves_the_old_folder(llama, tmp_path, monkeypatch):
    model = language.load(llama)
    out = tmp_path / "out"
    language.save(out, model)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writing.safetensors_writer, "bytes_of", killed)
        with pytest.raises(KeyboardInterrupt):
            language.save(out, model, dtype=jnp.bfloat16)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    language.save(out, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["llama", "out"]


def test_missing_extra_and_mis_shaped_tensors_are_refused(llama):
    def change(arrays):
        del arrays["model.norm.weight"]
        arrays["model.layers.3.mlp.up_proj.weight"] = np.ones((2, 2), np.float32)
        arrays["lm_head.weight"] = arrays["lm_head.weight"][:-1].copy()

    _rewrite(llama, change)
    assert _refusal(llama) == (
        "the tensors are not those of config.json: model.norm.weight is missing; "
        "model.layers.3.mlp.up_proj.weight is unexpected; lm_head.weight is [39, 16], not [40, 16]"
    )


def test_a_truncated_file_is_refused(llama, sharded):
    for file in (llama / "model.safetensors", sorted(sharded.glob("*.safetensors"))[1]):
        content = file.read_bytes()
        for length in (len(content) - 1, 200, 4, 0):
            file.write_bytes(content[:length])
            assert _refusal(file.parent).startswith(f"{file.name} is damaged or truncated: ")


@pytest.mark.parametrize(
    "file",
    ["../llama/model.safetensors", "/etc/passwd", "a/../b.safetensors", "model.bin", 3, ".."],
)
def test_an_index_that_points_elsewhere_is_refused(sharded, file):
    _edit(sharded / INDEX, lambda c: c["weight_map"].update({"lm_head.weight": file}))
    assert _refusal(sharded) == (
        f"{INDEX}: lm_head.weight is in {file!r}; expected the bare name of a .safetensors file "
        "in the same folder"
    )


def test_an_index_that_disagrees_with_its_files_is_refused(sharded):
    _edit(sharded / INDEX, lambda c: c["weight_map"].pop("lm_head.weight"))
    assert f"{INDEX}: lm_head.weight is in model-0" in _refusal(sharded)
    _edit(sharded / INDEX, lambda c: c["weight_map"].update({"lm_head.weight": "no.safetensors"}))
    assert _refusal(sharded) == "no.safetensors is missing; expected it in the folder"
    (sharded / INDEX).write_text("{}")
    assert "has no weight_map" in _refusal(sharded)


def test_an_index_beside_a_whole_file_is_a_leftover(llama, sharded):
    expected = reference.parameters(language.load(llama))
    (llama / INDEX).write_bytes((sharded / INDEX).read_bytes())  # names files that are not there
    found = reference.parameters(language.load(llama))
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_pickles_and_empty_folders_are_refused(llama, tmp_path):
    (llama / "model.safetensors").unlink()
    assert _refusal(llama).startswith("no model.safetensors and no model.safetensors.index.json")
    (llama / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    assert _refusal(llama).startswith("pytorch_model.bin is a pickle, which is never read")
    assert _refusal(tmp_path / "none").startswith("no such folder")
    shutil.rmtree(llama)
    llama.mkdir()
    assert _refusal(llama).startswith("config.json cannot be read: No such file")
    for damaged in ("{", "[1]", "[" * 100_000):
        (llama / "config.json").write_text(damaged)
        assert _refusal(llama).startswith("config.json ")


def test_quantized_files_are_refused(llama):
    _rewrite(llama, lambda a: a.update({"lm_head.weight": a["lm_head.weight"].astype(np.int8)}))
    assert "lm_head.weight is I8; expected F32, F16 or BF16" in _refusal(llama)
