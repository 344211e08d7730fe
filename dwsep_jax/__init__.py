"""Depthwise-separable and standard convolutions in JAX and Flax, side by side.

Names are imported when they are first used, so `import dwsep_jax` costs nothing.
"""

import importlib

_MODULES = {
    "depthwise_conv": "nn.ops",
    "pointwise_conv": "nn.ops",
    "DepthwiseConv": "nn.layers",
    "PointwiseConv": "nn.layers",
    "SeparableConv": "nn.layers",
    "StandardConv": "nn.layers",
    "BatchNorm": "nn.layers",
    "BatchStatistics": "nn.layers",
    "Normalize": "nn.layers",
    "Dropout": "nn.layers",
    "DenseNet": "nn.densenet",
    "create_model": "nn.densenet",
    "TrainState": "train.step",
    "create_train_state": "train.step",
    "make_run_keys": "train.step",
    "train_step": "train.step",
    "train_many": "train.step",
    "eval_step": "train.step",
    "count_macs": "nn.counting",
    "separable_from_keras": "nn.convert",
    "separable_from_torch": "nn.convert",
    "accelerate": "nn.accelerate",
    "undo_accelerate": "nn.accelerate",
    "check_compiler": "nn.compiler",
    "load_trained": "evaluate",
    "write_report": "report.write",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
