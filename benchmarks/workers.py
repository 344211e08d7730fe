"""Does a study lose or repeat a trial when its workers are killed?

Eight worker processes, each with a directory of its own as on another machine, share a
study of 64 short trials on PostgreSQL, whose server this starts. Ten times a worker is
killed in mid-trial and another one started. Then every trial must have one result.

    python -m benchmarks.workers
"""

import itertools
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter

from dwsep_jax.sweep.trial import tabulate
from tests.sweep import one_worker, sweeping

NUM_WORKERS, NUM_TRIALS, NUM_KILLS = 8, 64, 10


def main() -> int:
    """Run the study; return 1 if a trial was lost or has two results."""
    draw, names = random.Random(0), map(str, itertools.count(1))

    def start():
        name = next(names)
        words = (url, root / name, name, "3", f"{NUM_TRIALS}")
        command = [sys.executable, "-m", "tests.sweep.one_worker", *map(str, words)]
        return name, subprocess.Popen(command)

    with sweeping.postgresql() as url, tempfile.TemporaryDirectory() as place:
        root, begin = pathlib.Path(place), time.perf_counter()
        workers = [start() for _ in range(NUM_WORKERS)]
        for _ in range(NUM_KILLS):
            is_training = False
            while not is_training:
                time.sleep(draw.uniform(0.1, 1))
                i = draw.randrange(NUM_WORKERS)
                name, victim = workers[i]
                assert victim.poll() is None, "it ended before the kills did"
                is_training = any(root.glob(f"{name}/trials/*/log"))
            victim.kill()
            victim.wait()
            workers[i] = start()
        codes = Counter(process.wait() for _, process in workers)
        seconds = time.perf_counter() - begin
        tabulate(one_worker.open_study(url, root / "1", NUM_TRIALS))
        rows = sweeping.read_trials(root / "1")
        logs = [p.read_text().split() for p in root.glob("*/trials/*/log")]
    attempts = [words[i + 1] for words in logs for i in range(0, len(words), 3)]
    results = Counter(
        row["retry_of"] or row["number"] for row in rows if row["state"] == "complete"
    )
    lost = sum(row["state"] != "complete" for row in rows)
    print(f"{NUM_WORKERS} workers, {NUM_KILLS} kills, {seconds:.0f} s: {dict(codes)}")
    print(f"{len(results)} of {NUM_TRIALS} trials have a result, {lost} were retried")
    print(f"{len(attempts) - len(set(attempts))} attempts ran twice")
    is_right = len(results) == NUM_TRIALS and set(results.values()) == {1}
    return not (is_right and set(codes) == {0} and len(attempts) == len(set(attempts)))


if __name__ == "__main__":
    sys.exit(main())
