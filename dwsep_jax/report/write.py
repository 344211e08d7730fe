"""Writes the report of one or several workdirs."""

import contextlib
import os
import pathlib
from collections.abc import Sequence

from dwsep_jax.errors import UserError
from dwsep_jax.report import page
from dwsep_jax.report.comparison import describe_comparison
from dwsep_jax.report.figures import write_figures
from dwsep_jax.report.files import Comparison, Sweep, read_workdir
from dwsep_jax.report.run import describe_run
from dwsep_jax.report.sweep import describe_sweep
from dwsep_jax.schema import damaged
from dwsep_jax.workdir import write_atomically


def write_report(
    workdirs: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> pathlib.Path:
    """Write report.html, report.md and the charts as figures/<name>.png.

    Args:
      workdirs: of runs, comparisons and sweeps, finished or not; one section for each.
      output: the directory to write into, by default the first workdir.

    Returns:
      The path of report.html.

    Raises:
      UserError: if a workdir has nothing to report, a file is damaged, or the report
        cannot be written. In the first two cases nothing has been written.
    """
    directories = [pathlib.Path(workdir).expanduser() for workdir in workdirs]
    sections = [describe(directory) for directory in directories]
    figures = page.render_figures(sections)
    pages = {
        "report.md": page.render_markdown(sections),
        "report.html": page.render_html(sections),
    }
    directory = pathlib.Path(output or directories[0]).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_figures(directory, figures)
        for name, content in pages.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise UserError(
            f"{directory}: the report cannot be written there ({error.strerror}); "
            "give another directory with --output"
        ) from error
    return directory / "report.html"


def describe(workdir: str | os.PathLike) -> page.Section:
    """Return the section of a workdir; raise `UserError` as `write_report` does."""
    match read_workdir(workdir):
        case Comparison() as comparison:
            with _whole(comparison.directory / "comparison.json"):
                return describe_comparison(comparison)
        case Sweep() as sweep:
            with _whole(sweep.directory / "best.json"):
                return describe_sweep(sweep)
        case run:
            return describe_run(run)


@contextlib.contextmanager
def _whole(path):
    """Raise `UserError` where parts of a file, which name each other, do not fit."""
    try:
        yield
    except (LookupError, ValueError) as error:
        problem = f"its parts do not belong together: {error!r}"
        raise damaged(path, problem) from error
