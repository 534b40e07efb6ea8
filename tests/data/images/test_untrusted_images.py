"""Images from elsewhere: formats, sizes and headers that lie."""

import gzip
import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from distill_jax.data.images.sources import base, folder, idx, npz
from distill_jax.errors import UsageError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"


def test_a_file_of_another_format_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("started"))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(EPS)
    with pytest.raises(UsageError, match="data.path=.*not a readable image"):
        folder.load(str(tmp_path), "train")
    with pytest.raises(Exception, match="cannot identify"):
        base.decode(EPS, "RGB", 0)
    with pytest.raises(Exception, match="cannot identify"):
        base.decode_cut(EPS, "RGB", (8, 8), lambda height, width: (0, 0, 8, 8))


def test_an_image_of_too_many_pixels_is_refused(tmp_path):
    side = 8200  # 1 bit a pixel: a file of some kilobytes
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    with pytest.raises(ValueError, match="8200 x 8200 pixels; expected at most 67,108,864"):
        base.decode(buffer.getvalue(), "L", 0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.png").write_bytes(buffer.getvalue())
    with pytest.raises(UsageError, match="data.path=.*8200 x 8200 pixels"):
        folder.load(str(tmp_path), "train", image_size=32)


def test_a_class_whose_name_is_no_utf8_is_refused(tmp_path):
    (tmp_path / "good").mkdir()
    import os

    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(UsageError, match=r"class folder 'caf\\udce9' is no UTF-8"):
        folder.load(str(tmp_path), "train")


def write_idx(path, shape, content: bytes) -> None:
    head = struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape)
    opened = gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb")
    with opened as file:
        file.write(head + content)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_an_idx_file_unpacks_to_what_its_header_says(end, tmp_path):
    images = tmp_path / f"train-images-idx3-ubyte{end}"
    write_idx(tmp_path / f"train-labels-idx1-ubyte{end}", (2,), b"\0\1")
    write_idx(images, (2, 4, 4), bytes(32))
    assert len(idx.load(str(tmp_path), "train")) == 2
    for content in (bytes(31), bytes(33), bytes(10**8)):
        write_idx(images, (2, 4, 4), content)
        with pytest.raises(UsageError, match="data.path=.*truncated or damaged"):
            idx.load(str(tmp_path), "train")
    write_idx(images, (2**30, 2**10, 2**10), bytes(32))
    with pytest.raises(UsageError, match=r"data.path=.*means \d+;"):
        idx.load(str(tmp_path), "train")


def test_an_npz_file_with_a_header_that_lies_is_refused(tmp_path):
    arrays = {
        "x_train": np.zeros((4, 4, 4), np.uint8),
        "y_train": np.arange(4),
        "x_test": np.zeros((4, 4, 4), np.uint8),
        "y_test": np.arange(4),
    }
    np.savez(tmp_path / "good.npz", **arrays)
    assert len(npz.load(str(tmp_path / "good.npz"), "train")) == 4
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 4, 4)}
    )
    with zipfile.ZipFile(tmp_path / "good.npz") as good:
        with zipfile.ZipFile(tmp_path / "lies.npz", "w") as lies:
            for name in good.namelist():
                content = good.read(name)
                lies.writestr(name, head.getvalue() if name == "x_train.npy" else content)
    with pytest.raises(UsageError, match=r"data.path=.*x_train.npy: its header.*means \d+ bytes"):
        npz.load(str(tmp_path / "lies.npz"), "train")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            large = np.zeros((300, 1024, 1024), np.uint8) if name == "x_train" else array
            np.save(buffer, large)
            bomb.writestr(f"{name}.npy", buffer.getvalue())
    with pytest.raises(UsageError, match="it would unpack to"):
        npz.load(str(tmp_path / "bomb.npz"), "train")


def test_the_formats_are_those_of_the_suffixes():
    registered = Image.registered_extensions()
    assert {registered[suffix] for suffix in folder.SUFFIXES} == set(base.FORMATS)
