"""The HTML report has what the run's files say, as text, and needs no other file."""

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from rich.console import Console

from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.results import read_metrics
from airstreams.files import write_rows
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import SavedModel
from airstreams.viewing.run_report import write_report

VOID_TAGS = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """The text, table rows and pictures of a page. Its tags have to match."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href"):
                assert value.startswith("data:image/png;base64,")
                self.pictures.append(value)
        if tag not in VOID_TAGS:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report_of(run):
    path = write_report(run)
    assert path == run / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def random_run(config, classes, run, multi_label=False):
    torch.manual_seed(0)
    model = build(config.model, len(classes), 4).eval()
    saved_models.save(SavedModel(config, classes, ("0", "1", "2", "3"), multi_label, 25.0, model), run)


@pytest.fixture(scope="module")
def evaluated(trained, synthetic, tmp_path_factory):
    """The trained run, evaluated on two splits by the command line. Tests must not write to it."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    for split in ("test", "train"):
        data = [str(synthetic / "videos"), "--labels", str(synthetic / "labels")]
        assert main(["evaluate", str(run), *data, "--split", split]) == 0
    return run


@pytest.fixture
def run_with_test_split(evaluated, tmp_path):
    """A copy with one evaluated split. Tests may write to it."""
    run = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(run / "evaluation" / "train")
    return run


def test_the_page_has_the_metrics_of_every_split(evaluated, tmp_path, capsys):
    run = shutil.copytree(evaluated, tmp_path / "run")
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run / "report.html")}
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert len(page.pictures) == 2 * 2 + 1  # representations and confusion matrix of each split, and the curves
    assert page.text.index("Split test") < page.text.index("Split train")
    for split in ("test", "train"):
        metrics = read_metrics(run / "evaluation" / split / "figures.json")
        assert metrics.segmentation is not None
        low, high = metrics.intervals["top1"] or (0, 0)
        assert f"top-1 {metrics.top1:.1%} ({low:.1%} to {high:.1%})" in page.text
        assert ["pixel_accuracy", f"{metrics.segmentation.pixel_accuracy:.1%}"] in [row[:2] for row in page.rows]
        for name, row in metrics.per_class.items():
            assert [name, f"{row.accuracy:.1%}", str(row.videos)] in page.rows
    assert ["videos", "24 train, 8 test"] in page.rows
    assert "2 of 2 epochs" in page.text
    assert "segmenter_width: 0.125" in page.text


def test_the_page_of_a_run_without_evaluation_names_the_command(run):
    page = report_of(run)
    assert f"airstreams evaluate {run} DATA" in page.text
    assert len(page.pictures) == 1


def test_mistakes_are_sorted_by_probability(run_with_test_split):
    scores = run_with_test_split / "evaluation" / "test" / "scores.csv"
    with scores.open() as file:
        header = next(csv.reader(file))
    names = header[3:]
    rows: list[tuple[object, ...]] = [
        ("sure", names[0], names[1], 0.1, 0.9, 0.0, 0.0),
        ("right", names[0], names[0], 0.95, 0.05, 0.0, 0.0),
        ("unsure", names[3], names[2], 0.2, 0.2, 0.35, 0.25),
        ("broken", names[3], "left out: damaged"),
    ]
    write_rows(scores, header, rows)
    mistakes = [row for row in report_of(run_with_test_split).rows if row[0] in ("sure", "right", "unsure", "broken")]
    assert mistakes == [["sure", names[0], names[1], "90.0%"], ["unsure", names[3], names[2], "35.0%"]]


def test_names_are_escaped(tiny, tmp_path):
    classes = ("<script>alert(1)</script>", "rock & roll")
    random_run(replace(tiny, model=replace(tiny.model, streams=["rgb"])), classes, tmp_path)
    write_rows(tmp_path / "left_out.csv", ("name", "reason"), [("<b>a</b>.mp4", "no frames")])
    page = report_of(tmp_path)
    assert f"2: {', '.join(classes)}" in page.text
    assert ["<b>a</b>.mp4", "no frames"] in page.rows


def test_multi_label_runs_show_average_precision(tiny, synthetic, tmp_path):
    videos = synthetic / "videos" / "test"
    rows = [(videos / name / "000.mp4", name.replace("_", ";"), "test") for name in ("disc_left", "disc_up")]
    write_rows(tmp_path / "videos.csv", ("path", "label", "split"), rows)
    random_run(replace(tiny, model=replace(tiny.model, streams=["flow"])), ("disc", "left", "up"), tmp_path, True)
    metrics = evaluate(tmp_path, open_source(str(tmp_path / "videos.csv")), "test", Console(quiet=True)).metrics
    page = report_of(tmp_path)
    assert f"mAP {metrics.map:.1%} (" in page.text
    assert ["disc", f"{metrics.per_class['disc'].average_precision:.1%}", "2"] in page.rows
    assert not page.pictures


def test_missing_and_damaged_runs_are_refused(run_with_test_split, tmp_path):
    run = run_with_test_split
    with pytest.raises(InputError, match=r"model\.json"):
        write_report(tmp_path)
    path = run / "evaluation" / "test" / "figures.json"
    for content in ("{", '{"videos": 3}', "[]"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"test.figures\.json.*airstreams evaluate"):
            write_report(run)
    path.unlink()
    (run / "left_out.csv").write_text("video\na.mp4\n")
    with pytest.raises(InputError, match=r"left_out\.csv"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_damaged_scores_are_refused(run_with_test_split):
    (run_with_test_split / "evaluation" / "test" / "scores.csv").write_text("")
    with pytest.raises(InputError, match="airstreams evaluate"):
        write_report(run_with_test_split)
