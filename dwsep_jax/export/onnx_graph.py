"""A trained dense network as a graph of ONNX, of convolutions with groups.

Batch norms that follow a convolution are folded into it. Those before one, of which
each reader of a channel has its own, stay operations.
"""

from typing import Any

import numpy as np
import onnx
from ml_collections import ConfigDict
from onnx import TensorProto, helper, numpy_helper

# The oldest that has GELU, and a file format that runtimes of its time read.
OPSET, _IR_VERSION = 20, 9
_EPSILON = 1e-5  # Of our batch norms.


class _Graph:
    """Nodes and weights in the order in which they are added; values by their names."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def add(self, op, *inputs, **attributes):
        """Add a node and return the name of its output; an array becomes a weight."""
        names = [x if isinstance(x, str) else self._store(x) for x in inputs]
        output = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], output, **attributes))
        return output

    def _store(self, array):
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def convolve(self, x, kernel, bias=None, stride=1, groups=1):
        """Add a convolution with a kernel (H, W, C/groups, F), padded as SAME."""
        kernel = np.asarray(kernel)
        weights = [kernel.transpose(3, 2, 0, 1)] + ([] if bias is None else [bias])
        options = {"group": groups, "strides": [stride, stride]}
        return self.add("Conv", x, *weights, auto_pad="SAME_UPPER", **options)

    def activate(self, x, activation):
        """Add an activation by its name in a config."""
        if activation == "swish":
            return self.add("Mul", x, self.add("Sigmoid", x))
        op, attributes = {
            "relu": ("Relu", {}),
            "leaky_relu": ("LeakyRelu", {"alpha": 0.01}),
            "gelu": ("Gelu", {"approximate": "tanh"}),
        }[activation]
        return self.add(op, x, **attributes)


def make_graph(
    config: ConfigDict, variables: dict[str, Any], image_shape: tuple[int, ...]
) -> onnx.ModelProto:
    """Return the network of a config: uint8 `images` NHWC -> float32 `logits`.

    Args:
      config: resolved.
      variables: `params` and `batch_stats`.
      image_shape: (H, W, C).
    """
    params, stats = variables["params"], variables["batch_stats"]
    graph = _Graph()

    def normalize(x, norm, statistics):
        arrays = (np.concatenate([s[k] for s in statistics]) for k in ("mean", "var"))
        weights = (norm["scale"], norm["bias"], *arrays)
        x = graph.add("BatchNormalization", x, *weights, epsilon=_EPSILON)
        return graph.activate(x, config.activation)

    def add_layer(x, layer, inner_stats):
        if config.bottleneck:
            norm, there = layer["bottleneck_norm"], inner_stats["bottleneck_norm"]
            folded = _fold(layer["bottleneck"]["kernel"], norm, there)
            x = graph.activate(graph.convolve(x, *folded), config.activation)
        conv = layer["conv"]
        if config.conv == "standard":
            return graph.convolve(x, conv["conv"]["kernel"])
        weights = [conv["depthwise"]["kernel"]]
        if config.inner_norm:
            weights = _fold(*weights, conv["norm"], inner_stats["conv"]["norm"])
        x = graph.convolve(x, *weights, groups=weights[0].shape[-1])
        if config.inner_activation:
            x = graph.activate(x, config.activation)
        return graph.convolve(x, conv["pointwise"]["kernel"])

    x = graph.add("Cast", "images", to=TensorProto.FLOAT)
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    x = graph.add("Sub", graph.add("Div", x, np.float32(127.5)), np.float32(1))
    x = graph.convolve(x, params["stem"]["conv"]["kernel"], stride=config.stem_stride)
    statistics = []
    for b, num_layers in enumerate(config.block_sizes):
        if b > 0:
            transition = params[f"transition{b}"]
            x = normalize(x, transition["norm"], statistics)
            x = graph.convolve(x, transition["conv"]["kernel"])
            x = graph.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        statistics = [stats[f"statistics{b}"]]
        block, inside = params[f"block{b}"], stats[f"block{b}"]
        for i in range(num_layers):
            layer = block[f"layer{i}"]
            y = normalize(x, layer["norm"], statistics)
            y = add_layer(y, layer, inside.get(f"layer{i}"))
            x = graph.add("Concat", x, y, axis=1)
            statistics.append(inside[f"statistics{i}"])
    x = graph.add("GlobalAveragePool", normalize(x, params["norm"], statistics))
    head = params["head"]
    graph.add("Gemm", graph.add("Flatten", x), head["kernel"], head["bias"])
    graph.nodes[-1].output[0] = "logits"

    return _make_model(graph, ["N", *image_shape], ["N", len(head["bias"])])


def _make_model(graph, image_shape, logits_shape):
    """Return the checked model of a graph from `images` to `logits`."""
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, image_shape)
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits_shape)
    proto = helper.make_graph(
        graph.nodes, "dwsep_jax", [images], [logits], graph.weights
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(proto, opset_imports=opsets, ir_version=_IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def _fold(kernel, norm, stats):
    """Return the kernel and the bias of a convolution and the norm that follows it."""
    norm, statistics = norm["normalize"], stats["statistics"]
    scale = norm["scale"] / np.sqrt(statistics["var"] + _EPSILON)
    return kernel * scale, norm["bias"] - statistics["mean"] * scale
