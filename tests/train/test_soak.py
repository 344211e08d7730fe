"""The soak's controls: what it would not see, it could not report."""

import shutil
from functools import partialmethod

from benchmarks import soak
from dwsep_jax.train import loop
from dwsep_jax.train.checkpoint import Checkpoints
from tests import tiny

FIELDS = dict(num_epochs=3, ema_decay=0.9, schedule="plateau", plateau_patience=1)


def test_whoever_resumes_wrongly_ends_elsewhere(tmp_path, monkeypatch):
    tiny.fake_validation(monkeypatch, "val_loss", [1.0, 1.0, 1.0])
    config = tiny.make_config(**FIELDS)
    shorter = tiny.make_config(**FIELDS | {"num_epochs": 2})
    loop.train_and_evaluate(shorter, tmp_path / "half")
    ends = []
    for broken in (None, *soak.BROKEN):
        workdir = shutil.copytree(tmp_path / "half", tmp_path / str(broken))
        with monkeypatch.context() as patch:
            if broken:
                enter = partialmethod(soak.enter_broken, broken)
                patch.setattr(loop.Member, "__enter__", enter)
            loop.train_and_evaluate(config, workdir)
        ends.append(tiny.bits(Checkpoints(workdir).restore_latest(None).tree))
    assert len(ends) == 6
    assert all(end != ends[0] for end in ends[1:])
