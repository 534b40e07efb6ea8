"""A traced JAX function as an ONNX graph, primitive by primitive.

jax2onnx would do this, but it pins a version of orbax-checkpoint that this project cannot use, and
image networks need few primitives. All that depends on constants alone, such as the batch
normalisation that is folded into a kernel, is computed here; the rest becomes nodes. A primitive
without a rule is refused by its name.

One dimension may be symbolic, the batch: `jax.export.symbolic_shape("batch")`. Left out on purpose:
control flow, random numbers, and every primitive that no registered network has.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from distill_jax.errors import UsageError

#: The version of ONNX's default operators; onnxruntime 1.15 and later have all of it.
OPSET = 17
_IR = 9  # of the file, the last one before types that older readers do not know
_LARGEST = np.iinfo(np.int64).max

Value = np.ndarray | str  # a constant, or the name of an output in the graph


class Graph:
    """Nodes and constants of a graph that is being written.

    Args:
      batch: the name of a graph input whose first dimension is the symbolic one.
    """

    def __init__(self, batch: str):
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple, str] = {}
        self._batch_of = batch
        self._batch: str | None = None

    def node(self, operator: str, *inputs: Value, outputs: int = 0, **attributes: Any) -> Any:
        """Adds a node; the name of its output, or a list of them where `outputs` is not 0."""
        from onnx import helper

        names = [f"{operator.lower()}_{len(self.nodes)}_{i}" for i in range(outputs or 1)]
        given = [self.named(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, **attributes))
        return names if outputs else names[0]

    def named(self, value: Value) -> str:
        """The name of a value; a constant becomes an initializer, equal ones the same."""
        if isinstance(value, str):
            return value
        value = np.ascontiguousarray(value)
        key = (value.dtype.str, value.shape, value.tobytes() if value.size < 64 else id(value))
        if key not in self._names:
            self._names[key] = f"constant_{len(self.constants)}"
            self.constants[self._names[key]] = value
        return self._names[key]

    def batch(self) -> str:
        """The size of the batch, int64 [1]."""
        if self._batch is None:
            shape = self.node("Shape", self._batch_of)
            self._batch = self.node("Slice", shape, _ints(0), _ints(1))
        return self._batch

    def shape(self, dims: Sequence[Any]) -> Value:
        """A shape as int64 [n]; the symbolic dimension is that of the batch."""
        if all(isinstance(dim, int) for dim in dims):
            return _ints(*dims)
        return self.node(
            "Concat",
            *(_ints(dim) if isinstance(dim, int) else self.batch() for dim in dims),
            axis=0,
        )


def _ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


def require(key: str) -> None:
    """UsageError where the package onnx is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise UsageError(
            f"{key}: the package onnx is not installed; expected it by: "
            "pip install 'distill_jax[onnx]'"
        )


def model(
    function: Callable[[jax.Array], jax.Array],
    argument: jax.ShapeDtypeStruct,
    *,
    names: tuple[str, str],
    metadata: Mapping[str, str],
    key: str,
) -> bytes:
    """The bytes of an ONNX model that computes a function of one array.

    Args:
      function: of an array [batch, ...] to an array [batch, ...].
      argument: its shape and dtype; the first dimension may be symbolic.
      names: of input and output in the graph.
      metadata: more properties of the file.
      key: the flag that errors name.

    Raises:
      UsageError: the function has a primitive without a rule here, or onnx is not installed.
    """
    require(key)
    import onnx
    from onnx import helper, numpy_helper

    closed = jax.make_jaxpr(function)(argument)
    graph = Graph(names[0])
    try:
        (found,) = _interpret(graph, closed.jaxpr, closed.consts, [names[0]])
    except _NoRule as error:
        raise UsageError(
            f"{key}: ONNX has no rule here for {error}; expected another format"
        ) from None
    graph.nodes.append(helper.make_node("Identity", [graph.named(found)], [names[1]]))
    (out,) = closed.out_avals
    described = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info(names[0], _type(argument.dtype), _dims(argument.shape))],
        [helper.make_tensor_value_info(names[1], _type(out.dtype), _dims(out.shape))],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    made = helper.make_model(
        described,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="distill_jax",
        ir_version=_IR,
    )
    helper.set_model_props(made, dict(metadata))
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


class _NoRule(Exception):
    """A primitive, or an option of one, that no rule here covers."""


def _type(dtype: Any) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _dims(shape: Sequence[Any]) -> list[Any]:
    return [dim if isinstance(dim, int) else "batch" for dim in shape]


def _interpret(
    graph: Graph, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]
) -> list[Value]:
    """The outputs of a jaxpr on values of the graph."""
    known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    known |= {var: np.asarray(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}

    def read(var: Any) -> Value:
        return np.asarray(var.val) if isinstance(var, core.Literal) else known[var]

    for equation in jaxpr.eqns:
        values = [read(var) for var in equation.invars]
        known |= zip(equation.outvars, _compute(graph, equation, values), strict=True)
    return [read(var) for var in jaxpr.outvars]


def _compute(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """The outputs of an equation: of an inner jaxpr, of constants, or by the rule."""
    name, params = equation.primitive.name, equation.params
    inner = next((params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params), None)
    if inner is not None:
        if not hasattr(inner, "jaxpr"):
            return _interpret(graph, inner, (), values)
        return _interpret(graph, inner.jaxpr, inner.consts, values)
    static = all(isinstance(dim, int) for out in equation.outvars for dim in out.aval.shape)
    if static and not any(isinstance(value, str) for value in values):
        found = equation.primitive.bind(*values, **params)
        found = found if equation.primitive.multiple_results else [found]
        return [np.asarray(one) for one in found]
    if name not in _RULES:
        raise _NoRule(f"the primitive {name}")
    found = _RULES[name](graph, equation, *values)
    return found if isinstance(found, list) else [found]


def _shape_of(equation: Any, position: int) -> tuple[Any, ...]:
    return equation.invars[position].aval.shape


def _plain(operator: str) -> Callable[..., Value]:
    return lambda graph, equation, *values: graph.node(operator, *values)


def _identity(graph: Graph, equation: Any, x: Value) -> Value:
    return x


def _square(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Mul", x, x)


def _rsqrt(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Reciprocal", graph.node("Sqrt", x))


def _erfc(graph: Graph, equation: Any, x: Value) -> Value:
    one = np.ones((), equation.outvars[0].aval.dtype)
    return graph.node("Sub", one, graph.node("Erf", x))


def _integer_pow(graph: Graph, equation: Any, x: Value) -> Value:
    power = np.asarray(equation.params["y"], equation.outvars[0].aval.dtype)
    return graph.node("Pow", x, power)


def _not_equal(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    return graph.node("Not", graph.node("Equal", x, y))


def _select(graph: Graph, equation: Any, which: Value, *cases: Value) -> Value:
    if len(cases) != 2:
        raise _NoRule(f"select_n of {len(cases)} cases")
    return graph.node("Where", which, cases[1], cases[0])


def _cast(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Cast", x, to=_type(equation.params["new_dtype"]))


def _reshape(graph: Graph, equation: Any, x: Value) -> Value:
    shape = equation.outvars[0].aval.shape
    dims = [dim if isinstance(dim, int) else -1 for dim in shape]
    return graph.node("Reshape", x, _ints(*dims) if dims.count(-1) < 2 else graph.shape(shape))


def _broadcast(graph: Graph, equation: Any, x: Value, *sizes: Value) -> Value:
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    given = _shape_of(equation, 0)
    placed: list[Any] = [1] * len(shape)
    for place, dim in zip(places, given, strict=True):
        placed[place] = dim
    if list(given) != placed:
        if isinstance(x, np.ndarray):
            x = x.reshape(placed)
        else:
            dims = [dim if isinstance(dim, int) else -1 for dim in placed]
            x = graph.node("Reshape", x, _ints(*dims))
    if placed == list(shape):
        return x
    # A dimension of 1 in the target keeps that of the input.
    target = [1 if dim == own else dim for dim, own in zip(shape, placed, strict=True)]
    return graph.node("Expand", x, graph.shape(target))


def _transpose(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Transpose", x, perm=list(equation.params["permutation"]))


def _concatenate(graph: Graph, equation: Any, *values: Value) -> Value:
    return graph.node("Concat", *values, axis=equation.params["dimension"])


def _split(graph: Graph, equation: Any, x: Value) -> list[Value]:
    sizes = equation.params["sizes"]
    axis = equation.params["axis"]
    return graph.node("Split", x, _ints(*sizes), outputs=len(sizes), axis=axis)


def _slice(graph: Graph, equation: Any, x: Value) -> Value:
    params, shape = equation.params, _shape_of(equation, 0)
    strides = params["strides"] or (1,) * len(shape)
    axes = [
        axis
        for axis, dim in enumerate(shape)
        if (params["start_indices"][axis], params["limit_indices"][axis], strides[axis])
        != (0, dim, 1)
    ]
    starts, ends, steps = (
        _ints(*(int(each[axis]) for axis in axes))
        for each in (params["start_indices"], params["limit_indices"], strides)
    )
    return graph.node("Slice", x, starts, ends, _ints(*axes), steps) if axes else x


def _gather(graph: Graph, equation: Any, x: Value, indices: Value) -> Value:
    """A slice at a constant place, as `x[:, 0]` traces to."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or numbers.operand_batching_dims:
        raise _NoRule("gather at places that are not constant")
    starts, ends, axes = [], [], []
    shape = _shape_of(equation, 0)
    for axis, start in zip(numbers.start_index_map, indices.tolist(), strict=True):
        start = min(max(start, 0), shape[axis] - sizes[axis])  # as the modes clip and fill do here
        starts.append(start)
        ends.append(start + sizes[axis])
        axes.append(axis)
    x = graph.node("Slice", x, _ints(*starts), _ints(*ends), _ints(*axes))
    collapsed = numbers.collapsed_slice_dims
    return graph.node("Squeeze", x, _ints(*collapsed)) if collapsed else x


def _squeeze(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("Squeeze", x, _ints(*equation.params["dimensions"]))


def _pad(graph: Graph, equation: Any, x: Value, fill: Value) -> Value:
    widths = equation.params["padding_config"]
    if any(inner or low < 0 or high < 0 for low, high, inner in widths):
        raise _NoRule("pad with gaps, or that cuts")
    pads = [low for low, _, _ in widths] + [high for _, high, _ in widths]
    return graph.node("Pad", x, _ints(*pads), fill)


def _reduce_sum(graph: Graph, equation: Any, x: Value) -> Value:
    return graph.node("ReduceSum", x, _ints(*equation.params["axes"]), keepdims=0)


def _reduce(operator: str) -> Callable[..., Value]:
    return lambda graph, equation, x: graph.node(
        operator, x, axes=list(equation.params["axes"]), keepdims=0
    )


def _dot_general(graph: Graph, equation: Any, x: Value, y: Value) -> Value:
    (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
    ranks = [len(_shape_of(equation, position)) for position in (0, 1)]
    if not left_batch and (left, right) == ((ranks[0] - 1,), (0,)) and ranks[1] == 2:
        return graph.node("MatMul", x, y)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    first = [next(letters) for _ in range(ranks[0])]
    second = [next(letters) for _ in range(ranks[1])]
    for i, j in zip((*left, *left_batch), (*right, *right_batch), strict=True):
        second[j] = first[i]
    out = [first[i] for i in left_batch]
    out += [first[i] for i in range(ranks[0]) if i not in (*left, *left_batch)]
    out += [second[j] for j in range(ranks[1]) if j not in (*right, *right_batch)]
    return graph.node(
        "Einsum", x, y, equation=f"{''.join(first)},{''.join(second)}->{''.join(out)}"
    )


def _convolution(graph: Graph, equation: Any, x: Value, kernel: Value) -> Value:
    params, layout = equation.params, equation.params["dimension_numbers"]
    if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
        raise _NoRule("a transposed or batch-grouped convolution")
    if any(low < 0 or high < 0 for low, high in params["padding"]):
        raise _NoRule("a convolution whose padding cuts")
    if isinstance(kernel, np.ndarray):
        kernel = kernel.transpose(layout.rhs_spec)
    else:
        kernel = graph.node("Transpose", kernel, perm=list(layout.rhs_spec))
    found = graph.node(
        "Conv",
        graph.node("Transpose", x, perm=list(layout.lhs_spec)),
        kernel,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[low for low, _ in params["padding"]] + [high for _, high in params["padding"]],
        group=params["feature_group_count"],
    )
    return graph.node("Transpose", found, perm=np.argsort(layout.out_spec).tolist())


def _window(graph: Graph, equation: Any, x: Value, operator: str, **options: Any) -> Value:
    """A pooling of [B, H, W, C], by an operator of [B, C, H, W]."""
    params = equation.params
    sizes, strides = params["window_dimensions"], params["window_strides"]
    padding = params["padding"]
    plain = len(sizes) == 4 and all(
        sizes[axis] == strides[axis] == 1 and padding[axis] == (0, 0) for axis in (0, 3)
    )
    dilated = any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"]))
    if not plain or dilated:
        raise _NoRule("a pooling that is not of [B, H, W, C]")
    found = graph.node(
        operator,
        graph.node("Transpose", x, perm=[0, 3, 1, 2]),
        kernel_shape=list(sizes[1:3]),
        strides=list(strides[1:3]),
        pads=[padding[1][0], padding[2][0], padding[1][1], padding[2][1]],
        **options,
    )
    return graph.node("Transpose", found, perm=[0, 2, 3, 1])


def _window_max(graph: Graph, equation: Any, x: Value) -> Value:
    return _window(graph, equation, x, "MaxPool")


def _window_sum(graph: Graph, equation: Any, x: Value) -> Value:
    mean = _window(graph, equation, x, "AveragePool", count_include_pad=1)
    count = np.prod(equation.params["window_dimensions"])
    return graph.node("Mul", mean, np.asarray(count, equation.outvars[0].aval.dtype))


_RULES: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(operator)
        for name, operator in (
            *(("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div")),
            *(("max", "Max"), ("min", "Min"), ("pow", "Pow"), ("neg", "Neg"), ("abs", "Abs")),
            *(("exp", "Exp"), ("log", "Log"), ("sqrt", "Sqrt"), ("tanh", "Tanh"), ("erf", "Erf")),
            *(("logistic", "Sigmoid"), ("gt", "Greater"), ("ge", "GreaterOrEqual")),
            *(("lt", "Less"), ("le", "LessOrEqual"), ("eq", "Equal")),
            *(("and", "And"), ("or", "Or"), ("not", "Not")),
        )
    },
    **dict.fromkeys(("copy", "copy_p", "stop_gradient"), _identity),
    "square": _square,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "integer_pow": _integer_pow,
    "ne": _not_equal,
    "select_n": _select,
    "convert_element_type": _cast,
    "reshape": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "gather": _gather,
    "squeeze": _squeeze,
    "expand_dims": _reshape,
    "pad": _pad,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _window_max,
    "reduce_window_sum": _window_sum,
}
