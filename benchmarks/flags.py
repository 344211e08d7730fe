"""Do XLA's flags make a training step on a CPU faster? Ours and plain Flax's.

Steps of configs/cpu.py, timed in turn, each flag in both; ratios are to the defaults.
Prints Markdown.

    python -m benchmarks.flags
"""

import jax

from benchmarks import plain, timing
from configs import cpu
from dwsep_jax.train import optim

FLAGS = {
    "experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INVALID",  # None at all.
    "opt_preset": "CPU_OPT_PRESET_FAST_RUNTIME",
    "scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "use_onednn": True,
    "prefer_vector_width": 512,
    "enable_platform_dependent_math": False,
    "enable_concurrency_optimized_scheduler": False,
    "enable_fast_min_max": True,
    "enable_fast_math": True,
}


def main() -> None:
    """Print the table."""
    timing.start(__doc__)
    config, batch = optim.resolve(cpu.get_config()), timing.make_batch(128)
    states, _ = plain.make_states(config)
    options = {f"`xla_cpu_{k}={v}`": {f"xla_cpu_{k}": v} for k, v in FLAGS.items()}
    options = {"defaults": None} | options
    columns = {}
    for name in ("ours", "plain Flax"):
        steps = {
            label: timing.jax_step(states[name], batch, compiler_options=flags)
            for label, flags in options.items()
        }
        columns[name] = timing.time_in_turn(steps, 10)
    print(f"jax {jax.__version__}\n")
    timing.print_header("flags", *columns)
    for label in options:
        cells = (f"{t[label]} ({t[label].ratio:.2f}x)" for t in columns.values())
        timing.print_row(label, *cells)


if __name__ == "__main__":
    main()
