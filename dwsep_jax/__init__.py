"""Depthwise-separable and standard convolutions in JAX and Flax, side by side.

Names are imported when they are first used, so `import dwsep_jax` costs nothing; the
list of them is `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
