"""Pickles of PyTorch: what a state dict needs is read, nothing else, and nothing is executed."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle

import numpy as np
import pytest
from torch_files import NUMBERS, mapping, number, refusal, tensor, text, written

from distill_jax import models

BOTH = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@BOTH
def test_files_written_by_hand_are_read(tmp_path, legacy):
    body = mapping(a=tensor([2, 2], [1, 2], offset=1), b=tensor([6], [1]), c=number(3))
    state = models.read_state_dict(written(tmp_path, body, legacy=legacy))
    assert list(state) == ["a", "b"]
    np.testing.assert_array_equal(state["a"], [[1, 3], [2, 4]])
    np.testing.assert_array_equal(state["b"], NUMBERS)


def test_a_part_of_a_storage(tmp_path):
    body = mapping(a=tensor([2], [1], offset=1, part=[2, 3]))
    state = models.read_state_dict(written(tmp_path, body, legacy=True))
    np.testing.assert_array_equal(state["a"], [3, 4])


def test_names_that_python_2_wrote(tmp_path):
    body = b"}U\x01w" + tensor([6], [1]) + b"s"
    assert list(models.read_state_dict(written(tmp_path, body, legacy=True))) == ["w"]


def test_where_state_dicts_are_found(tmp_path):
    weights, accuracy = mapping(w=tensor([6], [1])), tensor([], [])
    for nest in ("model", "state_dict", "net", "model_state_dict", "student"):
        body = mapping(accuracy=accuracy, **{nest: weights}, optimizer=mapping(m=accuracy))
        assert list(models.read_state_dict(written(tmp_path, body))) == ["w"]
    nested = mapping(net=mapping(state_dict=weights))
    assert list(models.read_state_dict(written(tmp_path, nested))) == ["w"]
    names = mapping(**{"module._orig_mod.w": tensor([6], [1]), "module._orig_mod.v": accuracy})
    assert list(models.read_state_dict(written(tmp_path, names))) == ["w", "v"]
    some = mapping(**{"module.w": accuracy, "v": accuracy})
    assert list(models.read_state_dict(written(tmp_path, some))) == ["module.w", "v"]
    message = refusal(written(tmp_path, mapping(epoch=number(3), ema=weights)))
    assert message.endswith("; it holds ['epoch', 'ema']") and "neither at the top nor" in message
    assert "no tensors by name" in refusal(written(tmp_path, b"]" + accuracy + b"a"))


class OptionsOfTheProgram:
    """Stands for a class of the program that wrote a checkpoint, or of a library of it."""

    def __init__(self):
        self.rate = 0.1


@BOTH
@pytest.mark.parametrize(
    "value",
    [
        np.array([1.0, 2.0]),
        np.array(["a"], object),
        np.float64(3.2),
        np.random.default_rng(0).bit_generator.state,
        pathlib.PurePosixPath("/runs/1"),
        pathlib.PureWindowsPath("c:/runs"),
        datetime.datetime(2026, 1, 1),
        collections.deque([1]),
        frozenset([1]),
        OptionsOfTheProgram(),
        argparse.Namespace(out=pathlib.PurePosixPath("x"), options=OptionsOfTheProgram()),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_lies_next_to_the_weights_is_not_read(tmp_path, value, protocol, legacy):
    fragment = pickle.dumps(value, protocol)
    fragment = (fragment[2:] if protocol == 2 else fragment[11:])[:-1]
    body = mapping(history=fragment, model=mapping(w=tensor([6], [1])))
    state = models.read_state_dict(written(tmp_path, body, legacy=legacy))
    assert list(state) == ["w"]


def test_dtypes_and_classes_of_other_libraries_are_not_made(tmp_path):
    for name in (b"torch\nfloat32", b"torch\nbfloat16", b"omegaconf.dictconfig\nDictConfig"):
        body = mapping(dtype=b"c" + name + b"\n", model=mapping(w=tensor([6], [1])))
        assert list(models.read_state_dict(written(tmp_path, body))) == ["w"]


class Evil:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


@BOTH
@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_is_named_and_not_executed(tmp_path, legacy, protocol):
    trap = tmp_path / "executed"
    evil = Evil(os.system, f"touch {trap}")
    for hidden in (evil, {"w": [evil]}, {"model": {"w": (1, evil)}, "w": 2}):
        body = pickle.dumps(hidden, protocol)
        if protocol < 2:
            body = b"\x80\x02" + body
        message = refusal(written(tmp_path, body, legacy=legacy))
        assert f"it names '{os.system.__module__}.system', which no state dict needs" in message
        assert "not executed" in message
    for function, arguments in ((eval, ("1",)), (exec, ("1",)), (open, (str(trap), "w"))):
        body = pickle.dumps(Evil(function, *arguments), max(protocol, 2))
        assert "it names" in refusal(written(tmp_path, body, legacy=legacy))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"cos\nsystem\n", "'os.system'"),
        (b"ccollections\nOrderedDict.fromkeys\n", "'collections.OrderedDict.fromkeys'"),
        (b"ctorch.serialization\nload\n", "'torch.serialization.load'"),
        (b"c" + b"x" * 5000 + b"\ny\n", "xxx ..., which no state dict needs"),
        (text("os") + text("system") + b"\x93", "'os.system'"),
        (b"(ios\nsystem\n", "instruction INST"),
        (b"(cos\nsystem\no", "'os.system'"),
        (b"(ccollections\nOrderedDict\no", "instruction OBJ"),
        (b"\x82\x01", "instruction EXT1"),
        (b"\x84\x01\0\0\0", "instruction EXT4"),
        (b"P0\n", "instruction PERSID"),
        (text("module") + text("m") + b"\x86Q", "something other than a storage"),
        (mapping(a=tensor([7], [1])), "a tensor [7] reaches number 6 of a storage of 6 numbers"),
        (mapping(a=tensor([6], [1], offset=1)), "reaches number 6"),
        (mapping(a=tensor([2], [2**61])), "reaches number 2305843009213693952"),
        (mapping(a=tensor([1], [1], offset=2**61)), "reaches number 2305843009213693952"),
        (mapping(a=tensor([2**40], [0])), "would unpack to over"),
        (mapping(a=tensor([2**20] * 8, [0] * 8)), "would unpack to over"),
        (mapping(**{str(i): tensor([2**20], [0]) for i in range(20)}), "would unpack to over"),
        (mapping(a=tensor([3], [-1], offset=2)), "damaged"),
        (mapping(a=tensor([6], [1], offset=-1)), "damaged"),
        (mapping(a=tensor([-1], [1])), "damaged"),
        (mapping(a=tensor([2**70], [1])), "damaged"),
        (mapping(a=tensor([0, 2**61, 2**61], [1, 1, 1])), "damaged"),
        (mapping(a=tensor([1] * 64, [1] * 64)), "too many dimensions"),
        (mapping(a=tensor([6], [])), "other strides"),
        (mapping(a=tensor([6], [1], size=-6)), "damaged"),
        (mapping(a=tensor([7], [1], size=7)), "damaged"),
        (mapping(a=tensor([6], [1], key="1")), "damaged"),
        (mapping(a=tensor([6], [1], kind="DoubleStorage")), "damaged"),
        (mapping(a=tensor([6], [1], kind="QInt8Storage")), "'torch.QInt8Storage'"),
        (mapping(a=tensor([2], [1], part=[5, 3])), "a part outside of its storage"),
        (b"(" * 50_000 + b"t" * 50_000, "no tensors by name"),
        (b"]" + b"\x85" * 100_000, "no tensors by name"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns", "no tensors by name"),
        (b"]q\0h\0a", "no tensors by name"),
        (b"}q\0" + text("model") + b"h\0s", "no tensors by name"),
        (b"Nr\xff\xff\xff\xff", "no tensors by name"),
        (b"h\x07", "damaged"),
        (b"0", "damaged"),
        (b"t", "damaged"),
        (b"R", "damaged"),
        (b"N)R", "a call of something that has no name"),
        (b"X\xff\xff\xff\xff", "damaged"),
        (b"\x8e" + b"\xff" * 8, "damaged"),
        (b"\x95" + b"\xff" * 8, "no tensors by name|damaged"),
        (b"X\1\0\0\0\xff", "damaged"),
        (b"L" + b"9" * 10_000 + b"\n", "damaged"),
        (b"N0" * 2_000_001 + b"N", "more than 4000000 instructions"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
@BOTH
def test_hostile_pickles_end_in_one_line(tmp_path, body, words, legacy):
    message = refusal(written(tmp_path, body, legacy=legacy))
    assert any(option in message for option in words.split("|")), message


def test_only_the_storages_of_the_state_dict_are_read(tmp_path):
    lost = tensor([6], [1], key="lost")
    body = mapping(model=mapping(w=tensor([6], [1])), optimizer=mapping(m=lost))
    assert list(models.read_state_dict(written(tmp_path, body))) == ["w"]
