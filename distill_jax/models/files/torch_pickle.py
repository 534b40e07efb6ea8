"""Pickles of PyTorch's tensors, read without PyTorch and without executing anything.

`pickle.load` calls whatever function a pickle names. Here a small machine follows the instructions
of the pickle and cannot call anything: the few names that a state dict needs become dictionaries
and `Tensor`s; what else checkpoints hold (the options and scores of a run, paths, NumPy's arrays,
classes of the program that wrote it) becomes `Ignored`, which is never made. Other names of the
standard library and of PyTorch are refused: functions that no checkpoint needs, and modules.

Left out on purpose: whole pickled modules, TorchScript, quantised and sparse tensors.
"""

import dataclasses
import io
import math
import pickletools
import re
import sys
from collections.abc import Callable
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from distill_jax.errors import UsageError

_STEPS = 4_000_000  # Instructions of one pickle; that of a resnet152 with its optimizer has 50,000.

_STORAGES = {
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.BoolStorage": np.dtype(bool),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ComplexDoubleStorage": np.dtype("c16"),
    "torch.ComplexFloatStorage": np.dtype("c8"),
    "torch.DoubleStorage": np.dtype("f8"),
    "torch.FloatStorage": np.dtype("f4"),
    "torch.HalfStorage": np.dtype("f2"),
    "torch.IntStorage": np.dtype("i4"),
    "torch.LongStorage": np.dtype("i8"),
    "torch.ShortStorage": np.dtype("i2"),
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict"}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_FIRST = {  # A call returns the first argument.
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch.Size",
}
_INERT = {
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.frozenset",
    "builtins.getattr",
    "builtins.object",
    "builtins.range",
    "builtins.set",
    "builtins.slice",
    "collections.Counter",
    "collections.deque",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    "decimal.Decimal",
    "fractions.Fraction",
    "functools.partial",
    "torch.Generator",
    "torch.device",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "uuid.UUID",
    *(f"datetime.{kind}" for kind in ("date", "datetime", "time", "timedelta", "timezone")),
    *(
        f"torch.{kind}"
        for kind in (
            "bfloat16 bool channels_last channels_last_3d complex128 complex64 contiguous_format "
            "double float float16 float32 float64 float8_e4m3fn float8_e5m2 half int int16 int32 "
            "int64 int8 long preserve_format short strided uint16 uint32 uint64 uint8"
        ).split()
    ),
}
# Of these modules every name is inert; "numpy" holds for "numpy._core.multiarray" too.
_INERT_MODULES = ("numpy", "pathlib", "torch.optim", "__main__")
# Modules whose other names are refused. Any other module is a library or the program that wrote
# the checkpoint, and its names are classes of options, schedules or scores.
_REFUSED_MODULES = {*sys.stdlib_module_names, "torch", "commands", "torchvision"}
_KNOWN = {*_STORAGES, *_DICTS, *_TENSORS, *_FIRST, *_INERT}


@dataclasses.dataclass(frozen=True)
class Ignored:
    """An object that a state dict does not need and that was not made."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """An array of numbers in the file, or a part of it.

    Attributes:
      key: names the array in the file.
      dtype: of the numbers.
      total: how many numbers the whole array has.
      start, size: the part, in numbers.
    """

    key: str
    dtype: np.dtype
    total: int
    start: int
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides count numbers, as in PyTorch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def shortened(value: object) -> str:
    """`repr`, cut to 80 characters: a file may hold names of any length."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 2**62


def _counts(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_count, value))


def _storage(identity: object) -> Storage:
    """What a persistent id stands for: ("storage", type, key, device, size, None or a part)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise UsageError("it refers to something other than a storage: save model.state_dict()")
    _, kind, key, _, total, *part = identity
    dtype = _STORAGES[kind.name]
    _, start, size = part[0] if part and part[0] is not None else (None, 0, total)
    if not (isinstance(key, str) and _counts((total, start, size))):
        raise TypeError("a storage without a key or a size")
    if start + size > total:
        raise ValueError("a part outside of its storage")
    return Storage(key, dtype, total, start, size)


def _tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    if not (
        isinstance(storage, Storage) and _count(offset) and _counts(shape) and _counts(strides)
    ):
        raise TypeError("a tensor without a storage or a shape")
    if not len(shape) == len(strides) <= 32:
        raise ValueError("a tensor of too many dimensions, or with other strides")
    # The position of its last number; an empty tensor has none.
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise UsageError(
            f"a tensor {list(shape)} reaches number {last} of a storage of {storage.size} numbers"
        )
    return Tensor(storage, offset, shape, strides)


def refusal(name: str) -> UsageError:
    """The error for a pickle that names what no state dict needs."""
    return UsageError(
        f"it names {shortened(name)}, which no state dict needs and which was not executed; "
        "expected what torch.save(model.state_dict(), FILE) writes"
    )


def stranger(tree: Any) -> str:
    """The name of an object that a file holds in place of a state dict; "" where it holds none."""
    return tree.name if isinstance(tree, Ignored) and tree.name not in _KNOWN else ""


def _named(name: str) -> Ignored:
    name = re.sub(r"^__builtin__\.", "builtins.", name)  # of Python 2, and of protocol 2
    inert = name in _KNOWN or any(name.startswith(f"{module}.") for module in _INERT_MODULES)
    if not inert and name.split(".")[0] in _REFUSED_MODULES:
        raise refusal(name)
    return Ignored(name)


def _call(function: object, arguments: tuple) -> Any:
    """What a call of `function` would return, for the few names that are known."""
    if not isinstance(function, Ignored):
        raise TypeError("a call of something that has no name")
    if function.name in _DICTS:
        pairs = arguments[0] if function.name == "collections.OrderedDict" and arguments else ()
        return {key: value for key, value in pairs if isinstance(key, str)}
    if function.name in _TENSORS:
        return _tensor(*arguments[:4])
    return arguments[0] if function.name in _FIRST else function


def _fill(target: object, items: list) -> None:
    """Adds to a list, or key by key to a dictionary. Keys other than strings are left out.

    A state dict has none, and a hostile one can overflow the stack (a deep tuple) or take forever
    (integers with one hash).
    """
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value
    elif not isinstance(target, Ignored):
        raise TypeError("items for something that holds none")


def _filled(target: list | dict, items: list) -> list | dict:
    _fill(target, items)
    return target


class _Machine:
    """What the instructions of a pickle work on.

    Attributes:
      stack: values that wait to be used; the last one is the result.
      marks: heights of the stack at which a list of items begins.
      memo: values that later instructions refer to by number.
      storages: every storage that a tensor refers to, by its key.
    """

    def __init__(self, storages: dict[str, Storage]):
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """Takes the last values off the stack, the lowest first."""
        if len(self.stack) < count:
            raise IndexError("its pickle takes more than it gave")
        start = len(self.stack) - count
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def pop_to_mark(self) -> list[Any]:
        """Takes off what was pushed since the last mark, and the mark."""
        return self.pop(max(len(self.stack) - self.marks.pop(), 0))

    def ignore_to_mark(self, name: str) -> None:
        """Replaces what was pushed since the last mark by an object that is not read."""
        self.pop_to_mark()
        self.push(Ignored(name))

    def pop_storage(self) -> Storage:
        """Takes a persistent id off the stack and returns the storage that it stands for."""
        storage = _storage(self.stack.pop())
        known = self.storages.setdefault(storage.key, storage)
        if (known.dtype, known.total) != (storage.dtype, storage.total):
            raise ValueError("a storage of two kinds")
        return storage

    def fill(self, items: list[Any]) -> None:
        """Adds items to the list or dictionary on top of the stack."""
        _fill(self.stack[-1], items)

    def memoize(self, number: int) -> None:
        self.memo[number] = self.stack[-1]


# What each instruction does, by its name in `pickletools`, given its argument in the file. The
# items are taken off the stack before the value below them is looked at.
_Instruction = Callable[[_Machine, Any], object]
_INSTRUCTIONS: dict[str, _Instruction] = {
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.pop_to_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_to_mark())),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "LIST": lambda m, _: m.push(m.pop_to_mark()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "DICT": lambda m, _: m.push(_filled({}, m.pop_to_mark())),
    "EMPTY_SET": lambda m, _: m.push(Ignored("builtins.set")),
    "APPEND": lambda m, _: m.fill(m.pop(1)),
    "SETITEM": lambda m, _: m.fill(m.pop(2)),
    "APPENDS": lambda m, _: m.fill(m.pop_to_mark()),
    "SETITEMS": lambda m, _: m.fill(m.pop_to_mark()),
    "ADDITEMS": lambda m, _: m.fill(m.pop_to_mark()),
    "PUT": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "MEMOIZE": lambda m, _: m.memoize(len(m.memo)),
    "GET": lambda m, number: m.push(m.memo[number]),
    "BINGET": lambda m, number: m.push(m.memo[number]),
    "LONG_BINGET": lambda m, number: m.push(m.memo[number]),
    "GLOBAL": lambda m, name: m.push(_named(".".join(name.split(" ", 1)))),
    "STACK_GLOBAL": lambda m, _: m.push(_named(".".join(m.pop(2)))),
    "REDUCE": lambda m, _: m.push(_call(*m.pop(2))),
    "NEWOBJ": lambda m, _: m.push(_call(*m.pop(2))),
    "NEWOBJ_EX": lambda m, _: m.push(_call(*m.pop(3)[:2])),
    "FROZENSET": lambda m, _: m.ignore_to_mark("builtins.frozenset"),
    # The attributes of an object, such as the _metadata of a state dict, are dropped.
    "BUILD": lambda m, _: m.pop(1),
    "BINPERSID": lambda m, _: m.push(m.pop_storage()),
}
_CONSTANTS = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8"
)
_INSTRUCTIONS |= dict.fromkeys(_CONSTANTS.split(), _Machine.push)


def run(file: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """The value of the pickle at the position of `file`, which ends up behind the pickle.

    It is made of dictionaries, lists, tuples, strings, bytes, numbers, None, `Tensor`, `Storage`
    and `Ignored`; the storages are also put into `storages`, by their keys.

    Raises:
      UsageError: it names or does what no state dict needs.
      Exceptions of many types: it is not a pickle.
    """
    machine = _Machine(storages)
    for step, (code, argument, _) in enumerate(pickletools.genops(file)):
        if step > _STEPS:
            raise UsageError(f"its pickle has more than {_STEPS} instructions: no state dict")
        if code.name == "STOP":
            return machine.stack.pop()
        if code.name not in _INSTRUCTIONS:
            raise UsageError(f"its pickle has the instruction {code.name}: no state dict")
        _INSTRUCTIONS[code.name](machine, argument)
    raise EOFError("its pickle has no end")
