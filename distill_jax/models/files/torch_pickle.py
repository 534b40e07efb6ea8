"""Pickles of PyTorch's tensors, read without PyTorch and without executing anything.

`pickle.load` calls whatever function a pickle names. Here a small machine follows the instructions
of the pickle, and has no means to call anything: the few names that a state dict needs become
dictionaries and `Tensor`s; what checkpoints hold beside it (the options and scores of a run)
becomes `Ignored`; any other name is refused.

Left out on purpose: whole pickled modules, TorchScript, quantised and sparse tensors.
"""

import dataclasses
import io
import math
import pickletools
from typing import Any

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
_FIRST = {"torch._utils._rebuild_parameter", "torch.Size"}  # These stand for their first argument.
_INERT = {
    "__builtin__.set",
    "_codecs.encode",
    "argparse.Namespace",
    "builtins.set",
    "collections.Counter",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "torch.device",
}
_KNOWN = {*_STORAGES, *_DICTS, *_TENSORS, *_FIRST, *_INERT}

_CONSTANTS = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Something that stands beside a state dict and was not made."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """A row of numbers in the file, or the part of one that starts at `start`; counts of numbers.

    `total` is how many the whole row has.
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
    """`repr`, of no more than 80 characters: what a file says may be long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _storage(identity: object) -> Storage:
    """What a persistent id stands for: ("storage", type, key, device, size, None or a part)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise UsageError("it refers to something other than a storage: save model.state_dict()")
    _, kind, key, _, total, *part = identity
    dtype = _STORAGES[kind.name]
    _, start, size = part[0] if part and part[0] is not None else (None, 0, total)
    if not (isinstance(key, str) and all(map(_whole, (total, start, size)))):
        raise TypeError("a storage without a key or a size")
    if start + size > total:
        raise ValueError("a part outside of its storage")
    return Storage(key, dtype, total, start, size)


def _tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    known = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not (known and all(map(_whole, (offset, *shape, *strides)))):
        raise TypeError("a tensor without a storage or a shape")
    if not len(shape) == len(strides) <= 32:
        raise ValueError("a tensor of too many dimensions, or with other strides")
    # The place of its last number; an empty tensor has none.
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.size:
        raise UsageError(
            f"a tensor {list(shape)} reaches number {last} of a storage of {storage.size} numbers"
        )
    return Tensor(storage, offset, shape, strides)


def _named(name: str) -> Ignored:
    if name not in _KNOWN:
        raise UsageError(
            f"it names {shortened(name)}, which no state dict needs and which was not executed; "
            "expected what torch.save(model.state_dict(), FILE) writes"
        )
    return Ignored(name)


def _made(function: object, arguments: tuple) -> Any:
    """What calling `function` would have given, for the few names that are known."""
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
    (integers of one hash).
    """
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str):
                target[key] = value
    elif not isinstance(target, Ignored):
        raise TypeError("items for something that holds none")


def run(file: io.BytesIO, storages: dict[str, Storage]) -> Any:
    """The value of the pickle at the position of `file`, which is left behind it.

    It is made of dictionaries, lists, tuples, strings, bytes, numbers, None, `Tensor`, `Storage`
    and `Ignored`; the storages are also put into `storages`, by their keys.

    Raises:
      UsageError: it names or does what no state dict needs.
      Exceptions of many types: it is not a pickle.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def last(count: int) -> list:
        if len(stack) < count:
            raise IndexError("its pickle takes more than it gave")
        start = len(stack) - count
        taken = stack[start:]
        del stack[start:]
        return taken

    def since_mark() -> list:
        return last(max(len(stack) - marks.pop(), 0))

    for step, (code, argument, _) in enumerate(pickletools.genops(file)):
        if step > _STEPS:
            raise UsageError(f"its pickle has more than {_STEPS} instructions: no state dict")
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _CONSTANTS:
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code.name == "NEWTRUE")
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK":
                since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(last(int(code.name[-1]))))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "LIST":
                stack.append(since_mark())
            case "EMPTY_DICT":
                stack.append({})
            case "DICT":
                items = since_mark()
                stack.append({})
                _fill(stack[-1], items)
            case "EMPTY_SET":
                stack.append(Ignored("builtins.set"))
            case "APPEND" | "SETITEM":
                items = last(1 if code.name == "APPEND" else 2)
                _fill(stack[-1], items)
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                items = since_mark()
                _fill(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL" | "STACK_GLOBAL":
                parts = argument.split(" ", 1) if code.name == "GLOBAL" else last(2)
                stack.append(_named(".".join(parts)))
            case "REDUCE" | "NEWOBJ":
                stack.append(_made(*last(2)))
            case "BUILD":
                last(1)  # The attributes of an object, such as the _metadata of a state dict.
            case "BINPERSID":
                storage = _storage(stack.pop())
                other = storages.setdefault(storage.key, storage)
                if (other.dtype, other.total) != (storage.dtype, storage.total):
                    raise ValueError("a storage of two kinds")
                stack.append(storage)
            case _:
                raise UsageError(f"its pickle has the instruction {code.name}: no state dict")
    raise EOFError("its pickle has no end")
