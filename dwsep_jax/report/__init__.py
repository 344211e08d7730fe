"""Reports for people, from the files of runs, comparisons and sweeps; without jax."""
