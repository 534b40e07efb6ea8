"""For tests of PyTorch's files: those that PyTorch wrote, and others written by hand."""

import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest

from distill_jax import models
from distill_jax.errors import UsageError

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "torch"
FILES = (
    "tensors.pth",
    "tensors_legacy.pth",
    "tensors.npz",
    "tensors.safetensors",
    "checkpoint.pth.tar",
    "checkpoint_legacy.pth.tar",
)

# The three pickles before the content in the older format: a magic number, a version, a machine.
LEGACY = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
NUMBERS = np.arange(6, dtype=np.float32)


def refusal(path, **named):
    """The one line in which `read_state_dict` refuses a file."""
    with pytest.raises(UsageError) as error:
        models.read_state_dict(path, **named)
    message = str(error.value)
    assert message.startswith(f"{named.get('key', 'path')}={str(path)!r}: ") and "\n" not in message
    assert len(message) < 400 + len(str(path))
    return message


def text(value):
    """The instruction that puts a string on the stack; likewise the functions below."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    packed = value.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(packed)]) + packed


def row(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(shape, strides, *, offset=0, size=6, key="0", kind="FloatStorage", part=None):
    whole = b"(" + text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(key) + text("cpu")
    whole += number(size) + (b"" if part is None else b"(" + text("v") + row(part)[1:]) + b"tQ"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + whole
        + number(offset)
        + row(shape)
        + row(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def mapping(**values):
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def written(folder, body, *, legacy=False):
    """A file of torch.save: `body` is its pickle, and storage "0" is `NUMBERS`."""
    keys = ["0"] if b"Storage" in body else []
    pickled = body if body[:1] == b"\x80" else b"\x80\x02" + body + b"."
    if legacy:
        content = LEGACY + pickled + pickle.dumps(keys, 2)
        content += b"".join(struct.pack("<q", NUMBERS.size) + NUMBERS.tobytes() for _ in keys)
        (folder / "made.pth").write_bytes(content)
    else:
        with zipfile.ZipFile(folder / "made.pth", "w") as archive:
            archive.writestr("made/data.pkl", pickled)
            for key in keys:
                archive.writestr(f"made/data/{key}", NUMBERS.tobytes())
    return folder / "made.pth"
