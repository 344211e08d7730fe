"""The command line on the tiny dataset, as one process of several, in its own program.

It sends itself a signal during a step: `one_process.py SIGNAL STEP FLAGS...`, 0 0 for
none. Steps are counted from one, in this process. With --config.data_dir, the dataset
is missing.
"""

import itertools
import os
import sys
from functools import partial

from jax._src import xla_bridge

import main
from dwsep_jax import cli, data
from dwsep_jax.train import loop
from dwsep_jax.train.programs import EpochPrograms
from tests import tiny

number, at, *flags = sys.argv[1:]
count, init, load = itertools.count(1), EpochPrograms.__init__, data.load


def spy(program, *inputs):
    outputs = program(*inputs)
    if next(count) == int(at):
        os.kill(os.getpid(), int(number))
    return outputs


def spied(self, *arguments):
    init(self, *arguments)
    self.programs = [(n, partial(spy, program)) for n, program in self.programs]


def check_and_prepare(platform):
    # Otherwise the choice of the platform would come too late.
    assert not xla_bridge.backends_are_initialized()
    prepare(platform)


EpochPrograms.__init__ = spied
prepare, cli.prepare_process = cli.prepare_process, check_and_prepare
data.load = lambda config: tiny.make_dataset() if not config.data_dir else load(config)
loop.draw_run = lambda workdir: None
sys.exit(main.main([sys.argv[0], *flags]))
