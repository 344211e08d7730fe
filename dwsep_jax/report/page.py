"""The blocks that make up a report, and the HTML, Markdown and PNGs made of them."""

import functools
import json
import re
from typing import Any, NamedTuple

import jinja2
import vl_convert

from dwsep_jax.report.format import DASH

# Colors in the light and the dark theme. Text has a contrast of at least 4.5 to the
# background, series have at least 3 (WCAG 2.1). The series follow Okabe and Ito's
# palette for color-blind readers.
COLORS = {
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
}
_PNG_WIDTH = 640
_MAX_ROWS_IN_ALT = 12


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Bullets(NamedTuple):
    """A list of sentences; `urls` gives each one a link."""

    items: list[str]
    urls: list[str] | None = None


class Headline(NamedTuple):
    """The answer: a few words, their tone (good, bad or open) and a paragraph.

    `figures` holds the numbers behind it, each with its meaning.
    """

    verdict: str
    tone: str
    text: str
    figures: tuple[tuple[str, str], ...] = ()


class Table(NamedTuple):
    """A table of strings, the first column left-aligned, the others right-aligned."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


class Chart(NamedTuple):
    """A Vega-Lite chart.

    Attributes:
      name: of the PNG in figures/, without its suffix; unique within a section.
      title: what it shows.
      spec: Vega-Lite, with var(--name) for `COLORS`.
      max_width: on the page, in pixels.
    """

    name: str
    title: str
    spec: dict[str, Any]
    max_width: int = 820

    @property
    def alt(self) -> str:
        """The title and what the tooltips say; of many points, the first and last."""
        layer = next(one for one in self.spec["layer"] if "tooltip" in one["encoding"])
        rows = layer.get("data", self.spec["data"])["values"]
        shown = rows if len(rows) <= _MAX_ROWS_IN_ALT else [rows[0], rows[-1]]
        many = "" if shown is rows else f"{len(rows)} points, first and last: "
        tooltip = layer["encoding"]["tooltip"]
        told = "; ".join(_describe_point(row, tooltip) for row in shown)
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
    """The report of one workdir: its headline, then its parts.

    `summary` is its row of the overview: workdir, dataset, kind, accuracy, result.
    """

    title: str
    lead: list[Block]
    parts: list[Part]
    summary: list[str]


def render_html(sections: list[Section]) -> str:
    """Return the page as one file that loads nothing else."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dwsep_jax.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.filters["whole"] = _keep_units
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        overview=_give_overview(sections),
        colors=COLORS,
        bundle=_bundle(),
        config=_chart_config(),
    )


def render_markdown(sections: list[Section], figures: str = "figures") -> str:
    """Return the same content as Markdown that refers to <figures>/*.png."""
    found = []
    if len(sections) > 1:
        found += ["# Overview", _to_markdown(_give_overview(sections), 0)]
    for i, section in enumerate(sections):
        found.append(f"# {_escape(section.title)}")
        found += [_to_markdown(block, i) for block in section.lead]
        for part in section.parts:
            found.append(f"## {_escape(part.title)}")
            found += [_to_markdown(block, i) for block in part.blocks]
    # All other brackets are escaped.
    return "\n\n".join(found).replace("](figures/", f"]({figures}/") + "\n"


def render_figures(sections: list[Section]) -> dict[str, bytes]:
    """Return the PNG of each chart by file name."""
    return {
        _figure_name(i, chart): draw(chart.spec, chart.title)
        for i, section in enumerate(sections)
        for part in section.parts
        for block in part.blocks
        for chart in getattr(block, "charts", [block])
        if isinstance(chart, Chart)
    }


def draw(spec: dict[str, Any], title: str) -> bytes:
    """Return a chart as a PNG in the light theme, its title above it."""
    # As a list, a title is broken into lines and stays plain text.
    look = {"anchor": "start", "fontSize": 13, "offset": 10, "color": "var(--text)"}
    config = _chart_config() | {"background": "var(--page)", "padding": 12}
    spec = {"title": {"text": title.split("\n")} | look, "config": config} | spec
    text = json.dumps(spec).replace('"width": "container"', f'"width": {_PNG_WIDTH}')
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: COLORS[match[1]][0], text)
    return vl_convert.vegalite_to_png(json.loads(text), scale=2)


def _figure_name(section, chart):
    """Return the file name of a chart, numbered in all sections but the first."""
    return f"{chart.name}.png" if section == 0 else f"{section + 1}-{chart.name}.png"


def _give_overview(sections):
    columns = ["workdir", "dataset", "kind", "test accuracy", "result"]
    return Table("The workdirs", columns, [section.summary for section in sections])


def _to_markdown(block, section):
    """Return a block of the section of that number as Markdown."""
    match block:
        case Text(text):
            return _escape(text)
        case Bullets(items, None):
            return "\n".join(f"- {_escape(item)}" for item in items)
        case Bullets(items, urls):
            links = zip(items, urls, strict=True)
            return "\n".join(f"- [{_escape(item)}]({url})" for item, url in links)
        case Headline(verdict, _, text, figures):
            numbers = [f"- {_escape(n)} {_escape(meaning)}" for n, meaning in figures]
            lines = [f"**{_escape(verdict)}.** {_escape(text)}", "", *numbers]
            return "\n".join(lines).strip()
        case Table(caption, columns, rows, note):
            rule = ["---", *["---:"] * (len(columns) - 1)]
            cells = [map(_escape, columns), rule, *(map(_escape, row) for row in rows)]
            lines = [f"| {' | '.join(row)} |" for row in cells]
            lines = [f"**{_escape(caption)}**", "", *lines, "", _escape(note)]
            return "\n".join(lines).strip()
        case Code(text):
            return f"```bash\n{text}\n```"
        case Chart():
            name = _figure_name(section, block)
            return f"![{_escape(block.alt)}](figures/{name})"
        case Grid(charts):
            return "\n\n".join(_to_markdown(chart, section) for chart in charts)


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
    # Vega's own limit may cut an emoji into halves, and then nothing is drawn.
    short = "replace(datum.label, regexp('^(.{26}).+', 'su'), '$1\u2026')"
    axis |= {"labelLimit": 0, "labelExpr": short}
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


def _keep_units(text):
    """Return text whose numbers stay on one line with their units."""
    pattern = r"(?<=\d) (?=[%kMGT]|ms|points|seeds)"
    return re.sub(pattern, "\N{NO-BREAK SPACE}", str(text))


def _escape(text):
    """Return text that Markdown shows literally, in a table cell too."""
    # GitHub would show :tada: as a picture.
    text = re.sub(r"([\\`*_\[\]<>|#$&~]|:(?=[\w+-]+:))", r"\\\1", str(text))
    return " ".join(text.split())
