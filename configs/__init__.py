"""Configurations: `default` defines every field, the others override a few."""
