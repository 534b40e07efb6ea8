"""Files of PyTorch weights without PyTorch: right numbers, and one line for every damage."""

import io
import os
import pickle
import shutil
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import FILES, GOLDEN, LEGACY, refusal

from distill_jax import models
from distill_jax.errors import UsageError

# ---------------------------------------------------------------- files that PyTorch wrote


@pytest.mark.parametrize("file", FILES[:4])
def test_every_dtype_and_every_way_to_lie_in_memory(file):
    state = models.read_state_dict(GOLDEN / file)
    with np.load(GOLDEN / "tensors.npz") as expected:
        assert set(state) == set(expected)
        for name, value in expected.items():
            if name == "bfloat16" and file != "tensors.npz":
                assert state[name].dtype == jnp.bfloat16
            else:
                assert state[name].dtype == value.dtype, name
            np.testing.assert_array_equal(state[name].astype(value.dtype), value, err_msg=name)
            assert state[name].flags.c_contiguous and state[name].flags.aligned
    assert state["strided"].shape == (2, 2, 3) and state["scalar"].shape == ()


@pytest.mark.parametrize("file", FILES[4:])
def test_a_checkpoint_is_searched_and_its_prefix_taken_away(file):
    state = models.read_state_dict(GOLDEN / file)
    assert list(state) == [
        "0.weight",
        "0.bias",
        *(f"1.{end}" for end in ("weight", "bias", "running_mean", "running_var")),
        "1.num_batches_tracked",
    ]
    with np.load(GOLDEN / "checkpoint.npz") as expected:
        for name, value in expected.items():
            np.testing.assert_array_equal(state[name], value)


def test_the_name_of_a_file_does_not_matter(tmp_path):
    for file in FILES:
        expected = models.read_state_dict(GOLDEN / file)
        shutil.copy(GOLDEN / file, tmp_path / "weights.bin")
        found = models.read_state_dict(str(tmp_path / "weights.bin"))
        assert list(found) == list(expected)


def test_a_whole_pickled_module_is_refused_with_the_way_out():
    message = refusal(GOLDEN / "module.pth")
    assert "it names 'torch.nn.modules.linear.Linear', which no state dict needs" in message
    assert "torch.save(model.state_dict(), FILE)" in message


def test_numbers_of_a_big_endian_machine(tmp_path):
    with (
        zipfile.ZipFile(GOLDEN / "tensors.pth") as old,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as new,
    ):
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            if name == "tensors/data/0":
                content = np.frombuffer(content, "<f4").byteswap().tobytes()
            new.writestr(name, content)
    state = models.read_state_dict(tmp_path / "big.pth")
    with np.load(GOLDEN / "tensors.npz") as expected:
        for name in ("whole", "transposed", "strided", "row"):
            np.testing.assert_array_equal(state[name], expected[name])


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("file", [*FILES, "module.pth"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, file):
    content = (GOLDEN / file).read_bytes()
    for length in {*range(0, len(content), 23), *range(len(content) - 40, len(content))}:
        (tmp_path / "cut").write_bytes(content[:length])
        refusal(tmp_path / "cut")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
@pytest.mark.parametrize("file", [*FILES, "module.pth"])
def test_any_changed_byte_is_refused_or_harmless(tmp_path, file):
    content = (GOLDEN / file).read_bytes()
    generator = np.random.default_rng(0)
    for position in range(0, len(content), 7):
        changed = bytearray(content)
        changed[position] ^= int(generator.integers(1, 256))
        (tmp_path / "changed").write_bytes(changed)
        try:
            models.read_state_dict(tmp_path / "changed")
        except UsageError as error:
            assert "\n" not in str(error)


def test_random_bytes_after_every_beginning_are_refused(tmp_path):
    generator = np.random.default_rng(0)
    beginnings = (b"", b"\x80\x02", b"PK\3\4", b"\x10\0\0\0\0\0\0\0{", LEGACY)
    for beginning in beginnings:
        for size in (0, 1, 10, 300):
            (tmp_path / "noise").write_bytes(beginning + generator.bytes(size))
            refusal(tmp_path / "noise")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pth", key="teacher.path")
    assert "Is a directory" in refusal(tmp_path)


def test_a_changed_number_in_an_archive_is_seen(tmp_path):
    content = bytearray((GOLDEN / "tensors.pth").read_bytes())
    content[content.index(struct.pack("<f", 1 / 7))] ^= 1
    (tmp_path / "changed.pth").write_bytes(content)
    assert "damaged or truncated" in refusal(tmp_path / "changed.pth")


def test_archives_that_are_something_else(tmp_path):
    def made(**entries):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return refusal(tmp_path / "a.zip")

    other = "a zip archive, but neither of torch.save nor of numpy.savez"
    assert other in made(**{"readme.txt": b"x"})
    assert other in made(**{"a/data.pkl": b"N.", "b/data.pkl": b"N."})
    assert other in made(**{"deep/a/data.pkl": b"N."})
    assert "damaged" in made(**{"a.npy": b""})
    (tmp_path / "p.pkl").write_bytes(pickle.dumps({"w": 1}))
    assert "a pickle, but not one of torch.save" in refusal(tmp_path / "p.pkl")
    (tmp_path / "t.txt").write_text("weights")
    assert "expected a .safetensors, .npz or torch.save file" in refusal(tmp_path / "t.txt")


def test_files_that_would_explode_are_refused(tmp_path):
    zeros = bytes(2**27)
    for name in ("a/data.pkl", "a.npy"):
        with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, zeros)
        assert os.path.getsize(tmp_path / "bomb") < 2**18
        assert "would unpack to over" in refusal(tmp_path / "bomb")


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_npz_arrays_are_what_their_headers_say(tmp_path, version):
    def made(array, change=lambda content: content):
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=version)
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("w.npy", change(file.getvalue()))
        return tmp_path / "a.npz"

    columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(models.read_state_dict(made(columns))["w"], columns)
    assert "holds Python objects" in refusal(made(np.array([None, 1], object)))
    for old, new in ((b"(2, 3)", b"(9, 9)"), (b"(2, 3)", b"(0, 3)"), (b"'<f8'", b"'<f4'")):
        message = refusal(
            made(columns, lambda content, old=old, new=new: content.replace(old, new))
        )
        assert "has another size than its shape" in message
    assert "damaged" in refusal(made(columns, lambda content: b"?" + content))
    assert "version (9, 0)" in refusal(made(columns, lambda c: c[:6] + b"\x09\0" + c[8:]))


def test_an_unknown_kind_of_safetensors_number_is_refused(tmp_path):
    header = b'{"w":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    (tmp_path / "a").write_bytes(struct.pack("<Q", len(header)) + header + b"ab")
    assert "'w' is F8_E4M3, which has no NumPy type" in refusal(tmp_path / "a")
