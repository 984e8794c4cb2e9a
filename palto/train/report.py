"""Report: what a training run achieved, on one page that a browser opens without a network.

The page holds everything itself: numbers, pictures, style. It needs no script, prints well, fits a
phone and follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from palto.tensor.dtypes import Array

#: Up to so many classes, the confusion matrix is a table of counts; beyond, a picture.
MOST_COUNTED_CLASSES = 30
#: The largest confusion matrix that is drawn.
MOST_DRAWN_CLASSES = 1000
#: How many rows of a long table are seen before it is unfolded.
SHORT_TABLE = 20
MOST_HISTORY_ROWS = 200
MOST_CHARTS = 24
#: Of longer lines, not all points are drawn.
MOST_POINTS = 1000
MOST_FILTERS = 256
MOST_MISTAKES = 48
#: Larger images are made smaller, in pixels a side.
LARGEST_IMAGE = 80

NO_PICTURES = (
    "This page has no pictures: they need Matplotlib. pip install 'palto[plot]' brings it."
)


@dataclass(frozen=True, eq=False)
class Mistake:
    """A test image that the model got wrong.

    Attributes:
        image: (H, W, C), from 0 to 1, of one or three channels.
        truth: its label.
        guess: the model's first choice.
        probability: the probability that the model gives its choice.
        truth_probability: the one that it gives the truth.
    """

    image: Array
    truth: int
    guess: int
    probability: float
    truth_probability: float


@dataclass(frozen=True, eq=False)
class Report:
    """What there is to say about a training run.

    Whatever is missing, not finite or of an odd shape costs its own part of the page, never the
    page.

    Attributes:
        title: for example "alexnet on fashion-mnist".
        history: what was measured at each validation: epoch, step, seconds, train_loss,
            validation_loss, accuracy, lr and whatever else is a number.
        classes: the names of the classes.
        confusion: (K, K) counts of examples, the truth along rows, the guess along columns.
        filters: the kernels of a first convolution, (height, width, channels, filters).
        mistakes: the images that the model got most wrong, the worst first.
        metrics: what was measured at the end: accuracy, loss, parameters, images_per_second ...
        configuration: all settings, nested as you like.
        command: what to type to get this run again.
        versions: of Palto, Python, NumPy, the machine.
        model_summary: the model's layers, as text.
        notes: what happened on the way: resumptions, early stopping.
    """

    title: str
    history: Sequence[Mapping[str, float]]
    classes: Sequence[str] = ()
    confusion: Array | None = None
    filters: Array | None = None
    mistakes: Sequence[Mistake] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    model_summary: str = ""
    notes: Sequence[str] = ()

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file: whole or not at all, over whatever was there.

        Args:
            path: the file; its folder is made if it is not there.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written; what was there stays.
        """
        target = Path(path)
        contents = self.html().encode()
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f".{secrets.token_hex(8)}.part")
        try:
            with open(unfinished, "xb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        return target

    def html(self) -> str:
        """The page. Equal reports give equal pages."""
        pictures = _can_draw()
        sections = {
            "Curves": _curves(self.history, pictures),
            "Confusion": _confusion(self.confusion, self.classes, pictures),
            "First layer": _filters(self.filters) if pictures else None,
            "Worst mistakes": _mistakes(self.mistakes, self.classes, pictures),
            "How it was made": _making(self),
        }
        shown = {name: content for name, content in sections.items() if content}
        title = str(self.title) or "Training report"
        body = [
            _tag("h1", title),
            _tag("ul", *(_tag("li", str(note)) for note in self.notes), class_="notes")
            if self.notes
            else "",
            "" if pictures else _tag("p", NO_PICTURES, class_="notes"),
            _headline(self.metrics, self.history),
            _tag("nav", *(_tag("a", name, href=f"#{_anchor(name)}") for name in shown)),
            *(
                _tag("section", _tag("h2", name), content, id=_anchor(name))
                for name, content in shown.items()
            ),
            _tag("footer", "Written by Palto."),
        ]
        style = STYLE_SHEET.read_text(encoding="utf-8")
        return _PAGE.format(title=_markup(title), style=style, body=_join(body))


# HTML


class _Markup(str):
    """Text that is HTML already. All other text is escaped when it enters the page."""

    __slots__ = ()


def _markup(content: str) -> _Markup:
    """Escape plain text, and what no file could hold."""
    if isinstance(content, _Markup):
        return content
    content = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\ufffd", content)
    return _Markup(html.escape(content.encode("utf-8", "replace").decode()))


def _join(parts: Iterable[str]) -> _Markup:
    return _Markup("".join(_markup(part) for part in parts))


def _tag(name: str, *inside: str, **attributes: object) -> _Markup:
    """An element. Attributes are named as in HTML; `class_` is class, `aria_label` aria-label."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_markup(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("img", "input"):
        return _Markup(f"<{name}{written}>")
    return _Markup(f"<{name}{written}>{_join(inside)}</{name}>")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> _Markup:
    """A table that scrolls sideways where it is too wide; the first column names the row."""
    top = _tag("thead", _tag("tr", *(_tag("th", name, scope="col") for name in head)))
    body = (
        _tag("tr", _tag("th", row[0], scope="row"), *(_cell(value) for value in row[1:]))
        for row in rows
        if row
    )
    table = _tag("table", top if head else "", _tag("tbody", *body))
    return _tag("div", table, class_="wide")


def _cell(value: str) -> _Markup:
    """A table's cell; markup that is a cell already stays."""
    return value if isinstance(value, _Markup) and value.startswith("<td") else _tag("td", value)


def _share_cell(share: float) -> _Markup:
    """A share as a number upon a bar."""
    if not math.isfinite(share):
        return _tag("td", "–")
    return _tag("td", f"{share:.1%}", class_="bar", style=f"--share:{100 * share:.1f}%")


def _folded(title: str, *inside: str) -> _Markup:
    return _tag("details", _tag("summary", title), *inside)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


# Numbers and names


def _as_number(value: Any) -> float:
    """A number, NaN for whatever is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _as_array(values: Any) -> Array:
    """Finite real numbers, 0 in place of others; empty for whatever is no array of numbers."""
    try:
        array = np.asarray(values)
        if array.dtype.kind != "c":
            return np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)
    except (TypeError, ValueError):
        pass
    return np.empty(0)


def _left_out(wanted: str, given: Any) -> _Markup:
    return _tag("p", f"Left out: {wanted}, got {getattr(given, 'shape', type(given).__name__)}.")


def _number(value: Any) -> str:
    number = _as_number(value)
    if abs(number) < 1e15 and (abs(number) >= 1000 or number == round(number)):
        return f"{number:,.0f}"
    return f"{number:.4g}"


def _duration(seconds: float) -> str:
    if not 0 <= seconds < math.inf:
        return f"{seconds:g} s"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s"


_KNOWN_NAMES = {"lr": "learning rate", "r2": "R²", "seconds": "time"}


def _words(key: str) -> str:
    """A measure's name as people say it."""
    known = _KNOWN_NAMES.get(key) or re.sub(r"^top_?(\d+)$", r"top-\1 accuracy", key)
    return known.replace("_", " ")


def _is_share(key: str, values: Any) -> bool:
    """Whether a measure is better written in per cent."""
    named = re.search(r"accuracy|precision|recall|(^|_)(top_?\d+|f1)$", key.lower())
    finite = np.asarray(values)[np.isfinite(values)]
    return bool(named) and bool(np.all((0 <= finite) & (finite <= 1)))


def _is_duration(key: str) -> bool:
    return bool(re.fullmatch(r"(\w+_)?(seconds|time)|seconds_per_\w+", key))


def _value(key: str, value: Any) -> str:
    """A measure's value as people write it."""
    number = _as_number(value)
    key = key.replace(" ", "_")
    if _is_duration(key):
        return _duration(number)
    if math.isfinite(number) and _is_share(key, number):
        return f"{number:.2%}"
    return _number(value)


def _better(key: str) -> int:
    """1 if more of a measure is better, -1 if less is, 0 if nobody knows."""
    key = key.lower()
    if re.search(r"loss|error|perplexity|bits_per", key):
        return -1
    return 1 if re.search(r"accuracy|precision|recall|top_?\d+$|f1$|r2$|bleu|score", key) else 0


def _class_name(classes: Sequence[str], label: int) -> str:
    name = str(classes[label]) if 0 <= label < len(classes) else ""
    return name or f"class {label}"


# Headline


def _headline(metrics: Mapping[str, float], history: Sequence[Mapping[str, float]]) -> _Markup:
    """The numbers that everybody asks for first."""
    last: Mapping[str, float] = history[-1] if history else {}
    shown = [(_words(str(key)), _value(str(key), value)) for key, value in metrics.items()]
    if not metrics:
        for key in ("accuracy", "validation_loss", "train_loss"):
            if key in last:
                shown.append((f"{_words(key)}, last", _value(key, last[key])))
    if "seconds" in last and not any(_is_duration(str(key)) for key in metrics):
        shown.append(("time", _value("seconds", last["seconds"])))
    if "epoch" in last and "epochs" not in metrics:
        shown.append(("epochs", _number(last["epoch"])))
    items = (_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in shown)
    return _tag("dl", *items, class_="headline") if shown else _Markup("")


# Curves


@dataclass(frozen=True)
class _Chart:
    """Lines over one axis.

    Attributes:
        key: the measure, without what says on which data.
        x_name: what runs along the x axis.
        lines: x and y values, by the data that they were measured on.
    """

    key: str
    x_name: str
    lines: dict[str, tuple[Array, Array]]

    def values(self) -> Array:
        """All finite y values."""
        values: Array = np.concatenate([y for _, y in self.lines.values()])
        return values[np.isfinite(values)]

    def is_share(self) -> bool:
        """Whether it is drawn in per cent."""
        return _is_share(self.key, self.values())

    def colour(self, data: str) -> int:
        """The number of a line's colour in the style sheet."""
        return {"train": 1, "test": 2, "": 3 if "validation" in self.lines else 0}.get(data, 0)

    def best(self) -> tuple[str, float, float] | None:
        """The best value on the data that count most: which data, x and y."""
        direction = _better(self.key)
        data = min(self.lines, key=["validation", "", "test", "train"].index)
        x, y = self.lines[data]
        if not direction or len(y) < 2 or np.isnan(y).all():
            return None
        place = int(np.nanargmax(direction * y))
        return data, float(x[place]), float(y[place])


_DATA = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test",
}  # fmt: skip


def _curves(history: Sequence[Mapping[str, float]], pictures: bool) -> _Markup:
    if not history:
        return _tag("p", "Nothing has been measured yet.")
    parts = []
    if pictures:
        charts = _charts(history)
        figures = (_figure(chart, number) for number, chart in enumerate(charts[:MOST_CHARTS]))
        parts.append(_tag("div", *figures, class_="charts"))
        if len(charts) > MOST_CHARTS:
            parts.append(_tag("p", f"{len(charts) - MOST_CHARTS} more are in the table only."))
    parts.append(_history_table(history, is_open=not pictures))
    return _join(parts)


def _keys(history: Sequence[Mapping[str, float]]) -> list[str]:
    """All measures of a history, in the order of their appearance."""
    return list(dict.fromkeys(str(key) for entry in history for key in entry))


def _column(history: Sequence[Mapping[str, float]], key: str) -> Array:
    """A measure over time; NaN where it is absent, or no drawing could hold it."""
    values = np.array([_as_number(entry.get(key)) for entry in history])
    values[~(np.abs(values) < 1e100)] = np.nan
    return values


def _charts(history: Sequence[Mapping[str, float]]) -> list[_Chart]:
    """A chart for each measure, the loss first."""
    charts: dict[str, _Chart] = {}
    for key in _keys(history):
        if key in ("epoch", "step", "seconds"):
            continue
        start, _, rest = key.partition("_")
        data, base = (_DATA[start], rest) if start in _DATA and rest else ("", key)
        x_name, x = _x_axis(history, ("step", "epoch") if base == "lr" else ("epoch", "step"))
        given = np.array([key in entry for entry in history])
        line = x[given], _column(history, key)[given]
        charts.setdefault(base, _Chart(base, x_name, {})).lines.setdefault(data, line)
    places = {"loss": 0, "accuracy": 1, "lr": 9}
    return sorted(charts.values(), key=lambda c: places.get(c.key, 2 if _better(c.key) else 3))


def _x_axis(history: Sequence[Mapping[str, float]], keys: Iterable[str]) -> tuple[str, Array]:
    """What to draw a history over: the first of the keys that grows from entry to entry."""
    for key in keys:
        values = _column(history, key)
        if np.isfinite(values).all() and (np.diff(values) > 0).all():
            return key, values
    return "validation", np.arange(1.0, len(history) + 1)


def _figure(chart: _Chart, number: int) -> _Markup:
    """A chart with its caption and, where it helps, the choice of a logarithmic scale."""
    name = _words(chart.key)
    caption = [_tag("b", f"{name} (%)" if chart.is_share() else name)]
    if list(chart.lines) != [""]:
        plain = name if "validation" in chart.lines else "validation"
        caption += (
            _tag("span", data or plain, class_=f"line line-{chart.colour(data)} {data}")
            for data in chart.lines
        )
    best = chart.best()
    if best is not None:
        _, x, y = best
        said = f"best {_value(chart.key, y)} at {chart.x_name} {_number(x)}"
        caption.append(_tag("span", said))
    values = chart.values()
    lost = sum(len(y) for _, y in chart.lines.values()) - len(values)
    if lost:
        caption.append(_tag("span", "1 value is" if lost == 1 else f"{lost:,} values are",
                            " not finite"))  # fmt: skip
    words = _tag("figcaption", *caption)
    if not len(values):
        return _tag("figure", words)
    linear = _draw(chart, f"c{number}", is_log=False)
    span = math.log10(values.max() / values.min()) if values.min() > 1e-30 else 0
    if chart.is_share() or span < 0.6:
        return _tag("figure", words, linear)
    checked = {"checked": ""} if span > 1.7 and _better(chart.key) < 0 else {}
    return _tag(
        "figure",
        _tag("input", type="checkbox", id=f"log-{number}", **checked),
        _tag("label", "log scale", for_=f"log-{number}"),
        words,
        _tag("div", linear, class_="linear"),
        _tag("div", _draw(chart, f"d{number}", is_log=True), class_="log"),
    )


def _thinned(values: Array) -> Array:
    """Which points of a line are drawn: of many, the lowest and the highest of each part."""
    if len(values) <= MOST_POINTS:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), MOST_POINTS // 2):
        finite = part[np.isfinite(values[part])]
        if len(finite):
            kept |= {int(finite[values[finite].argmin()]), int(finite[values[finite].argmax()])}
    return np.array(sorted(kept))


def _history_table(history: Sequence[Mapping[str, float]], *, is_open: bool) -> _Markup:
    """All that was measured, or of a long history evenly chosen rows."""
    keys = _keys(history)
    places = np.linspace(0, len(history) - 1, min(len(history), MOST_HISTORY_ROWS)).astype(int)
    rows = [
        [_value(key, history[i][key]) if key in history[i] else "" for key in keys] for i in places
    ]
    whole = len(places) == len(history)
    title = "All numbers" if whole else f"{len(places)} of {len(history):,} measurements"
    table = _table([_words(key) for key in keys], rows)
    return _join([_tag("h3", title), table]) if is_open else _folded(title, table)


# Drawing

#: Colours that Matplotlib draws with, and what they are in the page, where they follow its style.
_INK, _GRID = "#010101", "#020202"
_LINES = ("#030303", "#040404", "#050505", "#060606")
_PAINT = {_INK: "var(--muted)", _GRID: "var(--edge)"} | {
    colour: f"var(--line-{i})" for i, colour in enumerate(_LINES)
}


def _can_draw() -> bool:
    """Whether Matplotlib is installed, and with it Pillow."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def _draw(chart: _Chart, prefix: str, *, is_log: bool) -> _Markup:
    """A chart's lines and axes as SVG, whose ids start with the prefix."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(3.8, 2.5), facecolor="none", layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    scale = 100 if chart.is_share() else 1
    for data, (x, y) in chart.lines.items():
        places = _thinned(y)
        axes.plot(
            x[places],
            scale * y[places],
            color=_LINES[chart.colour(data)],
            linestyle="--" if data == "train" else "-",
            linewidth=1.6,
            marker="o" if len(places) <= 40 else "",
            markersize=2.5,
            markeredgewidth=1,
        )
    axes.margins(x=0.04, y=0.12)
    best = chart.best()
    if best is not None:
        data, *point = best
        colour = _LINES[chart.colour(data)]
        axes.plot(
            point[0],
            scale * point[1],
            "o",
            color=colour,
            markersize=8,
            fillstyle="none",
            markeredgewidth=1,
        )
    _ticks(axes, is_log=is_log)
    axes.set_xlabel(chart.x_name)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.tick_params(length=0)
    for side, spine in axes.spines.items():
        spine.set(color=_GRID, linewidth=0.8, visible=side in ("left", "bottom"))
    for text in figure.findobj(Text):
        text.set(color=_INK, fontsize=10.5, fontfamily="DejaVu Sans", usetex=False)
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(written, metadata=nothing)
    scale_name = ", logarithmic" if is_log else ""
    label = f"{_words(chart.key)} over {chart.x_name}{scale_name}"
    return _inline(written.getvalue(), prefix, label)


def _ticks(axes: Any, *, is_log: bool) -> None:
    """Few ticks, with plain numbers."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    steps = [1, 2, 2.5, 5, 10]
    low, high = axes.dataLim.intervalx
    if low == high:
        axes.set_xlim(low - 1, high + 1)
    low, high = axes.get_xlim()
    whole = MaxNLocator(6, integer=True, steps=steps).tick_values(low, high)
    axes.set_xticks([x for x in whole if low <= x <= high])
    if is_log:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
        low, high = axes.get_ylim()
        marks = _log_marks(low, high)
    else:
        low, high = axes.get_ylim()
        marks = list(MaxNLocator(6, steps=steps).tick_values(low, high))
    axes.set_yticks([y for y in marks if low <= y <= high])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, place: _tick(value))
        axis.get_offset_text().set_visible(False)


def _tick(value: float) -> str:
    text = f"{value:,.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.6g}"
    return text.replace("-", "−")


def _log_marks(low: float, high: float) -> list[float]:
    """A few round numbers from low to high."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks: list[float] = []
    for steps in ([1, 1.5, 2, 3, 4, 5, 6, 8], [1, 2, 5], [1, 3], [1]):
        marks = [step * 10.0**power for power in powers for step in steps]
        marks = [mark for mark in marks if low <= mark <= high]
        if len(marks) <= 7:
            break
    return marks[:: len(marks) // 8 + 1]


def _inline(svg: str, prefix: str, label: str) -> _Markup:
    """A file of SVG as a part of a page: its own ids, the page's colours, nothing from outside."""
    body = svg[svg.index("<svg") : svg.rindex("</svg>")]
    viewed = re.search(r'viewBox="[-\d. ]+"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.S)
    body = body.replace("xlink:href=", "href=")
    used = dict.fromkeys(re.findall(r'(?:href="|url\()#([^")]+)', body))
    names = {name: f"{prefix}-{number}" for number, name in enumerate(used)}
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{names[m[1]]}"' if m[1] in names else "", body)
    body = re.sub(r'(href="|url\()#([^")]+)', lambda m: f"{m[1]}#{names[m[2]]}", body)
    for colour, paint in _PAINT.items():
        body = body.replace(colour, paint)
    body = re.sub(r"\n\s*", "\n", body)
    start = f'<svg {viewed[0] if viewed else ""} role="img" aria-label="{_markup(label)}">'
    return _Markup(f"{start}{body}</svg>")


def _picture(pixels: Array, alt: str, *, largest: int = 2000, **attributes: object) -> _Markup:
    """An image inside the page.

    Args:
        pixels: numbers between 0 and 1, (H, W) or (H, W, 3 or 4).
        alt: what it shows, in words.
        largest: the longest side that is not made smaller.
        attributes: the element's.
    """
    from PIL import Image  # type: ignore[import-not-found, unused-ignore]

    image = Image.fromarray(np.rint(255 * pixels).astype(np.uint8))
    image.thumbnail((largest, largest))
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    return _tag("img", src=source, alt=alt, **attributes)


# Confusion


def _confusion(confusion: Array | None, classes: Sequence[str], pictures: bool) -> _Markup | None:
    if confusion is None:
        return None
    counts = _as_array(confusion).clip(0)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        return _left_out("a confusion matrix is (K, K) numbers", confusion)
    total = counts.sum()
    if not total:
        return _tag("p", "No example has been counted.")
    names = [_class_name(classes, label) for label in range(len(counts))]
    right = np.trace(counts)
    said = f"{_number(right)} of {_number(total)} examples right ({right / total:.2%})."
    matrix = _Markup("")
    if len(counts) <= MOST_COUNTED_CLASSES:
        matrix = _counted(counts, names)
    elif len(counts) <= MOST_DRAWN_CLASSES and pictures:
        matrix = _heat_map(counts)
    tables = (matrix, _by_class(counts, names), _confused_pairs(counts, names))
    return _join([_tag("p", said), _tag("div", *tables, class_="columns")])


def _shares(counts: Array, axis: int) -> Array:
    """Counts divided by their sums along an axis; NaN where there are none."""
    sums = counts.sum(axis, keepdims=True)
    shares: Array = np.full(counts.shape, np.nan)
    np.divide(counts, sums, out=shares, where=sums > 0)
    return shares


def _strengths(shares: Array) -> Array:
    """How strongly shares are coloured, 0 to 1: so that rare mistakes are seen, too."""
    strengths: Array = np.sqrt(np.nan_to_num(shares))
    return strengths


def _counted(counts: Array, names: Sequence[str]) -> _Markup:
    """The counts as a table with coloured cells."""
    shares = _shares(counts, 1)
    strengths = _strengths(shares)
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, count in enumerate(counts[i]):
            if not count:
                cells.append(_tag("td"))
                continue
            kind = "right" if i == j else "wrong"
            style = f"--strength:{strengths[i, j]:.2f}"
            said = f"{name}, taken for {names[j]}: {shares[i, j]:.1%}"
            cells.append(_tag("td", _number(count), class_=kind, style=style, title=said))
        rows.append(_tag("tr", _tag("th", name, scope="row"), *cells))
    head = _tag(
        "thead",
        _tag("tr", _tag("th", "truth ↓ guess →"),
             *(_tag("th", _tag("span", name), scope="col") for name in names)),
    )  # fmt: skip
    table = _tag("table", head, _tag("tbody", *rows))
    broad = " broad" if len(counts) > 12 else ""
    return _tag("div", table, class_=f"wide confusion{broad}")


def _heat_map(counts: Array) -> _Markup:
    """The counts as a picture, a pixel or a square of pixels each."""
    pixels = np.zeros((*counts.shape, 4))
    pixels[..., :3] = np.array([213, 94, 0]) / 255
    pixels[np.eye(len(counts), dtype=bool), :3] = np.array([0, 114, 178]) / 255
    pixels[..., 3] = _strengths(_shares(counts, 1))
    factor = max(1, 600 // len(counts))
    pixels = pixels.repeat(factor, 0).repeat(factor, 1)
    picture = _picture(pixels, f"confusion matrix of {len(counts)} classes", class_="heat")
    said = "Truth downwards, guess to the right; blue is right, orange is wrong."
    return _tag("figure", picture, _tag("figcaption", said))


def _confused_pairs(counts: Array, names: Sequence[str]) -> _Markup:
    """Which classes are taken for which others most often."""
    wrong = counts * (1 - np.eye(len(counts)))
    shares = _shares(counts, 1)
    most = SHORT_TABLE if len(counts) > MOST_COUNTED_CLASSES else 10
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(place), len(counts)) for place in order]
    rows = [
        [names[i], names[j], _number(counts[i, j]), _share_cell(shares[i, j])]
        for i, j in pairs
        if wrong[i, j]
    ]
    title = _tag("h3", "Most often confused")
    if not rows:
        return _tag("div", title, _tag("p", "None."))
    return _tag("div", title, _table(["truth", "guess", "examples", "share of truth"], rows))


def _by_class(counts: Array, names: Sequence[str]) -> _Markup:
    """Recall and precision of each class, the hardest first."""
    recall = np.diagonal(_shares(counts, 1))
    precision = np.diagonal(_shares(counts, 0))
    order = np.argsort(np.where(np.isnan(recall), np.inf, recall), kind="stable")
    totals = counts.sum(1)
    rows = [
        [names[k], _number(totals[k]), _share_cell(recall[k]), _share_cell(precision[k])]
        for k in order
    ]
    head = ["class", "examples", "recall", "precision"]
    first, rest = rows, []
    if len(counts) > MOST_COUNTED_CLASSES:
        first, rest = rows[:SHORT_TABLE], rows[SHORT_TABLE:]
    parts = [_tag("h3", "By class, the hardest first"), _table(head, first)]
    if rest:
        parts.append(_folded(f"The other {len(rest):,} classes", _table(head, rest)))
    said = "Recall: of a class's examples, how many were found. Precision: of what was taken for "
    parts.append(_tag("p", said + "the class, how much was.", class_="small"))
    return _tag("div", *parts)


# Filters and mistakes


def _filters(filters: Array | None) -> _Markup | None:
    """The first layer's kernels side by side."""
    if filters is None:
        return None
    kernels = _as_array(filters)
    if kernels.ndim != 4 or not kernels.size:
        return _left_out("kernels are (height, width, channels, filters)", filters)
    height, width, channels, count = kernels.shape
    tiles = kernels.transpose(3, 0, 1, 2)
    said = f"{count:,} kernel{'s' if count > 1 else ''} of {height} × {width} pixels"
    if channels not in (1, 3):  # no colours: a picture for each channel
        tiles = tiles.transpose(0, 3, 1, 2).reshape(-1, height, width, 1)
        said += f" and {channels} channels, each channel a picture"
    if len(tiles) > MOST_FILTERS:
        tiles = tiles[:MOST_FILTERS]
        said += f"; the first {MOST_FILTERS} pictures"
    largest = np.abs(tiles).max((1, 2, 3), keepdims=True)
    tiles = 0.5 + 0.5 * tiles / np.where(largest > 0, largest, 1)
    said += ". Middle grey is 0; each kernel is scaled by its own largest weight."
    factor = max(1, round((40 if len(tiles) > 16 else 72) / max(height, width)))
    sheet = _sheet(tiles.repeat(factor, 1).repeat(factor, 2), gap=4)
    picture = _picture(sheet, "the first layer's kernels", class_="crisp")
    return _tag("figure", picture, _tag("figcaption", said))


def _sheet(tiles: Array, gap: int) -> Array:
    """Tiles (n, H, W, 1 or 3) in rows on a transparent sheet, (H', W', 4)."""
    count, height, width, _ = tiles.shape
    columns = min(count, max(8, math.ceil(math.sqrt(2 * count))))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, 4), np.float32)
    for place, tile in enumerate(tiles):
        top, left = (height + gap) * (place // columns), (width + gap) * (place % columns)
        sheet[top : top + height, left : left + width, :3] = tile
        sheet[top : top + height, left : left + width, 3] = 1
    return sheet


def _mistakes(
    mistakes: Sequence[Mistake], classes: Sequence[str], pictures: bool
) -> _Markup | None:
    """The images that the model got most wrong."""
    if not len(mistakes):
        return None
    cards = []
    for mistake in mistakes[:MOST_MISTAKES]:
        guess = _class_name(classes, mistake.guess)
        truth = _class_name(classes, mistake.truth)
        lines = (
            _belief("guess", guess, mistake.probability),
            _belief("truth", truth, mistake.truth_probability),
        )
        alt = f"{truth}, taken for {guess}"
        image = _image(mistake.image, alt) if pictures else ""
        cards.append(_tag("figure", image, _tag("figcaption", *lines)))
    parts = [_tag("div", *cards, class_="mistakes")]
    if len(mistakes) > MOST_MISTAKES:
        parts.append(_tag("p", f"The first {MOST_MISTAKES} of {len(mistakes):,}."))
    return _join(parts)


def _belief(role: str, name: str, probability: float) -> _Markup:
    """How probable the model found a class."""
    known = math.isfinite(probability)
    share = f"{100 * min(max(probability, 0), 1):.1f}%" if known else "0%"
    return _tag(
        "div",
        _tag("i", role), _tag("b", name), _tag("span", f"{probability:.1%}" if known else "–"),
        class_=f"bar {role}", style=f"--share:{share}",
    )  # fmt: skip


def _image(image: Array, alt: str) -> _Markup:
    """A picture of an example; large ones are made smaller."""
    pixels = _as_array(image).clip(0, 1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not pixels.size or pixels.shape[-1] not in (1, 3):
        return _left_out("an image is (height, width, 1 or 3)", image)
    pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    small = max(pixels.shape[:2]) <= LARGEST_IMAGE
    return _picture(pixels, alt, largest=LARGEST_IMAGE, class_="crisp" if small else None)


# How it was made


def _making(report: Report) -> _Markup | None:
    """All that is needed to understand the run, and to run it again."""
    parts = []
    if report.command:
        parts += [_tag("h3", "Command"), _tag("pre", str(report.command), class_="command")]
    tables = {
        "Configuration": [[name, value] for name, value in _flat(report.configuration)],
        "Timing": _timing(report.history),
        "Versions": [[str(name), str(value)] for name, value in report.versions.items()],
    }
    shown = [
        _tag("div", _tag("h3", title), _table([], rows)) for title, rows in tables.items() if rows
    ]
    if shown:
        parts.append(_tag("div", *shown, class_="columns"))
    if report.model_summary:
        parts += [_tag("h3", "Model"), _tag("pre", str(report.model_summary))]
    return _join(parts) if parts else None


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (path, text)."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}.")
        else:
            text = str(value) if value is not None and not isinstance(value, Mapping) else "none"
            yield path, text if len(text) <= 1000 else text[:1000] + " ..."


def _timing(history: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """How long training took, in all and by epoch and step."""
    last: Mapping[str, float] = history[-1] if history else {}
    seconds = _as_number(last.get("seconds"))
    if not 0 < seconds < math.inf:
        return []
    rows = [["in all", _duration(seconds)]]
    for key in ("epoch", "step"):
        count = _as_number(last.get(key))
        if 0 < count < math.inf:
            rows += [
                [f"{key}s", _number(count)],
                [f"time for each {key}", _duration(seconds / count)],
            ]
    return rows


# The page

STYLE_SHEET = Path(__file__).with_suffix(".css")
_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
