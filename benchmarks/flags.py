"""Do XLA's flags make a training step on a CPU faster? Ours and plain Flax's.

Steps of configs/cpu.py, timed in turn, each flag in both; ratios are to the defaults.
Prints Markdown.

    python -m benchmarks.flags
"""

import jax

from benchmarks import plain
from benchmarks.timing import (
    jax_step,
    make_batch,
    print_header,
    print_row,
    time_in_turn,
)
from configs import cpu
from dwsep_jax.environment import keep_freed_memory
from dwsep_jax.train import optim

FLAGS = {
    "": None,
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
    keep_freed_memory()
    config, batch = optim.resolve(cpu.get_config()), make_batch(128)
    states, _ = plain.make_states(config)
    columns = {}
    for name in ("ours", "plain Flax"):
        steps = {
            flag: jax_step(states[name], batch, compiler_options=_options(flag))
            for flag in FLAGS
        }
        columns[name] = time_in_turn(steps, 10)
    print(f"jax {jax.__version__}\n")
    print_header(["flags", *columns])
    for flag, value in FLAGS.items():
        cells = (f"{t[flag]} ({t[flag].ratio:.2f}x)" for t in columns.values())
        print_row([f"`xla_cpu_{flag}={value}`" if flag else "defaults", *cells])


def _options(flag):
    return {f"xla_cpu_{flag}": FLAGS[flag]} if flag else None


if __name__ == "__main__":
    main()
