"""One self-contained HTML page from run folders: it opens offline, asks for nothing, and trusts no text in it."""

import base64
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from keel import __version__
from keel.errors import RunError
from keel.report import (
    audit,
    axis,
    bench,
    charts,
    comparison,
    contest,
    evaluation,
    exams,
    groups,
    learned,
    probes,
    samples,
    solutions,
    tables,
)
from keel.report.folder import Demo, RunFolder, find
from keel.report.glossary import recipe_title
from keel.report.headline import Headline, between, headline, stages
from keel.report.series import Collected, collect
from keel.report.words import clean

__all__ = ["build"]

HERE = Path(__file__).parent
N_COLORS = 7
STYLES = ("page.css", "audit.css", "probes.css", "exams.css", "bench.css", "groups.css", "solutions.css", "axis.css")
SCRIPTS = ("charts.js", "panels.js", "samples.js", "page.js", "axis.js")


def build(runs: list[Path], out: Path) -> Path:
    """Read the run folders (a demo folder stands for its stages) and write the report.

    Args:
        runs: one folder, or several to be laid side by side.
        out: the HTML file; written beside and renamed, so that no half page is ever seen.
    Returns:
        The path written.
    Raises:
        RunError: a folder is missing or holds no run, or the page cannot be written.
    """
    folders, demos = find([Path(run) for run in runs])
    collected = [collect(folder) for folder in folders]
    told = [headline(folder, series) for folder, series in zip(folders, collected, strict=True)]
    sections, groups_found = charts.sections(folders, collected), groups.grouped(folders, collected)
    data = {
        "runs": [{"name": clean(f.name), "color": i % N_COLORS, "dash": i // N_COLORS} for i, f in enumerate(folders)],
        "sections": [*sections, *(found.course for found in groups_found)],
        "samples": samples.browser(folders),
        "spaces": axis.cubes(folders),
    }
    words = {
        "title": _title(folders, demos, told),
        "runs": [_run(i, folder, words) for i, (folder, words) in enumerate(zip(folders, told, strict=True))],
        "demos": [_demo(demo) for demo in demos],
        "intervals_of": [] if demos else _intervals(folders),
        "contests": contest.bars(folders),
        "audits": audit.audits(folders),
        "panels": probes.panels(folders),
        "examined": exams.examined(folders),
        "beside": exams.beside(folders),
        "compared": comparison.compared(folders),
        "evaluated": evaluation.evaluated(folders),
        "learned": learned.learned(folders),
        "grouped": groups_found,
        "groups_beside": groups.beside(folders),
        "stepwise": solutions.panels(folders),
        "axes": axis.panels(folders),
        "boards": bench.boards(folders),
        "benched": bench.benched(folders),
        "recipes": [_tables(section, folders, collected) for section in sections],
        "has_samples": data["samples"] is not None,
    }
    return _write(Path(out), _render(words, embedded(data)))


def embedded(data: Any) -> str:
    """JSON that cannot end its script tag: ASCII only, with <, > and & escaped; strict, so NaN is a bug here."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _render(words: dict[str, Any], data: str) -> str:
    import jinja2
    from markupsafe import Markup

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    style = "\n".join((HERE / name).read_text(encoding="utf-8") for name in STYLES)
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    own = {key: Markup(text) for key, text in (("style", style), ("script", script), ("data", data))}
    return env.get_template("page.html.j2").render(
        words,
        **own,
        policy=Markup(_policy(style, script)),
        version=__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _policy(style: str, script: str) -> str:
    """A content security policy: this style and this script by their digests, nothing else, no request to anywhere."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    allowed = f"style-src {digest(style)}; script-src {digest(script)}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _title(folders: list[RunFolder], demos: list[Demo], told: list[Headline]) -> str:
    for demo in demos:
        if sentence := stages(demo.gold):
            return sentence
    if len(folders) == 1:
        return told[0].title
    if sentence := bench.leading(folders):
        return sentence
    metrics = {tables.headline_metric(folder) for folder in folders}
    if len({folder.recipe for folder in folders}) == 1 and len(metrics) == 1:
        metric, higher = metrics.pop()
        after = [(f.name, row) for f in folders for side, row, _ in tables.interval_rows(f, 0) if side == "after"]
        if sentence := between(after, metric, higher):
            return sentence
    return f"{len(folders)} runs side by side."


def _run(index: int, folder: RunFolder, words: Headline) -> dict[str, Any]:
    return {
        "name": folder.name,
        "color": index % N_COLORS,
        "recipe": recipe_title(folder.recipe),
        "words": words,
        "facts": tables.facts(folder),
        "command": str(folder.environment.get("command") or ""),
        "config": tomli_w.dumps(folder.config) if folder.config else "",
    }


def _demo(demo: Demo) -> dict[str, Any]:
    names, rows = tables.domains(demo)
    return {
        "metric": "gold score",
        "rows": tables.placed([(str(row.get("stage")), row, 0) for row in demo.gold]),
        "stages": names,
        "domains": rows,
    }


def _intervals(folders: list[RunFolder]) -> list[dict[str, Any]]:
    """One interval chart per headline metric; runs of one metric share a scale."""
    by_metric: dict[str, list[Any]] = {}
    for i, folder in enumerate(folders):
        rows = [] if contest.judges(folder) else tables.interval_rows(folder, i % N_COLORS)
        named = [(f"{folder.name}, {side}" if len(folders) > 1 else side, row, color) for side, row, color in rows]
        by_metric.setdefault(tables.headline_metric(folder)[0], []).extend(named)
    return [{"metric": metric, "rows": tables.placed(rows)} for metric, rows in by_metric.items() if len(rows) > 1]


def _tables(section: dict[str, Any], folders: list[RunFolder], collected: list[Collected]) -> dict[str, Any]:
    """What a section shows without scripts: final numbers, and what differs between its runs."""
    inside = [folders[i] for i in section["members"]]
    series = [collected[i] for i in section["members"]]
    return {
        "id": section["id"],
        "title": section["title"],
        "names": [folder.name for folder in inside],
        "has_charts": bool(section["groups"]),
        "numbers": tables.headline_row(inside) + tables.final_numbers(series, charts.addresses(series)),
        "differences": tables.differences(inside) if len(inside) > 1 else [],
    }


def _write(out: Path, page: str) -> Path:
    if out.is_dir():
        raise RunError("this is a folder, not a file", where=str(out), remedy=f"Name a file: --out {out}/report.html")
    beside = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(page, encoding="utf-8", newline="\n")
        beside.replace(out)
    except OSError as error:
        if beside.is_file():
            beside.unlink()
        remedy = "Choose another file with --out, or free some space."
        raise RunError(f"cannot write the report: {error.strerror}", where=str(out), remedy=remedy) from error
    return out
