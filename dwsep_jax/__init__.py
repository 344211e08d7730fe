"""Depthwise-separable and standard convolutions in JAX and Flax, side by side.

Names are imported when they are first used, so `import dwsep_jax` costs nothing.
"""

import importlib

_MODULES = {
    "depthwise_conv": "ops",
    "pointwise_conv": "ops",
    "DepthwiseConv": "layers",
    "PointwiseConv": "layers",
    "SeparableConv": "layers",
    "StandardConv": "layers",
    "BatchNorm": "layers",
    "BatchStatistics": "layers",
    "Normalize": "layers",
    "Dropout": "layers",
    "DenseNet": "models",
    "create_model": "models",
    "TrainState": "step",
    "create_train_state": "step",
    "make_run_keys": "step",
    "train_step": "step",
    "train_many": "step",
    "eval_step": "step",
    "count_macs": "efficiency",
    "write_report": "report",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
