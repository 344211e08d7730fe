"""What does a run survive? Kills, signals and damaged files, at random moments.

Trains a small network on digits in processes of their own. One fault hits each run;
then the same command is given again until it ends, and what it leaves (the checkpoint's
arrays, the rows, the predictions) is compared with that of an uninterrupted run, bit
for bit. Nothing else counts as survived, except that a damaged file may be refused, in
one line. Appends a row per fault to OUT/faults.jsonl, in which an interrupted soak goes
on, and prints a summary.

    python -m benchmarks.soak --faults=300 --out=/tmp/soak
    python -m benchmarks.soak --damages=250 --out=/tmp/damages

`--damages` damages one file of a finished run each time, and then repeats its command
and draws its report: both must come out the same, or be refused.
`--broken=NAME` resumes wrongly in one way, of `BROKEN`: the soak must report it.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from functools import partialmethod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

from benchmarks import timing
from dwsep_jax import __main__ as command
from dwsep_jax.train import checkpoint, loop, optim
from dwsep_jax.workdir import read_json, read_rows
from tests.tiny import bits

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "digits.py"
# Every leaf that a state can have, and several programs and saves in an epoch.
FIELDS = {"num_epochs": 4, "growth_rate": 4, "block_sizes": "1,1", "mixup": 0.2}
FIELDS |= {"ema_decay": 0.9, "schedule": "plateau", "plateau_patience": 1}
FIELDS |= {"steps_per_dispatch": 4, "checkpoint_minutes": 0.005, "dropout_rate": 0.1}
# At this rate the second epoch is worse than the first: the plateau lowers the rate.
FIELDS |= {"progress": False, "learning_rate": 0.3}

# What may happen: the share of the faults.
SHARES = {"kill": 0.3, "kill in a save": 0.2, "SIGTERM": 0.15, "SIGINT": 0.1}
SHARES |= {"full disk": 0.05, "flip": 0.1, "truncate": 0.1}

IN_A_SAVE = {
    "kill in a save": lambda: os.kill(os.getpid(), signal.SIGKILL),
    # From then on nothing more goes into a file of this process.
    "full disk": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
}
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}

# How resuming can be broken: what becomes of parts of a state that was restored.
BROKEN = {
    "optimizer": lambda state: {"opt_state": state.tx.init(state.params)},
    "key": lambda state: {"key": jax.random.fold_in(state.key, 1)},
    "order": lambda state: {},  # It is not in the state.
    "average": lambda state: {"ema": state.ema.replace(params=_copy(state.params))},
    "plateau": lambda state: {"plateau": optim.make_plateau()},
}


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)  # As a buffer can be donated only once.


def enter_broken(
    member: loop.Member, broken: str, enter=loop.Member.__enter__
) -> loop.Member:
    """Open a run, and break what was restored, in one way of `BROKEN`."""
    enter(member)
    if member.history or int(member.state.step):
        member.state = member.state.replace(**BROKEN[broken](member.state))
        if broken == "order":  # It begins with another example.
            permute = loop.Member.permute
            member.permute = lambda: jnp.roll(permute(member), 1)
    return member


def run(
    workdir: pathlib.Path,
    fault_in_save: tuple[str, float, int] | None = None,
    broken: str = "",
    with_report: bool = False,
) -> None:
    """Run the command in this process, as `main.py` does.

    Args:
      workdir: of the run; what is printed is appended to its `log` beside it.
      fault_in_save: of `IN_A_SAVE`, how many seconds into a save, and into which one,
        from 0.
      broken: of `BROKEN`, or empty.
      with_report: draw the report afterwards.
    """
    with open(f"{workdir}.log", "ab") as log:
        output = log
        if fault_in_save is not None:  # Through a process whose files may grow.
            cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log)
            output = cat.stdin
        for number in (1, 2):
            os.dup2(output.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    save, saves = checkpoint.Checkpoints.save, itertools.count()

    def save_in_fault(*arguments, **options):
        kind, delay, number = fault_in_save
        if next(saves) == number:
            timer = threading.Timer(delay, IN_A_SAVE[kind])
            timer.daemon = True
            timer.start()
        save(*arguments, **options)

    if fault_in_save:
        checkpoint.Checkpoints.save = save_in_fault
    if broken:
        loop.Member.__enter__ = partialmethod(enter_broken, broken)
    flags = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    words = ["main.py", f"--workdir={workdir}"]
    code = command.main([*words, f"--config={CONFIG}", *flags])
    if with_report and code == 0:
        code = command.main([*words, "--mode=report"])
    sys.exit(code)


def start(*arguments, **options):
    """Start a process to `run`; modules are imported, but jax has not been used."""
    context = multiprocessing.get_context("forkserver")
    modules = ["benchmarks.timing", "orbax.checkpoint", "sklearn.metrics", "vl_convert"]
    context.set_forkserver_preload(modules)
    process = context.Process(target=run, args=arguments, kwargs=options)
    process.start()
    return process


def wait_for_training(workdir: pathlib.Path, process: Any) -> None:
    """Wait until a process has begun to train, or has ended."""
    log = pathlib.Path(f"{workdir}.log")
    before = log.stat().st_size if log.exists() else 0
    while process.is_alive():
        if log.exists() and b"compiled the eval" in log.read_bytes()[before:]:
            return
        time.sleep(0.01)


def read_end(workdir: pathlib.Path) -> dict[str, Any]:
    """Return what a finished run has left, without times and places."""
    tree = checkpoint.Checkpoints(workdir).restore_latest(None).tree
    times = ("elapsed_seconds", "images_per_second")
    rows = [{k: v for k, v in r.items() if k not in times} for r in read_rows(workdir)]
    evaluation = read_json(workdir, "evaluation")
    del evaluation["environment"]
    with np.load(workdir / "predictions.npz") as arrays:
        predictions = {name: arrays[name].tobytes() for name in arrays}
    end = {"state": bits(tree), "rows": rows} | evaluation | predictions
    if (report := workdir / "report.md").exists():  # It names the directory.
        end["report"] = report.read_text().replace(workdir.name, "whole")
    return end


def damage(
    workdir: pathlib.Path, kind: str, rng: np.random.Generator, turn: int | None = None
) -> str | None:
    """Damage one file of a run, and return its name; None if it has none yet.

    With a `turn` the files at the top take turns with the others, and what is flipped
    there is a digit.
    """
    files = sorted(p for p in workdir.rglob("*") if p.is_file() and p.stat().st_size)
    files = [p for p in files if p.suffix not in (".png", ".html", ".md", ".tmp")]
    at_top = [p for p in files if p.parent == workdir]
    if turn is not None and turn % 2:
        files = at_top
    if not files:
        return None
    path = files[rng.integers(len(files))]
    content = bytearray(path.read_bytes())
    position = int(rng.integers(len(content)))
    if turn is not None and path in at_top and path.suffix != ".npz":
        digits = [i for i, byte in enumerate(content) if byte in b"0123456789"]
        position = digits[position % len(digits)]
    if kind == "flip":
        content[position] ^= 1 << int(rng.integers(8 if turn is None else 4))
    else:
        del content[position:]
    path.write_bytes(content)
    return str(path.relative_to(workdir))


def hit(workdir, number, seconds, broken) -> dict[str, Any]:
    """Let a fault hit a run, and repeat its command until it ends; return the row."""
    rng = np.random.default_rng(number)
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    in_save = kind in IN_A_SAVE
    moment = float(rng.uniform(0, 0.1 if in_save else seconds))
    save = int(rng.integers(FIELDS["num_epochs"]))  # Each epoch has one or more.
    row = {"number": number, "fault": kind, "moment": moment, "save": save}
    process = start(workdir, (kind, moment, save) if in_save else None, broken)
    if rng.random() < 0.9:  # The others may be hit before they train.
        wait_for_training(workdir, process)
    process.join(None if in_save else moment)
    if process.is_alive():
        os.kill(process.pid, SIGNALS.get(kind, signal.SIGKILL))
    process.join()
    row["exit_code"], died = process.exitcode, time.time()
    saves = [p.stat().st_mtime for p in workdir.rglob("SHA256SUMS.json")]
    row["lost_seconds"] = died - max(saves) if saves else None
    if kind in ("flip", "truncate"):
        row["file"] = damage(workdir, kind, rng)
    begin = time.perf_counter()
    process = start(workdir, None, broken)
    wait_for_training(workdir, process)
    row["recovery_seconds"] = time.perf_counter() - begin
    return row | describe_end(workdir, process)


def hit_finished(whole, workdir, number) -> dict[str, Any]:
    """Damage a copy of a finished run, and repeat its command and its report."""
    rng = np.random.default_rng(number)
    shutil.copytree(whole, workdir)
    kind = "truncate" if number % 5 == 4 else "flip"
    row = {"number": number, "fault": kind, "file": damage(workdir, kind, rng, number)}
    return row | describe_end(workdir, start(workdir, with_report=True))


def describe_end(workdir, process) -> dict[str, Any]:
    """Wait for the last process of a run, and return how it has ended."""
    process.join()
    log = pathlib.Path(f"{workdir}.log").read_text(errors="replace")
    return {
        "end_code": process.exitcode,
        "traceback": "Traceback" in log,
        "last_line": log.strip().splitlines()[-1],
    }


def judge(row: dict[str, Any], workdir: pathlib.Path, expected: dict[str, Any]) -> str:
    """Return same, refused (a damaged file, in one line), or what went wrong."""
    if row["traceback"]:
        return "traceback"
    if row["fault"] == "full disk" and row["exit_code"] not in (0, 1):
        return "failed at once"
    if row["end_code"] != 0:
        is_line = row["last_line"].startswith("error: ")
        return "refused" if row.get("file") and is_line else "failed"
    try:
        found = read_end(workdir)
    except zipfile.BadZipFile:  # Of predictions.npz, by a reader that verifies it.
        return "refused" if row.get("file") else "failed"
    names = expected.keys() - ({"report"} - found.keys())  # Where it was not drawn.
    differing = [name for name in names if expected[name] != found.get(name)]
    return "same" if not differing else f"differs: {', '.join(sorted(differing))}"


def summarize(rows: list[dict[str, Any]]) -> None:
    """Print how many faults were survived, of each kind and in all."""
    for kind in SHARES:
        some = [row for row in rows if row["fault"] == kind]
        print(f"{kind}: {len(some)}; {dict(Counter(row['outcome'] for row in some))}")
    bad = [row for row in rows if row["outcome"] not in ("same", "refused")]
    bound = binomtest(len(bad), len(rows), alternative="less").proportion_ci(0.95).high
    share = f"{len(rows) - len(bad)}/{len(rows)}"
    print(f"survived {share}; fails in less than {bound:.2%}")
    print("(one-sided 95 %, Clopper-Pearson)")
    for key in ("lost_seconds", "recovery_seconds"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if values:
            middle, worst = statistics.median(values), max(values)
            print(f"{key}: median {middle:.1f}, worst {worst:.1f} of {len(values)}")


def clear(workdir: pathlib.Path) -> pathlib.Path:
    """Delete a run of before and its log, and return its directory."""
    shutil.rmtree(workdir, ignore_errors=True)
    pathlib.Path(f"{workdir}.log").unlink(missing_ok=True)
    return workdir


def main() -> int:
    """Soak, and return 1 if a fault was not survived."""
    arguments = timing.start(__doc__, faults=20, damages=0, out="soak", broken="")
    assert arguments.broken in ("", *BROKEN), f"--broken may be {', '.join(BROKEN)}"
    out = pathlib.Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    whole, file = out / "whole", out / "faults.jsonl"
    for _ in range(2):  # The second compiles nothing.
        end = describe_end(whole, start(clear(whole), with_report=True))
        assert end["end_code"] == 0, f"see {whole}.log"
    expected, rows = read_end(whole), []
    # A third of the moments are after the training.
    seconds = 1.5 * read_rows(whole)[-1]["elapsed_seconds"]
    with contextlib.suppress(FileNotFoundError):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    for number in range(len(rows), arguments.damages or arguments.faults):
        workdir = clear(out / f"run{number}")
        if arguments.damages:
            row = hit_finished(whole, workdir, number)
        else:
            row = hit(workdir, number, seconds, arguments.broken)
        row["outcome"] = judge(row, workdir, expected)
        rows.append(row)
        with file.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(f"{number}: {row['fault']} {row.get('file', '')}: {row['outcome']}")
        if row["outcome"] in ("same", "refused"):
            shutil.rmtree(workdir)
    summarize(rows)
    return any(row["outcome"] not in ("same", "refused") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
