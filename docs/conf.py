"""The site of these pages and of the docstrings: `sphinx-build -W docs build/site`."""

import tomllib
from pathlib import Path

import dwsep_jax

_ROOT = Path(__file__).parents[1]
project = "dwsep_jax"
release = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["version"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "dwsep_jax"
myst_heading_anchors = 3
autodoc_typehints = "none"  # The docstrings tell shapes and dtypes, which matter.
napoleon_use_ivar = True
# Not pages of the site: their links lead to the repository's files.
suppress_warnings = ["myst.xref_missing"]


def setup(app):
    """Let api.md list the exported names, so that nobody has to."""
    app.connect("source-read", _list_names)


def _list_names(app, page, source):
    if page == "api":
        source[0] += "\n```{eval-rst}\n"
        for name in dwsep_jax.__all__:
            kind = "autofunction" if name.islower() else "autoclass"
            source[0] += f".. {kind}:: dwsep_jax.{name}\n"
        source[0] += "```\n"
