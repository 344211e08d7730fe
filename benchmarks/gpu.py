"""What this project claims for a GPU, measured by one command of under ten minutes.

Single convolutions in bfloat16, by shifts and by XLA, against a copy and PyTorch;
training and inference of configs/separable.py against PyTorch compiled; several runs in
one program; and a whole run of configs/separable.py on CIFAR-10, which is resumed by
the same command. Each is a command of its own with a share of the time: what it has
printed by then is in a file of its name in --out, and its end on the screen.

    python -m benchmarks.gpu

`--minutes` and `--out` set the time and the directory. Needs the extra `bench`, and
CIFAR-10 prepared. There was no GPU yet to run it on.
"""

import argparse
import pathlib
import subprocess
import sys
import time

# Shares of the time, and arguments of Python.
PARTS = {
    "shapes": (0.25, "-m benchmarks.shapes --dtype=bfloat16 --compiled --part=0/4"),
    "speed": (0.3, "-m benchmarks.speed --quick --out={out}/speed.json"),
    "population": (0.15, "-m benchmarks.population --config=configs/separable.py"),
    "training": (0.3, "main.py --config=configs/separable.py --workdir={out}/run"),
}


def main() -> None:
    """Run the parts, one after the other; a part that fails does not stop the next."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (share, words) in PARTS.items():
        path, start = args.out / f"{name}.txt", time.perf_counter()
        command = [sys.executable, *words.format(out=args.out).split()]
        with open(path, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            try:
                end = f"exit code {process.wait(timeout=60 * args.minutes * share)}"
            except subprocess.TimeoutExpired:
                process.terminate()  # A run saves what it has trained.
                end = f"stopped, exit code {process.wait()}"
        last = path.read_text(errors="replace").splitlines()[-1:]
        seconds = time.perf_counter() - start
        print(f"{name}: {end} after {seconds:.0f} s, {path}: {''.join(last)}")


if __name__ == "__main__":
    main()
