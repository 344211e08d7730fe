"""The blocks that make up a report, and the HTML, Markdown and PNGs made of them."""

import functools
import json
import re
from typing import Any, NamedTuple

import jinja2
import vl_convert

from dwsep_jax.report.format import (
    DASH,
    fixed,
    listing,
    percent,
    points,
    share,
    times,
)
from dwsep_jax.workdir import score

# Colours in the light and the dark theme. Text has a contrast of at least 4.5 to the
# background, series have at least 3 (WCAG 2.1). The series follow Okabe and Ito's
# palette for colour-blind readers; the ramp runs from bad to good.
_COLORS = {
    "page": ("#ffffff", "#12161c"),
    "panel": ("#f4f6f8", "#1b2129"),
    "text": ("#1b1f24", "#e6eaef"),
    "muted": ("#57606a", "#a3adb8"),
    "line": ("#d0d7de", "#3a434e"),
    "link": ("#0b5cad", "#7cbcff"),
    "good": ("#0b6e4f", "#4cc79b"),
    "bad": ("#a63a00", "#ff9a5c"),
    "open": ("#6b5600", "#e2c64b"),
    "heat": ("#56b4e9", "#00659f"),
    "series0": ("#0072b2", "#56b4e9"),
    "series1": ("#d55e00", "#f58231"),
    "series2": ("#00805f", "#2fbf93"),
    "series3": ("#aa4499", "#d884c8"),
    "series4": ("#8a6d00", "#e2c64b"),
    "series5": ("#57606a", "#a3adb8"),
    "ramp0": ("#8b929a", "#68727e"),
    "ramp1": ("#557fb0", "#5b86b3"),
    "ramp2": ("#2a6cb0", "#6fb1ec"),
    "ramp3": ("#003a70", "#d3eaff"),
}
THEMES = {
    theme: {name: pair[i] for name, pair in _COLORS.items()}
    for i, theme in enumerate(("light", "dark"))
}
_PNG_WIDTH = 640
_MAX_ROWS_IN_ALT = 12


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list of sentences; `urls` gives each one a link, or None."""

    items: list[str]
    urls: list[str | None] | None = None


class Headline(NamedTuple):
    """The answer: a few words, their tone (good, bad or open) and a paragraph.

    `figures` holds the numbers behind it, each with its meaning; `more` is a second
    paragraph.
    """

    verdict: str
    tone: str
    text: str
    figures: tuple[tuple[str, str], ...] = ()
    more: str = ""


class Table(NamedTuple):
    """A table of strings, its first column left-aligned and the others right-aligned.

    A folded table opens on demand; `links` gives each row a link.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    folded: bool = False
    note: str = ""
    links: list[str] | None = None


class Chart(NamedTuple):
    """A Vega-Lite chart.

    Attributes:
      name: of the PNG in figures/, without its suffix; unique within a section.
      title: what it shows.
      spec: Vega-Lite, with var(--name) for the colours of `THEMES`.
      max_width: on the page, in pixels.
    """

    name: str
    title: str
    spec: dict[str, Any]
    max_width: int = 820

    @property
    def alt(self) -> str:
        """The title and what the tooltips say; of many points, the first and last."""
        layers = [layer for layer in self.spec["layer"] if _tooltip(layer)]
        if not layers:
            return f"{self.title}."
        rows = layers[0].get("data", self.spec["data"])["values"]
        shown = rows if len(rows) <= _MAX_ROWS_IN_ALT else [rows[0], rows[-1]]
        told = "; ".join(_describe_point(row, _tooltip(layers[0])) for row in shown)
        many = f"{len(rows)} points, first and last: " if shown is not rows else ""
        return f"{self.title}. {many}{told}."


class Grid(NamedTuple):
    """Charts side by side where there is room."""

    charts: list[Chart]


class Code(NamedTuple):
    """Commands."""

    text: str


Block = Text | Bullets | Headline | Table | Chart | Grid | Code


class Part(NamedTuple):
    """A heading and the blocks below it."""

    title: str
    blocks: list[Block]


class Section(NamedTuple):
    """The report of one workdir: its headline blocks, then its parts.

    `summary` is its row of the overview: workdir, dataset, kind, accuracy, result.
    """

    title: str
    lead: list[Block]
    parts: list[Part]
    summary: list[str]


def render_html(sections: list[Section], overview: Table | None) -> str:
    """Return the page as one file that loads nothing else."""
    return _render(
        "page.html.jinja",
        autoescape=True,
        sections=sections,
        overview=overview,
        themes=THEMES,
        bundle=_bundle(),
        config=_chart_config(),
    )


def render_markdown(sections: list[Section], overview: Table | None) -> str:
    """Return the same content as Markdown that refers to figures/*.png."""
    text = _render("page.md.jinja", False, sections=sections, overview=overview)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def render_figures(sections: list[Section]) -> dict[str, bytes]:
    """Return the PNG of each chart by file name."""
    return {
        figure_name(i, chart): draw(chart.spec, chart.title)
        for i, section in enumerate(sections)
        for block in [*section.lead, *(b for p in section.parts for b in p.blocks)]
        for chart in getattr(block, "charts", [block])
        if isinstance(chart, Chart)
    }


def figure_name(section: int, chart: Chart) -> str:
    """Return the file name of a chart, numbered in all sections but the first."""
    return f"{chart.name}.png" if section == 0 else f"{section + 1}-{chart.name}.png"


def write(template: str, block: str, values: dict[str, Any]) -> list[str]:
    """Return the lines of a block of a template of prose, without empty ones."""
    found = _environment(autoescape=False).get_template(template)
    text = "".join(found.blocks[block](found.new_context(values)))
    return [line.strip() for line in text.splitlines() if line.strip()]


def draw(spec: dict[str, Any], title: str) -> bytes:
    """Return a chart as a PNG in the light theme, its title above it."""
    # As a list, a title is broken into lines and stays plain text.
    look = {"anchor": "start", "fontSize": 13, "offset": 10, "color": "var(--text)"}
    config = _chart_config() | {"background": "var(--page)", "padding": 12}
    spec = {"title": {"text": title.split("\n")} | look, "config": config} | spec
    text = json.dumps(spec).replace('"width": "container"', f'"width": {_PNG_WIDTH}')
    light = THEMES["light"]
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: light[match[1]], text)
    return vl_convert.vegalite_to_png(json.loads(text), scale=2)


def _tooltip(layer):
    return layer.get("encoding", {}).get("tooltip")


def _describe_point(row, tooltip):
    """Return what a tooltip says of a row of data; d3's formats are like Python's."""
    told = []
    for entry in tooltip:
        value = row.get(entry["field"])
        text = DASH if value is None else format(value, entry.get("format", ""))
        told.append(f"{entry['title']} {text}")
    return ", ".join(told)


def _chart_config():
    """Return the look that all charts share: a light grid, no frame."""
    text, muted, line = "var(--text)", "var(--muted)", "var(--line)"
    words = {"labelColor": muted, "titleColor": text, "labelFontSize": 12}
    words |= {"titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 240}
    axis = {"gridColor": line, "domainColor": line, "tickColor": line}
    legend = {"orient": "top", "title": None, "symbolStrokeWidth": 2, "columns": 2}
    legend |= {"labelFontSize": 11, "columnPadding": 8}
    return {
        "axis": words | axis,
        "legend": words | legend,
        "background": "transparent",
        "view": {"stroke": None},
        "font": "system-ui, sans-serif",
        "text": {"color": text},
    }


@functools.cache
def _bundle():
    """Return the JavaScript of Vega, made safe inside a script element."""
    source = vl_convert.javascript_bundle()
    return source.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _render(template, autoescape, **values):
    return _environment(autoescape).get_template(template).render(values)


@functools.cache
def _environment(autoescape):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwsep_jax.report", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["figure_name"] = figure_name
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["cell"] = _escape_markdown
    environment.filters["whole"] = _keep_units
    for form in (fixed, listing, percent, points, score, share, times):
        environment.filters[form.__name__] = form
    return environment


def _keep_units(text):
    """Return text whose numbers stay on one line with their units."""
    pattern = r"(?<=\d) (?=[%kMGT]|ms|points|seeds)"
    return re.sub(pattern, "\N{NO-BREAK SPACE}", str(text))


def _escape_markdown(text):
    """Return text that Markdown shows literally, in a table cell too."""
    text = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text))
    return " ".join(text.split())
