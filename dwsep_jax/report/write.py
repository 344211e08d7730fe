"""Writes the report of one or several workdirs."""

import os
import pathlib
from collections.abc import Sequence

from dwsep_jax.errors import UserError
from dwsep_jax.report import page
from dwsep_jax.report.comparison import describe_comparison
from dwsep_jax.report.files import Comparison, Run, Sweep, read_workdir
from dwsep_jax.report.run import describe_run
from dwsep_jax.report.sweep import describe_sweep
from dwsep_jax.workdir import write_atomically

_DESCRIBE = {
    Run: describe_run,
    Comparison: describe_comparison,
    Sweep: describe_sweep,
}


def write_report(
    workdirs: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> pathlib.Path:
    """Write report.html, report.md and figures/*.png.

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
    contents = {
        f"figures/{name}": png for name, png in page.render_figures(sections).items()
    }
    contents["report.md"] = page.render_markdown(sections)
    contents["report.html"] = page.render_html(sections)
    directory = pathlib.Path(output or directories[0]).expanduser()
    try:
        (directory / "figures").mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            write_atomically(directory / name, content)
    except OSError as error:
        raise UserError(
            f"{directory}: the report cannot be written there ({error.strerror}); "
            "give another directory with --output"
        ) from error
    return directory / "report.html"


def describe(workdir: str | os.PathLike) -> page.Section:
    """Return the section of a workdir; raise `UserError` as `write_report` does."""
    content = read_workdir(workdir)
    return _DESCRIBE[type(content)](content)
