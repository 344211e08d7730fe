"""What a function costs. Knows no model: it reads the program that jax traces.

A MAC is one multiply-add. FLOPs are a count of operations, two for each MAC; what a
machine does in a second is a rate, FLOP/s, and is measured in `timing`.

XLA's own count takes what is asked for and nothing that is left undone: it leaves out
the taps of a convolution that fall on padding, and adds one for each element of an
elementwise operation. So each operation is counted here in both ways.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Operation(NamedTuple):
    """An operation in a program.

    Attributes:
      scope: names of the modules around it, joined by "/".
      kind: "convolution", "depthwise convolution", "matrix product", or jax's name.
      output_shape: shape of its result.
      macs: multiply-adds by the textbook formula, which counts taps on padding too.
      padding_macs: those of `macs` that fall on padding, or between the pixels of a
        dilated image.
      flops: as XLA counts them.
    """

    scope: str
    kind: str
    output_shape: tuple[int, ...]
    macs: int
    padding_macs: int
    flops: int


class Layer(NamedTuple):
    """A module that has parameters of its own, or multiply-adds.

    Attributes:
      name: path of the module, joined by "/".
      kind: that of its operation with the most MACs; "elementwise" without any.
      output_shape: shape of its last result.
      parameters: trainable numbers.
      macs: multiply-adds, textbook formula.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def list_operations(function: Callable, *args: Any) -> list[Operation]:
    """Return the operations of `function(*args)`, in order, those in calls too.

    A loop's operations count as often as they run, and of branches those of the last.
    Those whose results nobody uses are listed, too; XLA drops them.

    Args:
      function: any function that jax can trace. Build it with the reference lowering:
        a convolution lowered to shifted products has no convolution left to count.
      *args: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return list(_walk(jax.make_jaxpr(function)(*args).jaxpr, "", 1))


def count_macs(function: Callable, *args: Any) -> list[Operation]:
    """Return the convolutions and matrix products of `function(*args)`, in order.

    Takes what `list_operations` takes.
    """
    return [
        operation for operation in list_operations(function, *args) if operation.macs
    ]


def list_layers(
    operations: Sequence[Operation], params: Mapping[str, Any]
) -> list[Layer]:
    """Return the layers in the order in which they run.

    Args:
      operations: of a function whose scopes are `<any name>/<path of the module>`, as
        those of a flax module are.
      params: nested dicts of parameters, or of their shapes, keyed along those paths.
    """
    sizes: dict[str, int] = {}
    for path, leaf in jax.tree.leaves_with_path(params):
        name = "/".join(entry.key for entry in path[:-1])
        sizes[name] = sizes.get(name, 0) + leaf.size
    found: dict[str, list[Operation]] = {}
    for operation in operations:
        names = operation.scope.split("/")[1:]
        depths = range(len(names), 0, -1)
        prefixes = ["/".join(names[:i]) for i in depths]
        # A layer may be computed inside another one, which its own name then follows.
        inside = ["/".join((*names[: i - 1], names[-1])) for i in depths]
        owner = next((name for name in prefixes + inside if name in sizes), None)
        if owner is None and operation.macs:
            owner = prefixes[0] if prefixes else operation.scope
        if owner is not None:
            found.setdefault(owner, []).append(operation)
    layers = []
    for name, own in found.items():
        most = max(own, key=lambda operation: operation.macs)
        kind = most.kind if most.macs else "elementwise"
        macs = sum(operation.macs for operation in own)
        layers.append(Layer(name, kind, own[-1].output_shape, sizes.get(name, 0), macs))
    return layers


def itemize_flops(
    operations: Sequence[Operation], category: Callable[[Operation], str]
) -> dict[str, int]:
    """Return the FLOPs of operations, as XLA counts them, by what they are for.

    Convolutions and matrix products are one item, `conv_and_dense`, by the textbook
    formula; `padding` is negative: what XLA does not count of it. `category` names the
    item of any other operation.
    """
    items = {"conv_and_dense": 0, "padding": 0}
    for operation in operations:
        if operation.macs:
            items["conv_and_dense"] += 2 * operation.macs
            items["padding"] -= 2 * operation.padding_macs
        elif operation.flops:
            name = category(operation)
            items[name] = items.get(name, 0) + operation.flops
    return items


def xla_flops(function: Callable, *args: Any) -> float | None:
    """Return the FLOPs of `function(*args)` by XLA, the same wherever it is asked.

    The program is counted before any compiler has changed it, by the CPU's part of XLA:
    that of a GPU does not count a program that is not compiled, and sees little of the
    libraries that it then calls. Exponentials, roots and the like are not among FLOPs.

    Args:
      function: as for `list_operations`, without loops: XLA counts a loop's body once.
      *args: `jax.ShapeDtypeStruct`s, or trees of them.

    Returns:
      None where XLA does not say, or jax was told to leave the CPU alone.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        # As written for a TPU, where random bits are no loop; nothing runs.
        lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",))
        return read_cost(lowered, "flops")


def read_cost(stage: Any, key: str) -> float | None:
    """Return a figure of XLA's cost analysis, None where there is none.

    Args:
      stage: a lowered or compiled program; versions of jax differ in what they return.
      key: "flops", or "bytes accessed".
    """
    costs = stage.cost_analysis()
    if isinstance(costs, list | tuple):
        costs = costs[0] if costs else None
    value = (costs or {}).get(key)
    return None if value is None or value < 0 else float(value)


def _walk(jaxpr, outer_scope, repeats):
    for eqn in jaxpr.eqns:
        scope = "/".join(s for s in (outer_scope, str(eqn.source_info.name_stack)) if s)
        inner = list(_inner_jaxprs(eqn))
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for program in inner:
            yield from _walk(program, scope, repeats * times)
        if not inner:
            macs, padding_macs = (repeats * count for count in _count_macs(eqn))
            flops = 2 * (macs - padding_macs) + repeats * _elementwise_flops(eqn)
            shape = eqn.outvars[0].aval.shape
            yield Operation(scope, _kind(eqn), shape, macs, padding_macs, flops)


def _inner_jaxprs(eqn):
    """Yield the programs that an operation calls; of several branches, the last."""
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        jaxprs = [v for v in values if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
        for jaxpr in jaxprs[-1:]:
            yield getattr(jaxpr, "jaxpr", jaxpr)


def _kind(eqn):
    name = eqn.primitive.name
    if name == "conv_general_dilated":
        is_grouped = eqn.params["feature_group_count"] > 1
        return "depthwise convolution" if is_grouped else "convolution"
    return "matrix product" if name == "dot_general" else name


def _count_macs(eqn):
    """Return the textbook's multiply-adds, and those of them that are on padding."""
    if eqn.primitive.name == "conv_general_dilated":
        return _conv_macs(eqn)
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        per_output = math.prod(shape[axis] for axis in contracted)
        return eqn.outvars[0].aval.size * per_output, 0
    return 0, 0


def _conv_macs(eqn):
    image, kernel, output = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    numbers = eqn.params["dimension_numbers"]
    macs = math.prod(output) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    taps = taps_on_image = 1
    for i, (low, _) in enumerate(eqn.params["padding"]):
        size = image[numbers.lhs_spec[2 + i]]
        kernel_size = kernel[numbers.rhs_spec[2 + i]]
        output_size = output[numbers.out_spec[2 + i]]
        image_dilation = eqn.params["lhs_dilation"][i]
        first = np.arange(output_size) * eqn.params["window_strides"][i] - low
        offsets = np.arange(kernel_size) * eqn.params["rhs_dilation"][i]
        position, between = np.divmod(np.add.outer(first, offsets), image_dilation)
        taps *= position.size
        taps_on_image *= np.sum((position >= 0) & (position < size) & (between == 0))
    return macs, macs // taps * int(taps - taps_on_image)


def _elementwise_flops(eqn):
    """Return what XLA counts of an operation that is not made of multiply-adds."""
    name, size = eqn.primitive.name, eqn.outvars[0].aval.size
    if name in _REDUCTIONS:
        return eqn.invars[0].aval.size - size
    if name == "integer_pow":  # By repeated squaring.
        power = abs(eqn.params["y"])
        return size * (power.bit_length() + power.bit_count() - 2)
    if name == "random_bits":  # By threefry: 32 bits for each, then cast.
        numbering = 2 * (eqn.outvars[0].aval.ndim - 1)
        is_cast = eqn.params["bit_width"] < 32
        return size * (_THREEFRY_FLOPS + numbering + is_cast)
    return size * _FLOPS_PER_ELEMENT.get(name, 0)


_REDUCTIONS = {
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"),
    *("reduce_and", "reduce_or", "reduce_xor"),
}
_ONE_FLOP = (
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "neg", "abs", "sign"),
    *("floor", "ceil", "round", "clamp", "square", "is_finite", "select_n"),
    *("and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge"),
    *("shift_left", "shift_right_arithmetic", "shift_right_logical"),
    "convert_element_type",
)
# Of the gradient of tanh since jax 0.12: 1 - x**2 as (1 + x) * (1 - x).
_THREE_FLOPS = ("logistic", "one_minus_square")
_FLOPS_PER_ELEMENT = dict.fromkeys(_ONE_FLOP, 1) | dict.fromkeys(_THREE_FLOPS, 3)
_THREEFRY_FLOPS = 121
