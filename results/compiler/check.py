"""Does XLA:CPU compute the programs of the long runs correctly?

Some versions of jax miscompile fused reductions on CPU (jax issue 39103), and
`--xla_cpu_experimental_ynn_fusion_type=-reduce` turns that fusion off. For each
program this takes one training step and one evaluation from the same state and batch
three times, each in a process of its own: with jax's default flags, with the fusion
off ("unfused"), and in float64. The optimizer's state after the first step is the
gradient, or a multiple of it. The table of a version of jax holds the largest relative
differences ||a - b|| / ||a|| over the arrays of each kind, without gradients below 1e-6
of the largest.

    TFDS_DATA_DIR=... python -m results.compiler.check
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

PLACE = pathlib.Path(__file__).parent
UNFUSED = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
SETTINGS = {
    "default": {"XLA_FLAGS": ""},
    "unfused": {"XLA_FLAGS": UNFUSED},
    "float64": {"XLA_FLAGS": "", "JAX_ENABLE_X64": "1"},
}
PAIRS = [("default", "unfused"), ("float64", "default"), ("float64", "unfused")]
VARIANTS = ("separable", "standard", "separable_parameters", "separable_macs")
SMALL = {"growth_rate": 16}
# (config, overrides, variant of a comparison)
PROGRAMS = [
    *(("cpu", SMALL, variant) for variant in VARIANTS),
    ("cpu", {}, None),
    *(("cpu", SMALL | {"batch_size": size}, None) for size in (32, 64, 256)),
    *(("cpu", SMALL | {"optimizer": name}, None) for name in ("adam", "rmsprop")),
    ("separable", {}, None),
]


def take_step(base, overrides, variant, path):
    """Write what a training step and an evaluation compute, as an npz file."""
    import importlib

    import jax
    import jax.numpy as jnp

    from dwsep_jax import data
    from dwsep_jax.compare.variants import make_variants
    from dwsep_jax.data.augment import make_augment, normalize
    from dwsep_jax.data.order import epoch_permutation
    from dwsep_jax.nn import densenet
    from dwsep_jax.train import loop
    from dwsep_jax.train.metrics import Metrics
    from dwsep_jax.train.step import eval_step, make_run_keys, train_many

    is_wide = jax.config.jax_enable_x64
    if is_wide:
        use_64_bits(jax, jnp, densenet.DTYPES)
        overrides = overrides | {"dtype": "float64"}
    config = importlib.import_module(f"configs.{base}").get_config()
    config.update(overrides)
    dataset = data.load(config)
    config = loop.resolve(config, dataset)
    if variant:
        variants = {v.name: v.config for v in make_variants(config, dataset)}
        config = variants[variant]
    state = loop.make_state(config, dataset)
    if is_wide:
        state = jax.tree.map(
            lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, state
        )
    images, labels, _ = dataset.train
    arrays = {"image": jnp.asarray(images), "label": jnp.asarray(labels)}
    order = epoch_permutation(make_run_keys(config.seed).order, 0, len(labels))
    steps = jax.jit(train_many, static_argnames=("augment", "batch_size", "num_steps"))
    options = {"augment": make_augment(config, 10), "batch_size": config.batch_size}
    after, _, losses = steps(
        state, Metrics.empty(), arrays, order, num_steps=1, **options
    )
    size = config.eval_batch_size
    batch = {"image": normalize(arrays["image"][:size])}
    batch |= {"label": arrays["label"][:size], "mask": jnp.ones(size, bool)}
    _, probabilities = jax.jit(eval_step)(state, batch)
    kinds = {"gradients": after.opt_state, "statistics": after.batch_stats}
    kinds |= {"loss": losses, "probabilities": probabilities}
    leaves, _ = jax.tree.flatten_with_path(kinds)
    np.savez(path, **{jax.tree_util.keystr(key): leaf for key, leaf in leaves})


def use_64_bits(jax, jnp, dtypes):
    """Compute in float64, on the random draws of 32 bits."""
    dtypes["float64"] = jnp.float64
    randint, uniform = jax.random.randint, jax.random.uniform
    jax.random.randint = lambda key, shape, low, high: randint(
        key, shape, low, high, jnp.int32
    ).astype(jnp.int64)
    jax.random.bernoulli = lambda key, p=0.5, shape=None: (
        uniform(key, shape, jnp.float32) < jnp.float32(p)
    )


def compare(a, b):
    """Return the largest relative difference of each kind of array."""
    arrays = {name: (a[name].astype(float), b[name].astype(float)) for name in a}
    norms = {name: np.linalg.norm(x) for name, (x, _) in arrays.items()}
    tiny = 1e-6 * max(norm for name, norm in norms.items() if "gradients" in name)
    worst = {}
    for name, (x, y) in arrays.items():
        kind = name.split("'")[1]
        if norms[name] > (tiny if kind == "gradients" else 0):
            difference = float(np.linalg.norm(x - y) / norms[name])
            worst[kind] = max(worst.get(kind, 0.0), difference)
    return {kind: float(f"{value:.1e}") for kind, value in sorted(worst.items())}


def main():
    """Compare all programs, and write the table of this version of jax."""
    import jax

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for program in PROGRAMS:
            found = {}
            for setting, environment in SETTINGS.items():
                path = pathlib.Path(scratch, f"{setting}.npz")
                command = [sys.executable, "-m", "results.compiler.check"]
                command += [json.dumps(program), str(path)]
                env = os.environ | environment
                subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
                with np.load(path) as arrays:
                    found[setting] = dict(arrays)
            differences = {f"{a}-{b}": compare(found[a], found[b]) for a, b in PAIRS}
            rows.append({"program": program, "differences": differences})
            print(json.dumps(rows[-1]), flush=True)
    content = {"jax": jax.__version__, "platform": "cpu", "programs": rows}
    (PLACE / f"table-{jax.__version__}.json").write_text(
        json.dumps(content, indent=1) + "\n"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        take_step(*json.loads(sys.argv[1]), sys.argv[2])
    else:
        main()
