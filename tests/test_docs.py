"""The documentation: snippets run, commands parse, links resolve, fields are listed."""

import pathlib
import re
import shlex

import pytest

from configs import default
from dwsep_jax import cli
from dwsep_jax.__main__ import MODES, define_flags
from dwsep_jax.config import flatten

ROOT = pathlib.Path(__file__).parents[1]
GLOBS = ("README.md", "CHANGELOG.md", "docs/*.md", "benchmarks/*.md")
PAGES = {path: path.read_text() for glob in GLOBS for path in sorted(ROOT.glob(glob))}
# The changelog names what is gone, too.
CURRENT = "\n".join(PAGES[path] for path in PAGES if path.name != "CHANGELOG.md")


def find(pattern):
    """Return a parameter (page, match) for each match, with continued lines joined."""
    return [
        pytest.param(path, match, id=f"{path.relative_to(ROOT)}-{i}")
        for path, text in PAGES.items()
        for i, match in enumerate(re.findall(pattern, text.replace("\\\n", ""), re.S))
    ]


@pytest.mark.parametrize(("page", "snippet"), find(r"```python\n(.*?)```"))
def test_python_snippet_runs(page, snippet):
    exec(compile(snippet, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(("page", "arguments"), find(r"main\.py (-[^`\n]*)"))
def test_command_parses(monkeypatch, page, arguments):
    monkeypatch.chdir(ROOT)
    digits = cli.load_file("configs/digits.py")
    monkeypatch.setattr(cli, "load_requested", lambda workdir, kind: digits)
    values = define_flags()
    argv = ["main.py", *shlex.split(arguments, comments=True)]
    rest = values(argv, known_only=True)
    if not values.help:
        cli.read_flags(values, rest)


@pytest.mark.parametrize(("page", "flag"), find(r"`(--config\.[a-z][^`\n=]*=[^`\n]*)`"))
def test_flag_parses(page, flag):
    values = define_flags()
    cli.read_flags(values, values(["main.py", "--config=default", flag]))


def test_fields_and_modes_are_those_that_exist():
    fields = set(flatten(default.get_config()))
    assert set(re.findall(r"--(?:no)?config\.([a-z][\w.]*\w)", CURRENT)) <= fields
    assert fields <= set(re.findall(r"`([\w.]+)`", CURRENT))
    assert set(re.findall(r"--mode=([a-z]+)", CURRENT)) <= set(MODES)


@pytest.mark.parametrize(("page", "target"), find(r"\]\((?!https?:)([^)\s]+)\)"))
def test_relative_link_resolves(page, target):
    path, _, anchor = target.partition("#")
    path = (page.parent / path).resolve() if path else page
    assert path.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)", path.read_text(), re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
        assert anchor in slugs


NAMED = r"`((?:dwsep_jax|configs|tests|benchmarks|docs|\.ci)/[a-z\d_./]*)`"


@pytest.mark.parametrize(("page", "path"), find(NAMED))
def test_named_file_exists(page, path):
    assert (ROOT / path).exists()


def test_every_room_is_described():
    text = (ROOT / "docs/contributing.md").read_text()
    rooms = {p.stem for p in ROOT.glob("dwsep_jax/[!_]*") if p.suffix in ("", ".py")}
    assert rooms <= set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize(("page", "name"), find(r"python -m benchmarks\.(\w+)"))
def test_named_benchmark_exists(page, name):
    assert "__main__" in (ROOT / "benchmarks" / f"{name}.py").read_text()


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_cited_version_is_in_the_changelog():
    citation = (ROOT / "CITATION.cff").read_text()
    version = re.search(r'^version: "?([\w.]+)"?$', citation, re.MULTILINE)[1]
    date = re.search(r'^date-released: "([\d-]+)"$', citation, re.MULTILINE)[1]
    assert f"\n## [{version}] - {date}\n" in (ROOT / "CHANGELOG.md").read_text()
