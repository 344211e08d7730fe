"""What runs, comparisons and sweeps show, from their files, for people; without jax."""

from dwsep_jax.report.write import write_report

__all__ = ["write_report"]
