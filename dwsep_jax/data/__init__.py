"""Datasets: prepared, decoded once, split by `split_seed`, shuffled by `seed`."""

from dwsep_jax.data.dataset import Dataset, load
from dwsep_jax.data.read import Split

__all__ = ["Dataset", "Split", "load"]
