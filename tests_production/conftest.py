"""Settings of these tests: XLA as a user has it, in one process of its own.

`tests` compiles at optimization level 0 and computes tiny shapes, where a wrong program
may come out right.
"""

import os

os.environ.pop("XLA_FLAGS", None)
os.environ["JAX_PLATFORMS"] = "cpu"
