"""The dense network as most people write it in Flax: `nn.Conv` and `nn.BatchNorm`.

Every consumer of a channel has its own batch norm. `plain_variables` converts the
weights of `dwsep_jax.DenseNet`, so that the two can be compared.
"""

from collections import defaultdict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from dwsep_jax.nn.densenet import DenseNet, create_model
from dwsep_jax.train import optim
from dwsep_jax.train.step import TrainState, create_train_state, make_run_keys


class PlainDenseNet(nn.Module):
    """The textbook DenseNet with the fields of `like`; modules have dotted names."""

    like: DenseNet
    separable: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Return logits (N, K), float32, of images x (N, H, W, C)."""
        like, dtype = self.like, self.like.dtype
        norm = partial(
            nn.BatchNorm, not train, momentum=like.norm_momentum, dtype=dtype
        )
        conv = partial(nn.Conv, use_bias=False, dtype=dtype)
        growth, kernel_size = like.growth_rate, (like.kernel_size,) * 2
        width, strides = round(like.stem_width * growth), (like.stem_stride,) * 2
        x = conv(width, kernel_size, strides, name="stem.conv")(x)
        for b, num_layers in enumerate(like.block_sizes):
            if b:
                x = like.act(norm(name=f"transition{b}.norm")(x))
                width = int(round(like.reduction * x.shape[-1], 9))
                x = conv(width, (1, 1), name=f"transition{b}.conv")(x)
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for i in range(num_layers):
                name = f"block{b}.layer{i}"
                y = like.act(norm(name=f"{name}.norm")(x))
                if like.bottleneck:
                    inner = round(like.bottleneck * growth)
                    y = conv(inner, (1, 1), name=f"{name}.bottleneck")(y)
                    y = like.act(norm(name=f"{name}.bottleneck_norm.normalize")(y))
                if self.separable:
                    c, name = y.shape[-1], f"{name}.conv"
                    depthwise = partial(conv, feature_group_count=c)
                    y = depthwise(c, kernel_size, name=f"{name}.depthwise")(y)
                    y = conv(growth, (1, 1), name=f"{name}.pointwise")(y)
                else:
                    y = conv(growth, kernel_size, name=f"{name}.conv.conv")(y)
                y = nn.Dropout(like.dropout_rate, deterministic=not train)(y)
                x = jnp.concatenate([x, y], axis=-1)
        x = like.act(norm(name="norm")(x))
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(like.num_classes, name="head")(x)


def plain_variables(like: DenseNet, variables: dict[str, Any]) -> dict[str, Any]:
    """Convert variables of `DenseNet` to those of an equivalent `PlainDenseNet`."""
    return {
        "params": plain_params(variables["params"]),
        "batch_stats": consumer_stats(like, variables["batch_stats"]),
    }


def make_states(config: ConfigDict) -> tuple[dict[str, TrainState], DenseNet]:
    """Return the states of our network and others by name, and our network.

    The others are plain Flax's, with the same weights, and the standard twin.

    Args:
      config: resolved; its kind of convolution is ignored.
    """
    tx = optim.make_optimizer(config, lambda step: 1.0)

    def make(conv):
        model = create_model(ConfigDict(config.to_dict() | {"conv": conv}), 10)
        return model, create_train_state(model, tx, (32, 32, 3), make_run_keys(0))

    (model, ours), (_, standard) = make("separable"), make("standard")
    variables = {"params": ours.params, "batch_stats": ours.batch_stats}
    flax = plain_variables(model, variables)
    flax["opt_state"] = tx.init(flax["params"])
    apply_fn = PlainDenseNet(model, separable=True).apply
    return {
        "ours": ours,
        "plain Flax": ours.replace(apply_fn=apply_fn, **flax),
        "ours, standard convolutions": standard,
    }, model


def plain_params(params: dict[str, Any]) -> dict[str, Any]:
    """Rename {"block0": {"layer0": {"norm": ...}}} to {"block0.layer0.norm": ...}."""
    plain = defaultdict(dict)
    for (*path, leaf), value in flatten_dict(params).items():
        plain[".".join(path)][leaf] = value
    return dict(plain)


def consumer_stats(like: DenseNet, producers: dict[str, Any]) -> dict[str, Any]:
    """Return the running statistics of each consumer, joined from its pieces."""
    plain, pieces = {}, []

    def join():
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)

    for b, num_layers in enumerate(like.block_sizes):
        if b:
            plain[f"transition{b}.norm"] = join()
        pieces = [producers[f"statistics{b}"]]
        block = producers[f"block{b}"]
        for i in range(num_layers):
            plain[f"block{b}.layer{i}.norm"] = join()
            if like.bottleneck:
                inner = block[f"layer{i}"]["bottleneck_norm"]["statistics"]
                plain[f"block{b}.layer{i}.bottleneck_norm.normalize"] = inner
            pieces.append(block[f"statistics{i}"])
    plain["norm"] = join()
    return plain
