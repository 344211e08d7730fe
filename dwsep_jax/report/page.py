"""A report's parts, and the page and the Markdown that they make."""

import dataclasses
import functools
import json
import re
from typing import Any

import jinja2
import vl_convert

# What a chart is drawn with, in each theme. Series: after Okabe and Ito, darkened or
# lightened until each has a contrast of 3 to the background; text has 4.5 (WCAG 2.1).
# The ramp goes from the background away, from bad to good.
THEMES = {
    "light": {
        "page": "#ffffff",
        "panel": "#f4f6f8",
        "text": "#1b1f24",
        "muted": "#57606a",
        "line": "#d0d7de",
        "link": "#0b5cad",
        "good": "#0b6e4f",
        "bad": "#a63a00",
        "open": "#6b5600",
        "heat": "#56b4e9",
        "series0": "#0072b2",
        "series1": "#d55e00",
        "series2": "#00805f",
        "series3": "#aa4499",
        "series4": "#8a6d00",
        "series5": "#57606a",
        "ramp0": "#8b929a",
        "ramp1": "#557fb0",
        "ramp2": "#2a6cb0",
        "ramp3": "#003a70",
    },
    "dark": {
        "page": "#12161c",
        "panel": "#1b2129",
        "text": "#e6eaef",
        "muted": "#a3adb8",
        "line": "#3a434e",
        "link": "#7cbcff",
        "good": "#4cc79b",
        "bad": "#ff9a5c",
        "open": "#e2c64b",
        "heat": "#00659f",
        "series0": "#56b4e9",
        "series1": "#f58231",
        "series2": "#2fbf93",
        "series3": "#d884c8",
        "series4": "#e2c64b",
        "series5": "#a3adb8",
        "ramp0": "#68727e",
        "ramp1": "#5b86b3",
        "ramp2": "#6fb1ec",
        "ramp3": "#d3eaff",
    },
}
_PNG_WIDTH = 640


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind = "text"


@dataclasses.dataclass(frozen=True)
class Bullets:
    """A list of sentences; `urls` has the address that belongs to each, or None."""

    items: list[str]
    urls: list[str | None] | None = None
    kind = "bullets"


@dataclasses.dataclass(frozen=True)
class Headline:
    """The answer: a few words, their tone (good, bad, open), a paragraph.

    `figures` are the numbers behind it, each with what it is; `more` is a second
    paragraph.
    """

    verdict: str
    tone: str
    text: str
    figures: tuple[tuple[str, str], ...] = ()
    more: str = ""
    kind = "headline"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts: the first column to the left, the others to the right.

    `folded` is shown on demand; `note` is said below.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]
    folded: bool = False
    note: str = ""
    links: list[str] | None = None
    kind = "table"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: `png` where it is drawn already, else the specification makes it.

    Attributes:
      name: of the file in figures/, without its suffix; unique within a section.
      title: what is shown.
      alt: what it says, for whoever does not see it.
      spec: Vega-Lite, whose colours are var(--name) of `THEMES`; None: only the PNG.
      png: PNG, or None.
      max_width: on the page, in pixels.
    """

    name: str
    title: str
    alt: str
    spec: dict[str, Any] | None = None
    png: bytes | None = None
    max_width: int = 820
    kind = "chart"


@dataclasses.dataclass(frozen=True)
class Grid:
    """Charts side by side where there is room."""

    charts: list[Chart]
    kind = "grid"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Small pictures as data URIs, each with a caption; `sheet` is all in one PNG."""

    items: list[tuple[str, str]]
    sheet: Chart
    kind = "pictures"


@dataclasses.dataclass(frozen=True)
class Code:
    """Commands."""

    text: str
    kind = "code"


Block = Text | Bullets | Headline | Table | Chart | Grid | Pictures | Code


@dataclasses.dataclass(frozen=True)
class Part:
    """A heading and what is below it."""

    title: str
    blocks: list[Block]


@dataclasses.dataclass(frozen=True)
class Section:
    """A workdir's part of the report: its headline blocks, then its parts.

    `summary` is its row of the overview: workdir, what, accuracy, result.
    """

    title: str
    lead: list[Block]
    parts: list[Part]
    summary: list[str]


def render_html(sections: list[Section], overview: Table | None) -> str:
    """Return the page, with all that it needs inside."""
    template = _environment(autoescape=True).get_template("page.html.jinja")
    return template.render(
        sections=sections,
        overview=overview,
        themes=THEMES,
        bundle=_bundle(),
        config=_chart_config(),
    )


def render_markdown(sections: list[Section], overview: Table | None) -> str:
    """Return the same content as Markdown, which refers to figures/*.png."""
    template = _environment(autoescape=False).get_template("page.md.jinja")
    text = template.render(sections=sections, overview=overview)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def render_figures(sections: list[Section]) -> dict[str, bytes]:
    """Return the PNG of each chart, by the names of the files."""
    contents = {}
    for i, section in enumerate(sections):
        for block in [*section.lead, *(b for p in section.parts for b in p.blocks)]:
            charts = {"chart": [block], "grid": getattr(block, "charts", [])}
            charts["pictures"] = [getattr(block, "sheet", None)]
            for chart in charts.get(block.kind, []):
                png = chart.png or _draw(chart)
                contents[figure_name(i, chart)] = png
    return contents


def figure_name(section: int, chart: Chart) -> str:
    """Return the name of a chart's file; those after the first section are numbered."""
    return f"{chart.name}.png" if section == 0 else f"{section + 1}-{chart.name}.png"


def _draw(chart):
    spec = {"config": _chart_config() | {"background": "var(--page)"}, **chart.spec}
    text = json.dumps(spec).replace('"width": "container"', f'"width": {_PNG_WIDTH}')
    light = THEMES["light"]
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: light[match[1]], text)
    return vl_convert.vegalite_to_png(json.loads(text), scale=2)


def _chart_config():
    """Return the look of all charts: colours of the theme, light grid, no frame."""
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
    """Return the JavaScript that draws, such that it may stand in a script element."""
    source = vl_convert.javascript_bundle()
    return source.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _environment(autoescape):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwsep_jax.report", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["figure_name"] = figure_name
    environment.filters["cell"] = _escape_markdown
    environment.filters["whole"] = _keep_units
    return environment


def _keep_units(text):
    """Return text whose numbers stay on one line with their units."""
    return re.sub(
        r"(?<=\d) (?=[%kMGT]|ms|points|seeds)", "\N{NO-BREAK SPACE}", str(text)
    )


def _escape_markdown(text):
    """Return text that Markdown shows as it is, in a table's cell too."""
    text = re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", str(text))
    return " ".join(text.split())
