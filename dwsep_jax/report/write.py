"""Writes the report of one or several workdirs."""

import os
import pathlib
from collections.abc import Sequence

from dwsep_jax.errors import UserError
from dwsep_jax.report import page
from dwsep_jax.report.comparison import describe_comparison
from dwsep_jax.report.figures import write_figures
from dwsep_jax.report.files import Run, Sweep, read_workdir
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
    sections = [describe(pathlib.Path(workdir).expanduser()) for workdir in workdirs]
    figures = page.render_figures(sections)
    markdown, html = page.render_markdown(sections), page.render_html(sections)
    directory = pathlib.Path(output or workdirs[0]).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_figures(directory, figures)
        write_atomically(directory / "report.md", markdown)
        write_atomically(directory / "report.html", html)
    except OSError as error:
        raise UserError(
            f"{directory}: the report cannot be written there ({error.strerror}); "
            "give another directory with --output"
        ) from error
    return directory / "report.html"


def describe(workdir: str | os.PathLike) -> page.Section:
    """Return the section of a workdir; raise `UserError` as `write_report` does."""
    found = read_workdir(workdir)
    if isinstance(found, Run):
        return describe_run(found)
    is_sweep = isinstance(found, Sweep)
    try:
        return describe_sweep(found) if is_sweep else describe_comparison(found)
    except (LookupError, ValueError) as error:  # Parts of a file name each other.
        path = found.directory / ("best.json" if is_sweep else "comparison.json")
        problem = f"its parts do not belong together: {error!r}"
        raise damaged(path, problem) from error
