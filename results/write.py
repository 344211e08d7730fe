"""Writes RESULTS.md and results/figures from the runs in this directory, without jax.

python -m results.write
"""

import pathlib
import shutil

from dwsep_jax.report import page
from dwsep_jax.report.write import describe
from dwsep_jax.workdir import write_atomically

# Workdirs in the order of RESULTS.md, and what each is to show.
WORKDIRS = {
    "compare-cpu": "separable against standard convolutions, and two networks matched "
    "to the standard one, over 100 epochs and 3 seeds",
    "compare-rates": "what the learning rate changes: 30 epochs at three rates",
    "optimizers/sgd": "SGD over 100 epochs",
    "optimizers/adam": "Adam over 100 epochs",
    "optimizers/rmsprop": "RMSprop over 100 epochs",
    "cpu": "configs/cpu.py over 100 epochs",
    "cpu-until-settled": "configs/cpu.py until its loss settles",
    "sweep": "tuning of activation, optimizer, rate, batch size and dropout",
}


def write_results(directory: pathlib.Path) -> None:
    """Write RESULTS.md beside `directory`, from its workdirs, and its figures.

    Raises:
      UserError: if a file of a workdir is damaged.
    """
    there = [name for name in WORKDIRS if (directory / name).is_dir()]
    sections = [describe(directory / name) for name in there]
    figures = page.render_figures(sections)
    # The answer comes first; what was run is listed below.
    place = f"{directory.name}/figures"
    text = page.render_markdown(sections, place, has_overview=False)
    text += "\n" + _list_contents(there)
    shutil.rmtree(directory / "figures", ignore_errors=True)
    (directory / "figures").mkdir()
    for name, png in figures.items():
        write_atomically(directory / "figures" / name, png)
    write_atomically(directory.with_name("RESULTS.md"), text)


def _list_contents(there):
    """Return which workdir shows what, and what has not been run."""
    lines = ["# What was run", ""]
    for name, purpose in WORKDIRS.items():
        state = f"`results/{name}`" if name in there else "not run yet"
        lines.append(f"- {purpose}: {state}")
    lines += ["", "`python -m results.write` writes this page from those files."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    write_results(pathlib.Path(__file__).parent)
