"""Trains and evaluates from the repository: see `python main.py --help`."""

import sys

from dwsep_jax.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
