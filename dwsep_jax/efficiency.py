"""What a function costs. Knows no model: it reads the program that jax traces.

A MAC is one multiply-add. FLOPs are a count of operations, two for each MAC.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend import core


class Operation(NamedTuple):
    """A convolution or matrix product in a program.

    Attributes:
      scope: names of the modules around it, joined by "/".
      output_shape: shape of its result.
      macs: multiply-adds by the textbook formula, which counts taps on padding too.
    """

    scope: str
    output_shape: tuple[int, ...]
    macs: int


def count_macs(function: Callable, *args: Any) -> list[Operation]:
    """Return the convolutions and matrix products of `function(*args)`, in order.

    Args:
      function: any function that jax can trace. Build it with the reference lowering:
        a convolution lowered to shifted products has no convolution left to count.
      *args: arrays, or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return list(_walk(jax.make_jaxpr(function)(*args).jaxpr, "", 1))


def _walk(jaxpr, outer_scope, repeats):
    for eqn in jaxpr.eqns:
        scope = "/".join(s for s in (outer_scope, str(eqn.source_info.name_stack)) if s)
        formula = _FORMULAS.get(eqn.primitive.name)
        if formula:
            shape = eqn.outvars[0].aval.shape
            yield Operation(scope, shape, repeats * formula(eqn))
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for inner in _inner_jaxprs(eqn):
            yield from _walk(inner, scope, repeats * times)


def _inner_jaxprs(eqn):
    """Yield the programs that an operation calls; of several branches, the last."""
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        jaxprs = [v for v in values if isinstance(v, core.Jaxpr | core.ClosedJaxpr)]
        for jaxpr in jaxprs[-1:]:
            yield getattr(jaxpr, "jaxpr", jaxpr)


def _conv_macs(eqn):
    kernel_shape = eqn.invars[1].aval.shape
    out_feature_axis = eqn.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel_shape) // kernel_shape[out_feature_axis]
    return eqn.outvars[0].aval.size * per_output


def _dot_macs(eqn):
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


_FORMULAS = {"conv_general_dilated": _conv_macs, "dot_general": _dot_macs}
