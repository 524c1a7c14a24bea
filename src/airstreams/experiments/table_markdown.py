"""A table as Markdown: our metrics, beside the published ones if there are any."""

from collections.abc import Sequence
from pathlib import Path

from airstreams.evaluation.published import NAMES, published_for
from airstreams.experiments.reproduce import Job
from airstreams.experiments.table_results import Difference, TableResults
from airstreams.experiments.tables import DATA_SETS, EVOLVED, Cell, Table
from airstreams.files import replacing, write_json
from airstreams.plural import count_of


def write_table(out: Path, results: TableResults, markdown: str) -> None:
    """Write a table into `out`, as Markdown and as JSON."""
    with replacing(out / f"{results.table}.md") as temporary:
        temporary.write_text(markdown, encoding="utf-8")
    write_json(out / f"{results.table}.json", results.as_dict())


def markdown_of(table: Table, results: TableResults, jobs: Sequence[Job]) -> str:
    """A table as Markdown, with what its numbers are and how they were made.

    Args:
        table: its rows.
        results: of the table.
        jobs: the runs.
    """
    data = results.data[0]
    published = _published_data_set(table, data)
    lines = [
        f"## {table.title}",
        "",
        f"`{results.command}`",
        "",
        _description(results),
        "",
        *_rows(table, results, published),
    ]
    if results.pairs:
        lines += [""]
        lines += [f"- {pair.run} minus {pair.minus}: {_in_points(pair.difference)}" for pair in results.pairs]
    if results.reason is not None:
        lines += ["", _no_best(results)]
    if published and not data.startswith(f"{published}:"):
        lines += ["", f"The paper's numbers are for {DATA_SETS[published]}, not for these data."]
    if results.deviations:
        subject = "Note"
        if published_for(jobs[0].source):
            subject = f"Differences from the usual protocol of {data.partition(':')[0]}"
        lines += ["", f"{subject}: {'; '.join(results.deviations)}."]
    lines += [f"\n{note}" for note in (_about_weights(table, jobs), table.note) if note]
    return "\n".join(lines) + "\n"


def _description(results: TableResults) -> str:
    """What the numbers are: metric, data, seeds, hardware, intervals."""
    seeds = len(results.seeds)
    sentences = [
        f"{NAMES[results.metric]} over {results.classes} classes on {results.videos} test videos ({results.groups} "
        f"groups) of {', '.join(results.data)}; seeds {', '.join(map(str, results.seeds))}; trained on "
        f"{' and '.join(results.hardware)}, {results.training_hours:.1f} h in all."
    ]
    if seeds > 1:
        sentences.append("Intervals are 95 % intervals over groups of videos and seeds.")
    else:
        sentences.append(
            "Intervals are 95 % intervals over groups of videos. They do not show how much another seed would differ."
        )
    if results.reference is not None:
        sentences.append("Differences are paired, in percentage points.")
    if results.reference is not None and seeds > 1:
        sentences.append("A difference whose interval spans 0 is not significant.")
    elif results.reference is not None:
        sentences.append("One seed gives no verdict on them.")
    return " ".join(sentences)


def _no_best(results: TableResults) -> str:
    """That no run of the table is the best, and why."""
    runs = len(results.runs)
    if results.reason == "chance":
        assert results.baseline is not None
        return (
            f"**No run is above chance, so no run is the best one.** {results.baseline:.1%} needs no look at the "
            f"videos, and no interval lies above it ({count_of(runs, 'run')}; the intervals are widened so that all "
            "hold together with 95 %)."
        )
    return (
        "**All scores lie within noise of each other, so no run is the best one.** Each difference of two of the "
        f"{runs} runs has an interval that spans 0 (the intervals are widened so that all hold together with 95 %)."
    )


def _published_data_set(table: Table, data: str) -> str | None:
    """The data set whose published numbers the table shows: that of the data, otherwise the table's first one.

    None: the table is not the paper's.
    """
    name = data.partition(":")[0]
    return name if name in table.data_sets else next(iter(table.data_sets), None)


def _rows(table: Table, results: TableResults, published: str | None) -> list[str]:
    """The lines of the Markdown table."""
    head = [""]
    for index, column in enumerate(table.columns):
        cells = [row[index] for row in table.rows.values()]
        metric = next((cell.metric for cell in cells if cell and cell.metric), results.metric)
        head.append(column or NAMES[metric])
        head += [f"minus {table.reference_row}, points"] if table.reference else []
        head += [f"paper, {DATA_SETS[published]}"] if published else []
    head += ["parameters, M", "G multiply-adds per clip"] if results.costs else []
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for title, row in table.rows.items():
        texts = [text for cell in row for text in _texts(cell, results, published)]
        if results.costs:
            run = next((cell.run for cell in row if cell and cell.run), table.costs_of.get(title))
            cost = results.costs.get(run or "")
            texts += [f"{cost.parameters / 1e6:.2f}", f"{cost.multiply_adds / 1e9:.2f}"] if cost else ["-", "-"]
        lines.append(f"| {title} | " + " | ".join(texts) + " |")
    return lines


def _texts(cell: Cell | None, results: TableResults, published: str | None) -> list[str]:
    """The texts of a cell: our metric, its difference if the table has a reference, the published metric if any."""
    ours, difference, paper = "", "", ""
    if cell is not None:
        value = getattr(cell, published) if published else None
        paper = "-" if value is None else f"{value:.2f} %"
        ours = "-"
    if cell is not None and cell.run is not None:
        found = results.runs[cell.run][cell.metric or results.metric]
        low, high = found.interval
        ours = f"{found.mean:.1%} ({low:.1%} to {high:.1%})"
        if found.difference is not None and cell.run != results.reference:
            difference = _in_points(found.difference)
    return [ours, *([difference] if results.reference else []), *([paper] if published else [])]


def _in_points(difference: Difference) -> str:
    low, high = (100 * bound for bound in difference.interval)
    verdict = {True: "", False: ", not significant", None: ", one seed"}[difference.significant]
    return f"{100 * difference.mean:+.1f} ({low:+.1f} to {high:+.1f}{verdict})"


def _about_weights(table: Table, jobs: Sequence[Job]) -> str:
    """Which loss weights the runs had, if the paper's had evolved ones."""
    evolved = [job for job in jobs if EVOLVED in job.name]
    if not table.evolved and not evolved:
        return ""
    weights = (evolved or jobs)[-1].config.active_loss_weights()  # the last run has all streams
    text = ", ".join(f"{name} {value:.2g}" for name, value in weights.items())
    if evolved:
        return f"Our loss weights are evolved: {text}."
    return (
        f"Our loss weights are the fixed ones: {text}. The paper's are evolved, as we read it. To use such weights, "
        "give --weights-from STUDY."
    )
