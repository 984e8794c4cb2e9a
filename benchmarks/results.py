"""What was measured: the file that keeps it, and the tables and the picture made of it.

`benchmark.json` holds, for each workload and each number of threads, all of its last run; nothing
but a run of the same workload on as many threads replaces it. The last run of the loaders stands
beside them. The tables of `performance.md` and the picture are made of that file alone.
"""

from __future__ import annotations

import io
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workloads import INFERENCE, INFERENCE_PEERS, MAIN, MORE, PEERS, Workload

RAW, PAGE, PICTURE = "benchmark.json", "performance.md", "pictures/benchmark.svg"
#: The marked places of the page, and the workloads of each.
SECTIONS = {"main": MAIN, "more": MORE, "inference": INFERENCE}
#: The frameworks in the order of their columns.
COLUMNS = tuple(dict.fromkeys((*PEERS, *INFERENCE_PEERS)))

#: Where in the file the loaders' run is, and in the page their tables.
LOADING = "loading"

#: Between turns of one side: more says that other programs were running.
LOUD = 1.3

#: What one run of a workload found: see `training.measure`.
Run = dict[str, Any]
#: By the workload's name and by the number of threads, which is text as in every JSON.
Runs = dict[str, dict[str, Run]]

# --- The file ------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it finds the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(docs: Path) -> Runs:
    """All runs that are kept; none if there is no file."""
    path = docs / RAW
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record(docs: Path, name: str, threads: int, run: Run) -> None:
    """Keep a run in place of the workload's last one on as many threads, and draw all anew."""
    runs = load(docs)
    runs.setdefault(name, {})[str(threads)] = run
    write(docs / RAW, (json.dumps(runs, indent=1) + "\n").encode())
    redraw(docs)


def record_loading(docs: Path, run: Run) -> None:
    """Keep a run of `loading.py` in place of the last one, and draw all anew."""
    runs: dict[str, Any] = load(docs)
    runs[LOADING] = run
    write(docs / RAW, (json.dumps(runs, indent=1) + "\n").encode())
    redraw(docs)


def redraw(docs: Path) -> None:
    """The tables and the picture, of the runs that are kept.

    Raises:
        ValueError: the page lacks a marker.
    """
    runs, page = load(docs), docs / PAGE
    text = page.read_text(encoding="utf-8")
    for section, workloads in SECTIONS.items():
        if any(workload.name in runs for workload in workloads):
            text = placed(text, section, "\n\n".join(tables(runs, workloads)))
    if LOADING in runs:
        text = placed(text, LOADING, "\n\n".join(loading_tables(runs[LOADING])))
    write(page, text.encode())
    if any(workload.name in runs for workload in MAIN):
        write(docs / PICTURE, picture(runs, MAIN))


def placed(text: str, section: str, content: str) -> str:
    """A page with new content between the two markers of a section."""
    first, last = f"<!-- benchmark: {section} -->\n", f"<!-- end of benchmark: {section} -->"
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"{PAGE} wants one line {first.strip()!r} and one {last!r}")
    before, rest = text.split(first)
    return f"{before}{first}{content}\n{last}{rest.split(last)[1]}"


# --- Tables --------------------------------------------------------------------------------------


def rows_of(runs: Runs, workloads: Iterable[Workload]) -> list[tuple[Workload, str, Run]]:
    """(workload, threads, run) for all that was measured."""
    return [
        (workload, threads, run)
        for workload in workloads
        for threads, run in sorted(runs.get(workload.name, {}).items(), key=lambda x: int(x[0]))
    ]


def tables(runs: Runs, workloads: Iterable[Workload]) -> list[str]:
    """In Markdown: how long steps take, what it costs to start, and where and when that was."""
    rows = rows_of(runs, workloads)
    peers = [name for name in COLUMNS if any(name in run["sides"] for _, _, run in rows)]
    is_inference = all(not workload.trains for workload, *_ in rows)
    rates = ["images/s" if is_inference else "GFLOP/s", "of the peak"]
    steps = [["workload", "threads", "Palto", *rates, *peers, "fastest peer"]]
    starts = [["workload", "threads", "Palto", *peers]]
    for workload, threads, run in rows:
        sides = run["sides"]
        ours = sides["Palto"]["median"]
        rate = run["flops"] / ours / 1e9
        times = {name: sides[name]["median"] / ours for name in peers if name in sides}
        best = min(times, key=lambda name: times[name], default=None)
        first = threads == min(runs[workload.name], key=int)
        begin = [workload.title if first else "", threads]
        steps.append([
            *begin, duration(ours),
            f"{workload.examples / ours:,.0f}" if is_inference else f"{rate:.3g}",
            f"{100 * rate / run['peak']:.0f} %",
            *(f"{duration(sides[x]['median'])}, {times[x]:.2f}x" if x in times else "-"
              for x in peers),
            f"{times[best]:.2f}x ({best})" if best else "-",
        ])  # fmt: skip
        starts.append([*begin, *(_start(sides.get(x)) for x in ("Palto", *peers))])
    return [markdown(steps), markdown(starts), provenance(rows)]


def _start(side: dict[str, Any] | None) -> str:
    """What it costs to start a side, and its way."""
    if side is None:
        return "-"
    parts = [f"{side['memory']:.0f} MB"]
    if "warm" in side:
        parts.insert(0, f"{side['compile']:.2f} s, {side['warm']:.2f} s")
    elif "compile" in side:
        parts.insert(0, f"{side['compile']:.2f} s")
    way = side.get("way", "compile")
    return ", ".join(parts) + ("" if way == "compile" else f" ({way})")


def markdown(rows: list[list[str]]) -> str:
    """A table, the headings first."""
    lines = [f"| {' | '.join(line)} |" for line in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def duration(seconds: float) -> str:
    """Three digits of milliseconds."""
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"


def provenance(rows: list[tuple[Workload, str, Run]]) -> str:
    """When and where each row was measured, with which versions, and who is missing."""
    found: dict[str, list[str]] = {}
    absent: dict[str, list[str]] = {}
    restless: list[str] = []
    for workload, threads, run in rows:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        found.setdefault(f"{run['date']}, {run['machine']}; {versions}", []).append(workload.title)
        for way, reason in run["left_out"].items():
            absent.setdefault(reason, []).append(f"{way} of {workload.name} on {threads}")
        medians = run["sides"]["Palto"].get("medians of turns", [1.0])
        if max(medians) > LOUD * min(medians):
            restless.append(f"{workload.name} on {threads} ({max(medians) / min(medians):.1f}x)")
    lines = []
    for where, titles in found.items():
        which = "" if len(found) == 1 else f" ({'; '.join(dict.fromkeys(titles))})"
        lines.append(f"Measured on {where}{which}.")
    for reason, ways in absent.items():
        lines.append(f"Left out ({reason}): {'; '.join(ways)}.")
    if restless:
        lines.append(f"The machine was not quiet: Palto's turns differ in {', '.join(restless)}.")
    return "\n".join(lines)


def loading_tables(run: Run) -> list[str]:
    """In Markdown: the loaders' epochs, their lives, what loading adds; where and when that was."""
    epochs = [["batches of 64", "Palto", "PyTorch", "PyTorch / Palto"]]
    for row in run["epochs"]:
        ours, theirs = row["sides"]["Palto"], row["sides"]["PyTorch"]
        epochs.append([
            row["title"],
            *(f"{short(side['seconds'])}, {side['workers']} workers" for side in (ours, theirs)),
            f"{theirs['seconds'] / ours['seconds']:.1f}",
        ])  # fmt: skip
    lives = [["a loader of", "", "workers", "first batch", "memory", "gone after break",
              "gone after Ctrl-C", "lines on the terminal"]]  # fmt: skip
    before = None
    for row in run["lives"]:
        lives.append([
            row["title"] if row["title"] != before else "", row["side"], str(row["workers"]),
            short(row["first"]), f"{row['memory']:.0f} MB",
            short(row["gone"]) + (f", {row['left']} left" if row["left"] else ""),
            short(row["interrupted"]) + (f", {row['stayed']} left" if row["stayed"] else ""),
            str(row["noise"]),
        ])  # fmt: skip
        before = row["title"]
    steps = [["fully connected step, 1 thread", "on one batch", "on loaded batches",
              "of it waiting for the loader"]]  # fmt: skip
    for name, times in run["steps"].items():
        waited = times.get("waiting")
        waiting = "" if waited is None else f"{short(waited)}, {waited / times['loaded']:.1%}"
        steps.append([name, short(times["on one batch"]), short(times["loaded"]), waiting])
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    found = [markdown(table) for table in (epochs, lives, steps) if len(table) > 1]
    lines = [f"Measured on {run['date']}, {run['machine']}; {versions}."]
    restless = []
    for row in run["epochs"]:
        ours = row["sides"]["Palto"]
        turns = ours.get("turns", {}).get(str(ours["workers"]), [1.0])
        if max(turns) > LOUD * min(turns):
            restless.append(f"{row['title']} ({max(turns) / min(turns):.1f}x)")
    if restless:
        lines.append(f"The machine was not quiet: Palto's turns differ in {'; '.join(restless)}.")
    return [*found, "\n".join(lines)]


def short(seconds: float) -> str:
    """A time in the unit that suits it."""
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


# --- The picture ---------------------------------------------------------------------------------

#: Bars that are longer are broken off.
LONGEST = 4.0
_OURS, _THEIRS, _TEXT = ("#9ec5e8", "#1f6fb4"), ("#d3d3d3", "#8a8a8a"), "#333333"


def picture(runs: Runs, workloads: Iterable[Workload]) -> bytes:
    """Bars of what a step takes, a panel for each workload, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    shown = [workload for workload in workloads if workload.name in runs]
    settings = {"svg.fonttype": "none", "svg.hashsalt": "palto", "font.size": 9.0}
    with matplotlib.rc_context(settings):
        height = -(-len(shown) // 2)
        figure, panels = pyplot.subplots(
            height, 2, figsize=(9, 0.9 + 2.5 * height), squeeze=False, layout="constrained"
        )
        for panel in panels.flat[len(shown) :]:
            panel.remove()
        counts = sorted({int(x) for workload in shown for x in runs[workload.name]})[:2]
        for panel, workload in zip(panels.flat, shown, strict=False):
            _bars(panel, workload, runs[workload.name], counts)
        figure.suptitle("One training step: shorter is faster", fontsize=13, color=_TEXT)
        figure.legend(
            handles=[
                Patch(color=color, label=f"{who}, {count} thread{'s' * (count != 1)}")
                for who, colors in (("Palto", _OURS), ("others", _THEIRS))
                for count, color in zip(counts, colors, strict=False)
            ],
            loc="outside lower center", ncols=4, frameon=False,
        )  # fmt: skip
        file = io.BytesIO()
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
        pyplot.close(figure)
    return file.getvalue()


def _bars(panel: Any, workload: Workload, runs: dict[str, Run], counts: list[int]) -> None:
    """One workload: a group for each framework, a bar for each number of threads."""
    measured = {count: runs[str(count)]["sides"] for count in counts if str(count) in runs}
    names = [x for x in ("Palto", *PEERS) if any(x in sides for sides in measured.values())]
    limit = LONGEST * max(sides["Palto"]["median"] for sides in measured.values())
    thickness = 0.8 / len(counts)
    for place, name in enumerate(names):
        for number, count in enumerate(counts):
            seconds = measured.get(count, {}).get(name, {}).get("median")
            if seconds is None:
                continue
            y = place + (number - (len(counts) - 1) / 2) * thickness
            color = (_OURS if name == "Palto" else _THEIRS)[number]
            panel.barh(y, min(seconds, limit), 0.9 * thickness, color=color)
            mark = " … " if seconds > limit else " "
            panel.text(
                min(seconds, limit), y, mark + duration(seconds), va="center", color=_TEXT,
                fontsize=8,
            )  # fmt: skip
    panel.set_yticks(range(len(names)), names)
    panel.get_yticklabels()[0].set_fontweight("bold")
    panel.set_xlim(0, 1.2 * min(limit, max(bar.get_width() for bar in panel.patches)))
    panel.set_xticks([])
    panel.invert_yaxis()
    panel.tick_params(length=0, colors=_TEXT)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
    panel.set_title(workload.title, fontsize=9.5, loc="left", color=_TEXT)
