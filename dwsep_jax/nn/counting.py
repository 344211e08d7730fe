"""What a function costs, read off the program that jax traces; knows no model.

A MAC is one multiply-add. FLOPs are a count of operations, two for each MAC. (FLOP/s is
a rate, and is measured in `efficiency.timing`.)

XLA counts only operations that contribute to the result: it leaves out the taps of a
convolution that fall on padding, and adds one FLOP per element for an elementwise
operation. The operations here carry both counts, the textbook's and XLA's.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core


class Operation(NamedTuple):
    """An operation in a program.

    Attributes:
      scope: names of the enclosing modules, joined by "/".
      kind: "convolution", "depthwise convolution" or "grouped convolution" (of several
        channels each), "matrix product", or jax's name.
      output_shape: shape of its result.
      macs: multiply-adds by the textbook formula, including taps on padding.
      padding_macs: those of `macs` that fall on padding, or between the pixels of a
        dilated image.
      flops: FLOPs as XLA counts them.
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
      parameters: number of trainable parameters.
      macs: multiply-adds by the textbook formula.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def list_operations(function: Callable, *args: Any) -> list[Operation]:
    """Return the operations of `function(*args)`, in order, including nested calls.

    Operations in a `scan` or a `fori_loop` of constant length count once per iteration;
    of branches, the last counts. Operations whose results are unused are listed too,
    although XLA drops them.

    Args:
      function: any function that jax can trace. Build it with the reference lowering:
        a convolution lowered to shifted products leaves no convolution to count.
      *args: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
      ValueError: for multiply-adds in a `while_loop`: nobody knows how often it runs.
        Without any, its operations count once.
    """
    return list(_walk(jax.make_jaxpr(function)(*args).jaxpr, "", 1))


def count_macs(function: Callable, *args: Any) -> list[Operation]:
    """Return those operations of `list_operations` that have multiply-adds."""
    return [op for op in list_operations(function, *args) if op.macs]


def list_layers(
    operations: Sequence[Operation], params: Mapping[str, Any]
) -> list[Layer]:
    """Return the layers in the order in which they run.

    Args:
      operations: of a function whose scopes are `<any name>/<path of the module>`, like
        those of a flax module.
      params: nested dicts of parameters, or of their shapes, keyed along those paths.
    """
    sizes = Counter()
    for path, leaf in jax.tree.leaves_with_path(params):
        sizes["/".join(entry.key for entry in path[:-1])] += leaf.size
    found = defaultdict(list)
    for operation in operations:
        names = operation.scope.split("/")[1:]
        depths = range(len(names), 0, -1)
        paths = ["/".join(names[:i]) for i in depths]
        # A layer may be computed inside another one; its own name then comes last.
        paths += ["/".join((*names[: i - 1], names[-1])) for i in depths]
        name = next((path for path in paths if path in sizes), None)
        if name is None and operation.macs:
            name = paths[0] if paths else operation.scope
        if name is not None:
            found[name].append(operation)
    layers = []
    for name, own in found.items():
        most = max(own, key=lambda operation: operation.macs)
        kind = most.kind if most.macs else "elementwise"
        macs = sum(operation.macs for operation in own)
        layers.append(Layer(name, kind, own[-1].output_shape, sizes[name], macs))
    return layers


def itemize_flops(
    operations: Sequence[Operation], category: Callable[[Operation], str]
) -> dict[str, int]:
    """Return the FLOPs of operations, as XLA counts them, by purpose.

    Convolutions and matrix products make one item, `conv_and_dense`, by the textbook
    formula; `padding` is negative, the part of it that XLA leaves out. `category` names
    the item of every other operation.
    """
    items = Counter({"conv_and_dense": 0, "padding": 0})
    for operation in operations:
        if operation.macs:
            items["conv_and_dense"] += 2 * operation.macs
            items["padding"] -= 2 * operation.padding_macs
        elif operation.flops:
            items[category(operation)] += operation.flops
    return items


def xla_flops(function: Callable, *args: Any) -> float | None:
    """Return XLA's count of the FLOPs of `function(*args)`, the same on every device.

    XLA's CPU backend counts the program as traced, before any compiler changes it: the
    GPU backend counts compiled programs only, and sees little of the libraries that
    those call. Transcendental functions (exponentials, roots) are not among the FLOPs.

    Args:
      function: as for `list_operations`, without loops: XLA counts a loop's body once.
      *args: `jax.ShapeDtypeStruct`s, or trees of them.

    Returns:
      None where XLA gives no count, or jax was told not to use the CPU.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
    with jax.default_device(cpu):
        # Lowered for a TPU, where random bits take no loop; nothing runs.
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


def peak_bytes(compiled: Any) -> int | None:
    """Return the memory that a compiled program needs at once, by XLA's analysis.

    This is the sum of arguments, results and temporary memory, shared buffers counted
    once: XLA's own peak leaves out temporary memory on a CPU (jax 0.10.2). None where
    XLA gives no analysis.
    """
    usage = compiled.memory_analysis()
    if usage is None:
        return None
    arguments, results = usage.argument_size_in_bytes, usage.output_size_in_bytes
    return arguments + results - usage.alias_size_in_bytes + usage.temp_size_in_bytes


def _walk(jaxpr, outer_scope, repeats) -> Iterator[Operation]:
    for eqn in jaxpr.eqns:
        name, scope = eqn.primitive.name, str(eqn.source_info.name_stack)
        scope = "/".join(filter(None, (outer_scope, scope)))
        if inner := list(_inner_jaxprs(eqn)):
            times = eqn.params["length"] if name == "scan" else 1
            for program in inner:
                operations = list(_walk(program, scope, repeats * times))
                if name == "while" and any(operation.macs for operation in operations):
                    raise ValueError(
                        "a while_loop has multiply-adds and runs an unknown number of "
                        f"times; use scan, or fori_loop of constant bounds: {scope}"
                    )
                yield from operations
            continue
        kind, macs, padding_macs = name, 0, 0
        if name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            macs = eqn.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
            kind = "matrix product"
        elif name == "conv_general_dilated":
            macs, padding_macs = _conv_macs(eqn)
            kind = _conv_kind(eqn)
        flops = 2 * (macs - padding_macs) + _elementwise_flops(eqn)
        counts = (repeats * count for count in (macs, padding_macs, flops))
        yield Operation(scope, kind, eqn.outvars[0].aval.shape, *counts)


def _inner_jaxprs(eqn):
    """Yield the programs that an operation calls; of several branches, the last."""
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        jaxprs = [v for v in values if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
        for jaxpr in jaxprs[-1:]:
            yield getattr(jaxpr, "jaxpr", jaxpr)


def _conv_kind(eqn):
    if eqn.params["feature_group_count"] == 1:
        return "convolution"
    input_axis = eqn.params["dimension_numbers"].rhs_spec[1]
    is_depthwise = eqn.invars[1].aval.shape[input_axis] == 1
    return "depthwise convolution" if is_depthwise else "grouped convolution"


def _conv_macs(eqn):
    """Return the textbook's multiply-adds, and those of them that fall on padding."""
    image, kernel, output = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    numbers = eqn.params["dimension_numbers"]
    macs = math.prod(output) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    taps = taps_on_image = 1
    for i, (low, _) in enumerate(eqn.params["padding"]):
        first = np.arange(output[numbers.out_spec[2 + i]])
        first = first * eqn.params["window_strides"][i] - low
        offsets = np.arange(kernel[numbers.rhs_spec[2 + i]])
        offsets = offsets * eqn.params["rhs_dilation"][i]
        positions = np.add.outer(first, offsets)
        pixels, between = np.divmod(positions, eqn.params["lhs_dilation"][i])
        is_inside = (pixels >= 0) & (pixels < image[numbers.lhs_spec[2 + i]])
        taps *= positions.size
        taps_on_image *= int(np.sum(is_inside & (between == 0)))
    return macs, macs // taps * (taps - taps_on_image)


def _elementwise_flops(eqn):
    """Return XLA's count for an operation that is not made of multiply-adds."""
    name, size = eqn.primitive.name, eqn.outvars[0].aval.size
    if name.startswith("reduce_"):
        return eqn.invars[0].aval.size - size
    if name == "integer_pow":  # By repeated squaring.
        power = abs(eqn.params["y"])
        return size * (power.bit_length() + power.bit_count() - 2)
    if name == "random_bits":  # By threefry: 32 bits per number, then a cast.
        numbering = 2 * (eqn.outvars[0].aval.ndim - 1)
        is_cast = eqn.params["bit_width"] < 32
        return size * (_THREEFRY_FLOPS + numbering + is_cast)
    return size * _FLOPS_PER_ELEMENT.get(name, 0)


_ONE_FLOP = (
    "add add_any sub mul div rem max min neg abs sign floor ceil round clamp square "
    "is_finite select_n and or xor not eq ne lt le gt ge shift_left "
    "shift_right_arithmetic shift_right_logical convert_element_type"
)
# The second is the gradient of tanh since jax 0.12: 1 - x**2 as (1 + x) * (1 - x).
_THREE_FLOPS = {"logistic": 3, "one_minus_square": 3}
_FLOPS_PER_ELEMENT = dict.fromkeys(_ONE_FLOP.split(), 1) | _THREE_FLOPS
_THREEFRY_FLOPS = 121
