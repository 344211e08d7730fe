"""Configurations of runs: `default` has every field, the others change a few."""
