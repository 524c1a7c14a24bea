"""The HTML report has what the run's files say, as text, and needs no other file."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from airstreams.cli import main
from airstreams.data.sources import open_source
from airstreams.errors import InputError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.results import read_metrics
from airstreams.files import write_rows
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import EvaluationFolder, RunFolder
from airstreams.runs.metrics_log import EpochRecord, epoch_records
from airstreams.runs.saved_model import KeptEpoch, SavedModel, read_description
from airstreams.training.summary import has_choice, weights_in_words
from airstreams.viewing.grad_cam import picture_of
from airstreams.viewing.mistakes import FRAMES_PER_STRIP, STRIPS, Answer, read_answers, strip_of, write_strips
from airstreams.viewing.run_report import write_report

VOID_TAGS = {"meta", "img", "link", "br", "wbr"}


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
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
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
    def strips(self):
        return [picture for picture in self.pictures if picture.startswith("data:image/jpeg")]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


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


@pytest.fixture(scope="module")
def reported(evaluated, tmp_path_factory):
    """A copy with its report, in which one file with a long name is left out. Tests must not write to it."""
    run = shutil.copytree(evaluated, tmp_path_factory.mktemp("reported") / "run")
    write_rows(run / "left_out.csv", ("name", "reason"), [(f"x/{'a_' * 60}{'b' * 60}.mp4", "no frames")])
    write_report(run)
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
    # Representations, confusion matrix and calibration of each split, and the curves.
    assert len(page.pictures) - len(page.strips) == 2 * 3 + 1
    assert page.text.count("Calibration error") == 2
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
    kept = read_description(run).kept
    assert kept is not None
    assert ["weights", weights_in_words(kept, epoch_records(run))] in page.rows  # without validation there is no metric
    assert "segmenter_width: 0.125" in page.text


def test_the_weights_say_how_many_epochs_are_equally_good():
    records = [EpochRecord(n, n, {}, {"top1": top1}) for n, top1 in enumerate((0.5, 0.8, 0.8, None, 0.7), 1)]
    assert "3 of 5, the last of the 2 best" in weights_in_words(KeptEpoch(3, "best", "top1", 0.8), records)
    assert "2 of 2, the best" in weights_in_words(KeptEpoch(2, "best", "top1", 0.8), records[:2])
    assert has_choice(KeptEpoch(2, "best", "top1", 0.8), records[:2])
    assert not has_choice(KeptEpoch(1, "best", "top1", 0.5), records[:1])


def test_the_page_of_a_run_without_evaluation_names_the_command(run):
    page = report_of(run)
    assert f"airstreams evaluate {run.name} DATA" in page.text
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
    mistakes = [row for row in report_of(run_with_test_split).rows if row[-1] in ("sure", "right", "unsure", "broken")]
    assert mistakes == [[names[0], names[1], "90.0%", "sure"], [names[3], names[2], "35.0%", "unsure"]]


def test_mistakes_of_multi_label_data_have_a_wrong_first_class(tmp_path):
    folder = EvaluationFolder(tmp_path)
    rows: list[tuple[object, ...]] = [
        ("right", "b;a", "a", 0.9, 0.1, 0.2),
        ("wrong", "a;b", "c", 0.1, 0.2, 0.3),
        ("no label", "", "a", 0.6, 0.1, 0.2),
    ]
    write_rows(folder.scores, ("name", "label", "predicted", "a", "b", "c"), rows)
    assert read_answers(folder, multi_label=True)[0] == [
        Answer("no label", "", "a", 0.6),
        Answer("wrong", "a;b", "c", 0.3),
    ]


def test_confident_mistakes_have_frames(reported, run_with_test_split):
    test = RunFolder(reported).evaluation("test")
    mistakes = read_answers(test, multi_label=False)[0]
    assert len(list(test.mistakes.iterdir())) == len(mistakes[:STRIPS]) > 1
    strip = strip_of(test, mistakes[0].name)
    assert imread(strip).shape == (64, FRAMES_PER_STRIP * 64, 3)  # smaller frames are not enlarged
    page = Page((reported / "report.html").read_text(encoding="utf-8"))
    assert f"data:image/jpeg;base64,{base64.b64encode(strip.read_bytes()).decode()}" in page.strips
    shutil.rmtree(RunFolder(run_with_test_split).evaluation("test").mistakes)
    page = report_of(run_with_test_split)
    assert not page.strips
    assert "airstreams evaluate" in page.text


def test_the_page_shows_where_the_model_looked(run_with_test_split):
    test = RunFolder(run_with_test_split).evaluation("test")
    mistakes, right = read_answers(test, multi_label=False)
    for answer in (mistakes[0], right[0]):
        picture = picture_of(test, answer.name)
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(answer.name.encode())
    page = report_of(run_with_test_split)
    assert "model looks" in page.text
    for answer in (mistakes[0], right[0]):
        assert f"data:image/jpeg;base64,{base64.b64encode(answer.name.encode()).decode()}" in page.strips


def test_a_video_that_is_gone_has_no_frames(run_with_test_split, synthetic):
    test = RunFolder(run_with_test_split).evaluation("test")
    mistakes = read_answers(test, multi_label=False)[0][:2]
    videos = {video.name: video for video in open_source(str(synthetic / "videos")).videos}
    gone = replace(videos[mistakes[0].name], path=synthetic / "gone.mp4")
    output = io.StringIO()
    write_strips(test, mistakes, videos | {gone.name: gone}, Console(file=output, width=200))
    assert list(test.mistakes.iterdir()) == [strip_of(test, mistakes[1].name)]
    assert gone.name in output.getvalue()


def test_shared_files_have_no_absolute_path(reported, evaluated, synthetic):
    shared = ("model.json", "split.csv", "left_out.csv", "metrics.jsonl", "config.yaml", "report.html")
    for path in (*map(reported.joinpath, shared), *reported.glob("evaluation/*/*.*")):
        content = path.read_bytes()
        for folder in (synthetic, evaluated.parent, reported.parent):
            assert str(folder).encode() not in content, path.name
    assert read_metrics(reported / "evaluation" / "test" / "figures.json").data == "videos"


def test_names_are_escaped(tiny, tmp_path):
    classes = ("<script>alert(1)</script>", "rock & roll")
    random_run(replace(tiny, model=replace(tiny.model, streams=["rgb"])), classes, tmp_path)
    write_rows(tmp_path / "left_out.csv", ("name", "reason"), [("<b>a</b>.mp4", "no frames")])
    RunFolder(tmp_path).write_data_warnings(["<i> in one split only, in '/home/anna/a & b.mp4' and x/y.mp4"])
    page = report_of(tmp_path)
    assert "<i> in one split only, in 'a & b.mp4' and x/y.mp4" in page.text
    assert f"2: {', '.join(classes)}" in page.text
    assert ["<b>a</b>.mp4", "no frames"] in page.rows


def test_multi_label_runs_show_average_precision(tiny, synthetic, tmp_path):
    videos = synthetic / "videos" / "test"
    rows = [(videos / name / "000.mp4", name.replace("_", ";"), "test") for name in ("disc_left", "disc_up")]
    rows.append((videos / "disc_up" / "001.mp4", "", "test"))
    write_rows(tmp_path / "videos.csv", ("path", "label", "split"), rows)
    random_run(replace(tiny, model=replace(tiny.model, streams=["flow"])), ("disc", "left", "up"), tmp_path, True)
    metrics = evaluate(tmp_path, open_source(str(tmp_path / "videos.csv")), "test", Console(quiet=True)).metrics
    page = report_of(tmp_path)
    assert f"mAP {metrics.map:.1%} (" in page.text
    assert f"{metrics.map_unlabelled_as_negatives:.1%} (map_unlabelled_as_negatives)" in page.text
    assert ["chance", f"{(2 / 2 + 1 / 2 + 1 / 2) / 3:.1%}"] in page.rows
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


WIDTHS = (390, 1280)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


MEASURE = r"""
frames = [...document.querySelectorAll("iframe")];
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement;
  const brokenWords = (cell) => {  // words of which a part is on another line
    const walker = page.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
    for (let text; (text = walker.nextNode());)
      for (const word of text.data.matchAll(/[^\s/-]+/g)) {
        const range = page.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((box) => box.top)).size > 1) found.push(word[0]);
      }
    return found;
  };
  return {
    window: frame.contentWindow.innerWidth,
    page: root.scrollWidth,
    tables: page.querySelectorAll("table").length,
    broken: [...page.querySelectorAll("th, td")].flatMap(brokenWords),
  };
}
onload = () => { document.body.dataset.measured = JSON.stringify(frames.map(measure)); };
"""


def test_the_page_fits_phones_and_screens(reported, tmp_path):
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM HERE: nothing checks that the report fits small screens")
    page = html.escape((reported / "report.html").read_text(encoding="utf-8"))
    # Chromium makes no window below 500 px, so the page is shown in frames of these widths.
    frames = [f'<iframe style="border:0" width="{width}" height="1500" srcdoc="{page}"></iframe>' for width in WIDTHS]
    text = (
        f"<!doctype html><body style='margin:0;white-space:nowrap'>{''.join(frames)}<script>{MEASURE}</script></body>"
    )
    (tmp_path / "frames.html").write_text(text, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={sum(WIDTHS) + 10},1500"]
    command = [
        CHROMIUM,
        *flags,
        f"--screenshot={tmp_path / 'page.png'}",
        "--dump-dom",
        (tmp_path / "frames.html").as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'data-measured="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    for width, measured in zip(WIDTHS, json.loads(html.unescape(found[1])), strict=True):
        assert measured["window"] == width
        assert measured["page"] <= width
        assert measured["broken"] == []
        assert measured["tables"] > 5
    picture = imread(tmp_path / "page.png")
    assert picture.shape == (1500, sum(WIDTHS) + 10, 3)
    assert (picture[:, : WIDTHS[0]] < 0.5).any()  # it shows text
