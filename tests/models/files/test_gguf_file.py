"""GGUF files that lie: one line, bounded memory, nothing written."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_jax import cli
from distill_jax.errors import UsageError
from distill_jax.models.files import gguf_file

gguf = pytest.importorskip("gguf", reason="needs pip install 'distill_jax[gguf]'")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _file(
    *,
    keys: bytes = b"",
    key_count: int = 0,
    tensors: bytes = b"",
    count: int = 0,
    data: bytes = b"",
) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, count, key_count) + keys + tensors
    return head + b"\0" * (-len(head) % 32) + data


def _tensor(name="t", shape=(32,), kind=0, offset=0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return _text(name) + dimensions + struct.pack("<IQ", kind, offset)


def _key(name: str, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _array(kind: int, count: int, value: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + value


WHOLE = _file(
    keys=_key("a", 8, _text("é")) + _key("b", 9, _array(5, 2, struct.pack("<2i", -1, 7))),
    key_count=2,
    tensors=_tensor(shape=(32, 2), kind=2) + _tensor("u", (3,), offset=64),
    count=2,
    data=gguf.quantize(
        np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32), gguf.GGMLQuantizationType.Q4_0
    ).tobytes().ljust(64, b"\0")
    + np.arange(3, dtype=np.float32).tobytes(),
)  # fmt: skip


def test_a_file_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE)
    with gguf_file.File(path, key="import") as file:
        assert file.metadata == {"a": "é", "b": [-1, 7]}
        assert {name: each.shape for name, each in file.tensors.items()} == {
            "t": (2, 32),
            "u": (3,),
        }
        np.testing.assert_array_equal(file.read("u"), [0, 1, 2])
        expected = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
        np.testing.assert_allclose(file.read("t"), expected, atol=0.13)


LIES = {
    "empty": (b"", "empty"),
    "another file": (b"PK\x03\x04" + b"\0" * 60, "does not begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "2**60 keys": (_file(key_count=2**60), "has 1152921504606846976 entries"),
    "2**60 tensors": (_file(count=2**60), "has 1152921504606846976 entries"),
    "2**60 numbers": (_file(keys=_key("a", 9, _array(4, 2**60)), key_count=1), "ends after"),
    "2**60 texts": (_file(keys=_key("a", 9, _array(8, 2**60)), key_count=1), "entries"),
    "a long text": (_file(keys=_key("a", 8, struct.pack("<Q", 2**62)), key_count=1), "ends after"),
    "no UTF-8": (_file(keys=_key("a", 8, struct.pack("<Q", 1) + b"\xff"), key_count=1), "UTF-8"),
    "arrays of arrays": (_file(keys=_key("a", 9, _array(9, 1)), key_count=1), "unknown type 9"),
    "an unknown type": (_file(keys=_key("a", 77, b"\0" * 9), key_count=1), "unknown type 77"),
    "a key twice": (_file(keys=_key("a", 7, b"\1") * 2, key_count=2), "a is there twice"),
    "alignment 3": (
        _file(keys=_key("general.alignment", 4, struct.pack("<I", 3)), key_count=1),
        "no power of two",
    ),
    "alignment 2**31": (
        _file(
            keys=_key("general.alignment", 4, struct.pack("<I", 2**31)), key_count=1,
            tensors=_tensor(), count=1, data=b"\0" * 128,
        ),
        "ends after the file",
    ),
    "a tensor twice": (
        _file(tensors=_tensor() + _tensor(offset=128), count=2, data=b"\0" * 256),
        "t is there twice",
    ),
    "9 dimensions": (_file(tensors=_tensor(shape=(1,) * 9), count=1, data=b"\0" * 128), "9 dim"),
    "2**63 rows": (_file(tensors=_tensor(shape=(32, 2**63)), count=1), "ends after the file"),
    "no rows": (_file(tensors=_tensor(shape=(32, 0)), count=1), "shape"),
    "half a block": (_file(tensors=_tensor(shape=(33,), kind=2), count=1), "no multiple of 32"),
    "type 9999": (_file(tensors=_tensor(kind=9999), count=1), "unknown type 9999"),
    "beyond the end": (_file(tensors=_tensor(offset=2**40), count=1), "ends after the file"),
    "not aligned": (_file(tensors=_tensor(offset=8), count=1, data=b"\0" * 256), "multiple of 32"),
    "overlapping": (
        _file(tensors=_tensor() + _tensor("u", offset=64), count=2, data=b"\0" * 256),
        "u overlaps t",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_what_a_file_states_is_not_believed(name, tmp_path, capsys):
    content, words = LIES[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert cli.main(["import", str(path), f"--workdir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and str(path) in error and error.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(WHOLE[:-4] + np.float32(np.nan).tobytes())
    with gguf_file.File(path, key="import") as file, pytest.raises(UsageError, match="finite"):
        file.read("u")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_ends_in_one_line_and_takes_little_memory(tmp_path_factory, data):
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.sampled_from([len(content), len(content) - 1, 150, 60]))]
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with gguf_file.File(path, key="import") as file:
            for name in file.tensors:
                file.read(name)
    except UsageError as error:
        assert str(path) in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4 * 2**20
