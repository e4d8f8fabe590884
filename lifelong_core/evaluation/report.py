"""A recorded table as something to read: Markdown, PNG, and a page with all pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..charts import Point, curves, heatmap
from ..errors import FileError
from ..files import atomic_write
from ..sharing.preview import write_png
from .forgetting import Matrix
from .table import precision_of, read_table
from .values import Result, matrix
from .ways import BETWEEN, NOTES

COLUMNS = {
    "ia": ("IA ×100 ↑", 100.0),
    "ta": ("TA ×100 ↑", 100.0),
    "tfr_ia": ("TFR-IA ×100 ↓", 100.0),
    "tfr_ta": ("TFR-TA ×100 ↓", 100.0),
    "a_mmd": ("A_MMD ×10³ ↓", 1e3),
    "f_mmd": ("F_MMD ×10³ ↓", 1e3),
    "bwt_mmd": ("BwT_MMD ×10³ ↑", 1e3),
    "kid": ("KID ×10⁵ ↓", 1e5),
    "i2i": ("CLIP I2I ×100 ↑", 100.0),
    "kept_gain": ("kept gain ↑", 1.0),
    "base_drift": ("base drift, KID ×10⁵ ↓", 1e5),
    "trained_percent": ("trained, % of the UNet", 1.0),
    "stored_percent": ("stored, % of the UNet", 1.0),
    "seconds": ("seconds per lesson", 1.0),
}
CURVES = {"ia": "IA of all known concepts", "mmd": "A_MMD", "kid": "KID"}


def write_report(table: Path, folder: Path) -> list[Path]:
    """Write `report.md`, `index.html` and their plots to `folder`; returns all files.

    The page also shows the sheets `<method>-s<seed>.jpg` that are in the folder. Raises FileError
    when the table cannot be read or the folder not be written.
    """
    record = read_table(table)
    summary, runs = record["summary"], record["runs"]
    if not runs:
        raise FileError(f"{table.name} holds no runs.")
    plots = _write_plots(summary["extractor"], runs, folder)
    title = f"{runs[0]['stream']}: {len(runs)} runs, seeds {', '.join(map(str, summary['seeds']))}"
    sheets = [
        path
        for run in runs
        if (path := folder / sheet_name(run["method"], run["stream_seed"])).exists()
    ]
    markdown = _markdown(title, record, [path.name for path in plots])
    page = _page(title, record, [path.name for path in plots], [path.name for path in sheets])
    return [
        _write_text(folder / "report.md", markdown),
        _write_text(folder / "index.html", page),
        *plots,
    ]


def sheet_name(method: str, seed: int) -> str:
    """The file name of a run's sheet of pictures."""
    return f"{method}-s{seed}.jpg"


def mean_matrix(runs: Sequence[Result], extractor: str, name: str) -> Matrix:
    """R[i, j] as its mean over runs, where any run has it."""
    cells: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        for place, value in matrix(run, extractor, name).items():
            cells.setdefault(place, []).append(value)
    return {place: sum(found) / len(found) for place, found in cells.items()}


def curve(cells: Matrix) -> list[Point]:
    """(i, mean over j of R[i, j]); rows of long streams that hold only the newest concept say
    nothing about those before and are left out."""
    rows: dict[int, list[float]] = {}
    for (after, _), value in sorted(cells.items()):
        rows.setdefault(after, []).append(value)
    whole = {after: row for after, row in rows.items() if after == 1 or len(row) > 1}
    return [(after, sum(row) / len(row)) for after, row in whole.items()]


def matrix_plot(title: str, cells: Matrix) -> Image.Image:
    """R[i, j]: a row per lesson that was measured, a column per concept; dark is high."""
    rows = {after: f"after {after}" for after in sorted({after for after, _ in cells})}
    columns = {concept: str(concept) for concept in sorted({concept for _, concept in cells})}
    span = (min(cells.values(), default=0.0), max(cells.values(), default=1.0))
    return heatmap(title, rows, columns, cells, span=span, form=".3f")


def _write_plots(extractor: str, runs: Sequence[Result], folder: Path) -> list[Path]:
    methods = list(dict.fromkeys(run["method"] for run in runs))
    of = {method: [run for run in runs if run["method"] == method] for method in methods}
    most = max(map(len, of.values()))
    written = []
    for name, title in CURVES.items():
        # Means over other streams would lie higher or lower for the streams' sake.
        lines = {
            m: curve(mean_matrix(of[m], extractor, name)) for m in methods if len(of[m]) == most
        }
        image = curves(f"{title}, mean over concepts and seeds", "after lesson", lines)
        written.append(write_png(image, folder / f"curve-{name}.png"))
    for method in methods:
        image = matrix_plot(f"IA, {method}", mean_matrix(of[method], extractor, "ia"))
        written.append(write_png(image, folder / f"matrix-{method}.png"))
    return written


def _cells(record: Mapping[str, Any]) -> list[list[str]]:
    """The table's rows as texts: method, number of streams, metrics."""
    streams = Counter(run["method"] for run in record["runs"])
    return [
        [
            method,
            str(streams[method]),
            *(_cell(values[key], factor) for key, (_, factor) in COLUMNS.items()),
        ]
        for method, values in record["summary"]["methods"].items()
    ]


def _cell(value: Sequence[float] | None, factor: float) -> str:
    if value is None:
        return "–"
    mean, low, high = (_digits(factor * number) for number in value)
    return mean if low == high else f"{mean} [{low}, {high}]"


def _digits(number: float) -> str:
    """Three significant digits, never an exponent before the point."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def _heads() -> list[str]:
    return ["method", "streams", *(title for title, _ in COLUMNS.values())]


def _about(record: Mapping[str, Any]) -> list[str]:
    """Sentences that hold for the whole table."""
    summary = record["summary"]
    lines = [
        f"Features: {summary['extractor']}. Weights of the base model: {summary['weights']}.",
        "Mean over seeds and concepts, with the 95 % interval of a bootstrap over both.",
    ]
    best = summary["best_single_adapter"]
    if best:
        lines.append(f"Best single adapter: {best['name']}, kept gain {best['kept_gain'][0]:.3f}.")
    if len(set(Counter(run["method"] for run in record["runs"]).values())) > 1:
        lines.append("Streams differ: compare the means of methods with the same ones.")
    lines += _precisions(record["runs"])
    machines = Counter(filter(None, map(_machine, record["runs"])))
    if len(machines) > 1:
        told = ", ".join(f"{name} ({count} of the runs)" for name, count in machines.items())
        lines.append(f"Seconds are those of different machines, other work beside: {told}.")
    notes = {name: NOTES.get(BETWEEN.split(name)[0]) for name in summary["methods"]}
    return [*lines, *(f"{name}: {note}." for name, note in notes.items() if note)]


def _precisions(runs: Sequence[Result]) -> list[str]:
    """A sentence on which methods have which number format; none where all have one."""
    methods: dict[str, dict[str, None]] = {}
    for run in runs:
        methods.setdefault(precision_of(run), {})[run["method"]] = None
    (usual, _), *others = sorted(methods.items(), key=lambda item: -len(item[1]))
    told = (f"{precision} in {', '.join(names)}" for precision, names in others)
    return [f"Lessons and pictures are in {usual}, but {'; '.join(told)}."] if others else []


def _machine(run: Result) -> str | None:
    hardware = run.get("hardware", {})
    found: str | None = hardware.get("gpu") or hardware.get("processor")
    return found


def _orderings(summary: Mapping[str, Any]) -> list[list[str]]:
    return [
        [text, "yes" if found["holds"] else "no", found["against"], _cell(found["difference"], 1.0)]
        for text, found in summary["orderings"].items()
    ]


ORDERING_HEADS = ["statement", "holds", "against", "difference"]


def _markdown(title: str, record: Mapping[str, Any], plots: Sequence[str]) -> str:
    summary = record["summary"]
    parts = [f"# {title}", *_about(record), _markdown_table(_heads(), _cells(record))]
    if summary["orderings"]:
        parts += ["## Orderings", _markdown_table(ORDERING_HEADS, _orderings(summary))]
    parts += [f"![{name}]({name})" for name in plots]
    parts.append(f"Made with `{record['command']}`.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


STYLE = (
    "body{font:15px sans-serif;margin:2em;color:#32323c}table{border-collapse:collapse}"
    "td,th{border:1px solid #ddd;padding:4px 8px;text-align:left}img{max-width:100%}"
)


def _page(
    title: str, record: Mapping[str, Any], plots: Sequence[str], sheets: Sequence[str]
) -> str:
    summary = record["summary"]
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in _about(record)]
    parts.append(_html_table(_heads(), _cells(record)))
    if summary["orderings"]:
        parts += ["<h2>Orderings</h2>", _html_table(ORDERING_HEADS, _orderings(summary))]
    parts += [f'<p><img src="{escape(name)}" alt="{escape(name)}"></p>' for name in plots]
    if sheets:
        parts.append("<h2>Pictures</h2><p>Photos, after the own lesson, after the last.</p>")
    for name in sheets:
        parts.append(f'<h3>{escape(name)}</h3><img src="{escape(name)}" alt="{escape(name)}">')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], kind: str) -> str:
        return f"<tr>{''.join(f'<{kind}>{escape(cell)}</{kind}>' for cell in cells)}</tr>"

    return f"<table>{line(heads, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _write_text(path: Path, text: str) -> Path:
    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return atomic_write(path, write)
