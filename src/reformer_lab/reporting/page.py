"""The report: one self-contained HTML page and its Markdown twin, drawn from result files alone.

`report/index.html` needs nothing beside it. `report/REPRODUCTION.md` shows the same with its figures as files in
`report/figures/`. The same result files give the same bytes. Whatever comes out of a file is escaped.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reformer_lab.errors import UserError
from reformer_lab.experiments.claim import (
    NOT_UNDERSTOOD,
    SCALE_NOTES,
    Experiment,
    ExperimentResults,
    check_scale,
    not_understood,
)
from reformer_lab.files import write_text
from reformer_lab.reporting.figures import DARK, LIGHT, css_variables, inline_svg, standalone_svg
from reformer_lab.reporting.records import MissingResult, Record, Suite
from reformer_lab.reporting.section import Cell, Figure, Section, Table
from reformer_lab.reporting.text import duration_text, flat, markdown_code, markdown_text, number_text, slug
from reformer_lab.reporting.verdicts import ClaimRow, rerun_command, suite_results, tally, verdict_rows

_MARKS = {"supported": "✓", "contradicted": "✗", "inconclusive": "~", "not run": "–"}


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One arm of an experiment in the table of runs."""

    name: str
    seed: int
    state: str
    time: str
    id: str


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure with its name and its two drawings."""

    figure: Figure
    name: str
    inline: str
    standalone: str


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One experiment in the report."""

    experiment: Experiment
    cuts: str
    command: str
    rows: tuple[ClaimRow, ...]
    anchor: str
    section: Section
    drawings: tuple[Drawing, ...]
    runs: tuple[RunRow, ...]
    unfinished: tuple[RunRow, ...]
    time: str


def write_report(folder: Path, suite: Suite, experiments: Sequence[Experiment], records: Mapping[str, Record]) -> Path:
    """Write `<folder>/report/index.html`, `REPRODUCTION.md` and `figures/*.svg` beside it; return the page's path.

    Results may be missing, failed or damaged: the report says so. Raises UserError when the folder cannot be written.
    """
    context = _context(suite, experiments, records)
    target = folder / "report"
    try:
        for chapter in context["chapters"]:
            for drawing in chapter.drawings:
                write_text(target / "figures" / f"{drawing.name}.svg", drawing.standalone)
        write_text(target / "REPRODUCTION.md", render("report.md.jinja", context))
        write_text(target / "index.html", render("report.html.jinja", context))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); give another --output") from error
    return target / "index.html"


def started_text(suite: Suite) -> str:
    """Return when the suite was started first: "2026-01-31 12:00", in UTC; "" when it is not known."""
    return suite.started.replace("T", " ").removesuffix("+00:00")[:16]


def _context(suite: Suite, experiments: Sequence[Experiment], records: Mapping[str, Record]) -> dict[str, Any]:
    """Return everything that the templates show."""
    results = suite_results(experiments, suite, records)
    rows = verdict_rows(experiments, results)
    chapters = [_chapter(one, suite, results[one.name], rows) for one in experiments if suite.arms.get(one.name)]
    arms = {arm.id: arm for entries in suite.arms.values() for arm in entries}
    finished = [records[arm] for arm in arms if arm in records and records[arm].finished]
    known = {one.name for one in experiments}
    problems = [problem for record in records.values() for problem in record.problems]
    problems += [f"experiment {name}: not known to this version" for name in suite.arms if name not in known]
    environments = _environments(suite, finished)
    return {
        "suite": suite,
        "scale_note": SCALE_NOTES.get(suite.scale, ""),
        "started": started_text(suite),
        "machine": machine_text(suite, finished),
        "rows": rows,
        "tally": tally(rows),
        "chapters": chapters,
        "without_runs": [one.title for one in experiments if suite.arms.get(one.name) == ()],
        "arms": len(arms),
        "finished": len(finished),
        "failed": sum(1 for arm in arms if arm in records and not records[arm].finished),
        "compute": duration_text(sum(record.seconds or 0.0 for record in finished)),
        "problems": problems,
        "environments": [(name, flat(dict(values))) for name, values in environments],
    }


def _chapter(experiment: Experiment, suite: Suite, results: ExperimentResults, rows: list[ClaimRow]) -> Chapter:
    drawings: list[Drawing] = []
    try:
        if not any(results.of(name) for name in results.names):
            raise MissingResult("no run is finished")
        section = experiment.show(results)
        drawings = _drawings(experiment.name, section)
    except MissingResult as missing:
        section = Section(text=(f"Nothing to draw yet: {missing.args[0]}.",))
    except NOT_UNDERSTOOD as error:
        section = Section(text=(f"Nothing is drawn: {not_understood(error)}.",))
    runs = tuple(_run_row(arm.id, arm.name, arm.seed, results.records.get(arm.id)) for arm in results.arms)
    seconds = [results.records[arm.id].seconds or 0.0 for arm in results.arms if arm.id in results.records]
    section = replace(section, text=(*_of_another_declaration(experiment, suite, results), *section.text))
    return Chapter(
        experiment=experiment,
        cuts=experiment.cuts(check_scale(suite.scale)),
        command=rerun_command(experiment, suite.scale, suite.corpus),
        rows=tuple(row for row in rows if row.verdict.experiment == experiment.name),
        anchor=slug(experiment.title),
        section=section,
        drawings=tuple(drawings),
        runs=runs,
        unfinished=tuple(row for row in runs if row.state != "finished"),
        time=duration_text(sum(seconds) if seconds else None),
    )


def _of_another_declaration(experiment: Experiment, suite: Suite, results: ExperimentResults) -> tuple[str, ...]:
    """Say that the suite's runs are not those that this version declares; nothing where they are."""
    declared = {arm.on_corpus(suite.corpus).id: arm.name for arm in experiment.arms(check_scale(suite.scale))}
    recorded = {arm.id for arm in results.arms}
    if not recorded <= set(declared):
        return ("These runs were made with other settings than this version declares at this scale: where text and tables "
                "differ, the tables are right.",)
    absent = Counter(name for arm, name in declared.items() if arm not in recorded)
    return (f"This suite holds {len(recorded)} of the {len(declared)} runs that this version declares here. Not part of it: "
            f"{', '.join(f'{name} ({count})' for name, count in absent.items())}.",) if absent else ()


def _drawings(experiment: str, section: Section) -> list[Drawing]:
    """Return the figures of a section that show anything, drawn, each with a name of its own."""
    drawings: list[Drawing] = []
    for figure in filter(_has_points, section.figures):
        name = f"{slug(experiment)}-{slug(figure.title)}"
        taken = {drawing.name for drawing in drawings}
        name = next(n for n in (name, *(f"{name}-{i}" for i in range(2, 99))) if n not in taken)
        inline = inline_svg(figure, name)
        drawings.append(Drawing(figure=figure, name=name, inline=inline, standalone=standalone_svg(inline)))
    return drawings


def _has_points(figure: Figure) -> bool:
    """Return whether anything would be seen in the figure: empty axes say less than nothing."""
    return any(value is not None and math.isfinite(value) for series in figure.series for value in series.y)


def _run_row(arm: str, name: str, seed: int, record: Record | None) -> RunRow:
    if record is None:
        return RunRow(name=name, seed=seed, state="missing", time="–", id=arm)
    state = "finished" if record.finished else f"failed: {record.error}"
    return RunRow(name=name, seed=seed, state=state, time=duration_text(record.seconds), id=arm)


def _environments(suite: Suite, finished: Sequence[Record]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the distinct environments behind the results, each with how many runs it stands behind."""
    distinct: list[tuple[Mapping[str, Any], int]] = []
    for record in finished:
        # Trainings and measurements differ in their threads on one machine: no environment of its own.
        environment = {name: value for name, value in record.environment.items() if name != "threads"}
        for index, (known, count) in enumerate(distinct):
            if known == environment:
                distinct[index] = (known, count + 1)
                break
        else:
            if environment:
                distinct.append((environment, 1))
    if not distinct:
        return [("this suite", suite.environment)] if suite.environment else []
    ordered = sorted(distinct, key=lambda pair: -pair[1])
    return [(f"{count} run{'s' if count > 1 else ''}", environment) for environment, count in ordered]


def machine_text(suite: Suite, finished: Sequence[Record]) -> str:
    """Return one line about the machine that most of the runs were made on; "" where none recorded it."""
    environments = _environments(suite, finished)
    if not environments:
        return ""
    environment = environments[0][1]
    gpus = environment.get("gpus")
    count = environment.get("cpu_count")
    parts = [str(environment.get("cpu") or environment.get("machine") or "")]
    parts += [f"{count} CPU core{'s' if count != 1 else ''}"] if count else []
    parts += [", ".join(map(str, gpus))] if isinstance(gpus, list) and gpus else []
    return ", ".join(part for part in parts if part)


def _shade(table: Table, cell: Cell) -> int | None:
    """Return how strongly a number cell is shaded, 0 to 100."""
    if table.shade is None or isinstance(cell, str) or cell is None:
        return None
    low, high = table.shade
    return round(100 * min(1.0, max(0.0, (cell - low) / (high - low))))


def _is_number(cell: Cell) -> bool:
    return cell is None or not isinstance(cell, str)


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return a template of `reporting/templates` with its context filled in; HTML is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reformer_lab.reporting"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(number=number_text, duration=duration_text, md=markdown_text, code=markdown_code, slug=slug)
    environment.globals.update(marks=_MARKS, shade=_shade, is_number=_is_number, light=css_variables(LIGHT, "#dedcd5"),
                               dark=css_variables(DARK, "#3a3d42"))
    return environment.get_template(template).render(**context)
