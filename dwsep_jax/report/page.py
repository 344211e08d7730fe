"""The blocks that make up a report, and the HTML, Markdown and PNGs made of them."""

import functools
import io
import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import jinja2
import vl_convert
from PIL import Image

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
}
_PNG_WIDTH = 640


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
    """A Vega-Lite chart, beside the next one where there is room.

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


class Code(NamedTuple):
    """Commands."""

    text: str


# A str is a paragraph, and a list of them a list of sentences.
Block = str | list[str] | Headline | Table | Chart | Code


class Section(NamedTuple):
    """The report of one workdir.

    Attributes:
      title: its heading.
      headline: the answer.
      parts: the blocks below each smaller heading.
      summary: its row of the overview: workdir, dataset, kind, accuracy.
    """

    title: str
    headline: Headline
    parts: dict[str, list[Block]]
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
    return environment.get_template("page.html.jinja").render(
        sections=sections,
        overview=_give_overview(sections),
        colors=COLORS,
        bundle=_bundle(),
        config=_chart_config(),
    )


def render_markdown(
    sections: list[Section], figures: str = "figures", has_overview: bool = True
) -> str:
    """Return the same content as Markdown that refers to <figures>/*.png.

    Of several sections, a table of their results comes first, if it has an overview.
    """
    found = []
    if len(sections) > 1 and has_overview:
        found += ["# Overview", _to_markdown(_give_overview(sections), figures)]
    for i, section in enumerate(sections):
        start = f"{figures}/{_prefix(i)}"
        found += [f"# {_escape(section.title)}", _to_markdown(section.headline, start)]
        for title, blocks in section.parts.items():
            found.append(f"## {_escape(title)}")
            found += [_to_markdown(block, start) for block in blocks]
    return "\n\n".join(found) + "\n"


def render_figures(sections: list[Section]) -> dict[str, bytes]:
    """Return the PNG of each chart by file name."""
    return {
        f"{_prefix(i)}{name}": png
        for i, section in enumerate(sections)
        for blocks in section.parts.values()
        for name, png in draw_all(b for b in blocks if isinstance(b, Chart)).items()
    }


def draw_all(charts: Iterable[Chart]) -> dict[str, bytes]:
    """Return the PNG of each chart by file name."""
    return {f"{chart.name}.png": draw(chart.spec, chart.title) for chart in charts}


def draw(spec: dict[str, Any], title: str) -> bytes:
    """Return a chart as a PNG in the light theme, its title above it."""
    # As a list, a title is broken into lines and stays plain text.
    look = {"anchor": "start", "fontSize": 13, "offset": 10, "color": "var(--text)"}
    config = _chart_config() | {"background": "var(--page)", "padding": 12}
    spec = {"title": {"text": title.split("\n")} | look, "config": config} | spec
    text = json.dumps(spec).replace('"width": "container"', f'"width": {_PNG_WIDTH}')
    text = re.sub(r"var\(--([a-z0-9]+)\)", lambda match: COLORS[match[1]][0], text)
    png = io.BytesIO(vl_convert.vegalite_to_png(json.loads(text), scale=2))
    small = io.BytesIO()  # Of few colors, with a palette: a fifth of the bytes.
    Image.open(png).convert("RGB").quantize().save(small, "png", optimize=True)
    return small.getvalue()


def _prefix(section):
    """Return how the names of a section's figures begin: with its number, from 2 on."""
    return f"{section + 1}-" if section else ""


def _give_overview(sections):
    columns = ["workdir", "dataset", "kind", "test accuracy", "result"]
    rows = [[*section.summary, section.headline.verdict] for section in sections]
    return Table("The workdirs", columns, rows)


def _to_markdown(block, figures):
    """Return a block as Markdown; `figures` is how the paths of its PNGs begin."""
    match block:
        case str():
            return _escape(block)
        case Headline(verdict, _, text, numbers):
            listed = _list(f"{number} {meaning}" for number, meaning in numbers)
            return f"**{_escape(verdict)}.** {_escape(text)}\n\n{listed}".strip()
        case Table(caption, columns, rows, note):
            rule = ["---", *["---:"] * (len(columns) - 1)]
            cells = [map(_escape, columns), rule, *(map(_escape, row) for row in rows)]
            lines = [f"| {' | '.join(row)} |" for row in cells]
            lines = [f"**{_escape(caption)}**", "", *lines, "", _escape(note)]
            return "\n".join(lines).strip()
        case Code(text):
            return f"```bash\n{text}\n```"
        case Chart(name, title):
            return f"![{_escape(title)}]({figures}{name}.png)"
        case list():
            return _list(block)


def _list(sentences):
    return "\n".join(f"- {_escape(sentence)}" for sentence in sentences)


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
    legend |= {"symbolOpacity": 1, "labelFontSize": 11, "columnPadding": 8}
    return {
        "axis": words | axis,
        "legend": words | legend,
        "background": "transparent",
        "view": {"stroke": None},
        "font": "system-ui, sans-serif",
        "text": {"color": text},
        "mark": {"tooltip": {"content": "data"}},
    }


@functools.cache
def _bundle():
    """Return the JavaScript of Vega, made safe inside a script element."""
    source = vl_convert.javascript_bundle()
    return source.replace("</script", r"<\/script").replace("<!--", r"<\!--")


def _escape(text):
    """Return text that Markdown shows literally, in a table cell too."""
    # GitHub would show :tada: as a picture.
    text = re.sub(r"([\\`*_\[\]<>|#$&~]|:(?=[\w+-]+:))", r"\\\1", str(text))
    return " ".join(text.split())
