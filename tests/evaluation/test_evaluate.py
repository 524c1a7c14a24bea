"""What an evaluation returns, writes, warns of and refuses."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.data import label_maps
from airstreams.data.sources import open_source
from airstreams.errors import InputError, VideoError
from airstreams.evaluation import evaluate as evaluation
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.metrics import ActionMetrics
from airstreams.evaluation.results import ClassMetrics, MostFrequentClass, ScoringProtocol, read_metrics
from airstreams.runs import saved_model as saved_models
from airstreams.runs.folder import RunFolder
from airstreams.viewing.run_report import write_report
from airstreams.viewing.tables import trained_on_warnings

QUIET = Console(quiet=True)


def rows_of(result):
    with (result.folder.path / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(trained, synthetic, tmp_path_factory):
    """The trained run, evaluated on its test videos. Tests must not write to its folder."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    return evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET)


@pytest.mark.parametrize(("of_run", "given", "groups"), [(None, None, 8), (r"\d+$", None, 2), (r"\d+$", "[a-z_]+/", 1)])
def test_intervals_count_the_groups_of_the_run_or_of_the_call(run, synthetic, of_run, given, groups):
    saved = saved_models.load(run)
    saved = replace(saved, config=replace(saved.config, data=replace(saved.config.data, group_by=of_run)))
    saved_models.save(saved, run)
    assert airstreams.evaluate(run, synthetic / "videos", group_by=given).metrics.groups == groups


def test_metrics_agree_with_the_written_scores(evaluated):
    metrics, classes = evaluated.metrics, evaluated.saved.classes
    rows = rows_of(evaluated)
    scores = np.array([[float(row[name]) for name in classes] for row in rows])
    predicted = [classes[index] for index in scores.argmax(axis=1)]
    true = [row["label"] for row in rows]
    assert [row["name"].split("/")[1] for row in rows] == true
    assert [row["predicted"] for row in rows] == predicted
    assert scores.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-4)
    assert metrics.top1 == pytest.approx(np.mean([t == p for t, p in zip(true, predicted, strict=True)]))
    assert metrics.videos == len(rows) == 8
    assert metrics.left_out == 0
    confusion = json.loads((evaluated.folder.path / "confusion.json").read_text())
    assert confusion["counts"] == evaluated.confusion
    expected = [
        [sum((t, p) == (down, across) for t, p in zip(true, predicted, strict=True)) for across in classes]
        for down in classes
    ]
    assert confusion == {"classes": list(classes), "counts": expected}
    assert metrics.per_class == {
        name: ClassMetrics(videos=2, accuracy=expected[row][row] / 2) for row, name in enumerate(classes)
    }


def test_baselines_stand_beside_the_metrics(evaluated, run, synthetic):
    first = evaluated.saved.classes[0]  # all classes have six training videos
    baselines = evaluated.metrics.baselines
    assert baselines.chance == ActionMetrics(top1=0.25, mean_per_class=0.25)
    assert baselines.most_frequent_class == MostFrequentClass(top1=0.25, mean_per_class=0.25, label=first)
    # A run of version 0.2 has no labels in its list. They are taken from DATA.
    splits = RunFolder(run).splits
    splits.write_text("".join(line.rpartition(",")[0] + "\n" for line in splits.read_text().splitlines()))
    assert evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET).metrics.baselines == baselines


def test_metrics_are_written_as_json(evaluated):
    path = evaluated.folder.path / "figures.json"
    assert json.loads(path.read_text()) == evaluated.metrics.as_dict()
    assert read_metrics(path) == evaluated.metrics


def test_metrics_have_intervals_and_a_protocol(evaluated):
    metrics = evaluated.metrics
    assert (metrics.classes, metrics.unlabelled, metrics.map_unlabelled_as_negatives) == (4, 0, None)
    assert metrics.groups == 8
    assert metrics.protocol == ScoringProtocol(views=2, crops=1, comparison=None)
    for name in ("top1", "mean_per_class"):
        low, high = metrics.intervals[name]
        assert low <= metrics[name] <= high
    assert metrics.intervals["top5"] is metrics.intervals["map"] is None
    assert metrics.streams["merged"].intervals == metrics.intervals
    assert metrics.streams["semantic"].intervals["top1"] is None  # untrained


@pytest.fixture
def charades(synthetic, tmp_path):
    """Charades' layout with four classes, one training video and eight test videos; the first two have no action."""
    root = tmp_path / "charades"
    (root / "videos").mkdir(parents=True)
    (root / "Charades_v1_classes.txt").write_text("".join(f"c00{k} Doing {k}\n" for k in range(4)))
    actions = ["", "", "c000 0 9", "c001 0 9", "c000 0 9;c002 0 9", "c003 0 9", "c001 0 9;c003 0 9", "c002 0 9"]
    videos = sorted((synthetic / "videos" / "test").rglob("*.mp4"))
    every = ";".join(f"c00{k} 0 9" for k in range(4))
    for split, rows in (
        ("train", [("TRAIN", every)]),
        ("test", [(f"TEST{n}", cell) for n, cell in enumerate(actions)]),
    ):
        lines = ["id,subject,actions", *(f"{name},S{name},{cell}" for name, cell in rows)]
        (root / f"Charades_v1_{split}.csv").write_text("\n".join(lines))
        for (name, _), video in zip(rows, videos, strict=False):
            shutil.copy(video, root / "videos" / f"{name}.mp4")
    return root


@pytest.fixture
def multi_label_run(run, charades):
    """The trained run, renamed to Charades' classes."""
    saved = saved_models.load(run)
    saved.classes, saved.multi_label = open_source(f"charades:{charades}").classes, True
    saved_models.save(saved, run)
    (run / "split.csv").unlink(missing_ok=True)
    return run


def test_charades_is_scored_like_its_official_script(multi_label_run, charades, capsys):
    assert main(["evaluate", str(multi_label_run), f"charades:{charades}", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    published = content["protocol"]["published"]
    assert (published["name"], published["figures"], published["split"]) == ("charades", ["map"], "test")
    assert published["deviations"] == ["8 videos listed, not 1863", "2 views, not 10", "1 crop, not 3"]
    assert (content["videos"], content["unlabelled"], content["classes"]) == (8, 2, 4)
    (scores,) = multi_label_run.glob("evaluation/charades-*-test/scores.csv")  # the run knows none of the videos
    with scores.open() as file:
        rows = list(csv.DictReader(file))
    for key, ranked in (("map", rows[2:]), ("map_unlabelled_as_negatives", rows)):
        precisions = []
        for name in list(rows[0])[3:]:
            own = [row for row in ranked if name in row["label"].split(";")]
            ahead = [[row for row in ranked if float(row[name]) >= float(mine[name])] for mine in own]
            precisions.append(np.mean([sum(row in own for row in above) / len(above) for above in ahead]))
        assert content[key] == pytest.approx(np.mean(precisions), abs=1e-6)
        if key == "map":
            of_class = zip(list(rows[0])[3:], precisions, strict=True)
            assert content["per_class"] == {
                name: {"videos": 2, "average_precision": pytest.approx(precision, abs=1e-6)}
                for name, precision in of_class
            }
    low, high = content["intervals"]["map"]
    assert 0 <= low < content["map"] < high <= 1
    assert main(["evaluate", str(multi_label_run), f"charades:{charades}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    unlabelled_ranked = f"{content['map_unlabelled_as_negatives']:.1%}"
    for words in (
        "charades",
        "8 videos listed, not 1863; 2 views, not 10; 1 crop, not 3",
        "2 videos",
        unlabelled_ranked,
        "2 clips",
    ):
        assert words in printed


def test_bad_videos_are_left_out_and_listed(run, videos):
    (videos / "test" / "disc_up" / "000.mp4").write_bytes(b"")
    cut = videos / "test" / "square_up" / "001.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    output = io.StringIO()
    result = evaluate(run, open_source(str(videos)), "test", Console(file=output, width=200))
    assert (result.metrics.videos, result.metrics.left_out) == (6, 2)
    assert np.array(result.confusion).sum() == 6
    listed = {row["name"]: row["predicted"] for row in rows_of(result) if row["predicted"].startswith("left out")}
    assert set(listed) == {"test/disc_up/000.mp4", "test/square_up/001.mp4"}
    assert "empty" in listed["test/disc_up/000.mp4"]
    assert "truncated" in listed["test/square_up/001.mp4"]
    assert "2 of 8 videos left out" in output.getvalue()


def test_data_without_splits_gets_the_runs_split(run, videos):
    names = [f"disc_{how}/{number:03d}.mp4" for how in ("left", "up") for number in range(6)]
    with (run / "split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "split"))
        rows.writerows((name, "test" if "003" in name else "train") for name in names if "005" not in name)
    shutil.rmtree(videos / "train" / "square_left")
    shutil.rmtree(videos / "train" / "square_up")
    output = io.StringIO()
    result = evaluate(run, open_source(str(videos / "train")), "test", Console(file=output, width=200))
    assert "10 of 12 videos" in output.getvalue()
    assert "8 train, 2 test" in output.getvalue()
    assert "2 of 12 videos are new" in output.getvalue()
    assert {row["name"] for row in rows_of(result)} == {name for name in names if "003" in name or "005" in name}
    # The same files under other names.
    (videos / "list.csv").write_text("path,label\n" + "".join(f"train/{name},{name[:-8]}\n" for name in names))
    evaluate(run, open_source(str(videos / "list.csv")), "test", Console(file=output, width=200))
    assert "12 of 12 videos are new" in output.getvalue()
    assert "warning: 8 of these 12 videos" in output.getvalue()
    assert "(train/disc_left/000.mp4 for disc_left/000.mp4)" in output.getvalue()
    (run / "split.csv").unlink()
    with pytest.raises(InputError, match=r"split\.csv"):
        evaluate(run, open_source(str(videos / "list.csv")), "test", QUIET)


def moved_to_a_csv(videos, split_of):
    """The videos in one folder under new names, and a CSV file that lists them with the given splits, "" for none."""
    rows = ["path,label,split"]
    (videos.parent / "moved").mkdir()
    for number, path in enumerate(sorted(videos.rglob("*.mp4"))):
        moved = shutil.copy(path, videos.parent / "moved" / f"[{number}] ö, x.mp4")
        split = split_of(path)
        if split is not None:
            rows.append(f'"moved/{moved.name}",{path.parent.name},{split}')
    (videos.parent / "my list.csv").write_text("\n".join(rows))
    return videos.parent / "my list.csv"


def test_a_csv_of_the_same_videos_gives_the_same_metrics_of_the_runs_split(run, videos, evaluated):
    data = moved_to_a_csv(videos, lambda path: "")
    output = io.StringIO()
    result = evaluate(run, open_source(str(data)), "test", Console(file=output, width=200))
    assert "32 of 32 videos get the run's own split: 24 train, 8 test" in output.getvalue()
    assert "warning" not in output.getvalue()
    assert result.folder.path == run / "evaluation" / "test"
    assert (result.metrics.videos, result.metrics.trained_on, result.metrics.new_only) == (8, 0, None)
    assert result.metrics.top1 == evaluated.metrics.top1
    assert result.metrics.intervals == evaluated.metrics.intervals


def test_other_videos_do_not_replace_the_metrics_of_the_runs_split(run, evaluated, videos):
    shutil.copytree(evaluated.folder.path, run / "evaluation" / "test")
    data = moved_to_a_csv(videos, lambda path: "test" if path.stem in ("000", "001") else None)
    output = io.StringIO()
    metrics = evaluate(run, open_source(str(data)), "test", Console(file=output, width=500)).metrics
    content, said = metrics.as_dict(), output.getvalue()
    assert (metrics.videos, metrics.trained_on, content["new_only"]["videos"]) == (16, 8, 8)
    assert content["new_only"]["top1"] == pytest.approx(evaluated.metrics.top1)
    assert "warning: the run was trained on 8 of these 16 videos" in said
    assert read_metrics(run / "evaluation" / "test" / "figures.json") == evaluated.metrics
    (folder,) = run.glob("evaluation/my-list.csv-*-test")
    assert json.loads((folder / "figures.json").read_text()) == content
    assert str(folder) in said
    page = write_report(run).read_text()
    headlines = page.split('class="headline"')
    assert len(headlines) == 3
    assert "trained on" not in headlines[1].split("<table>")[0]
    assert "trained on 8 of these 16 videos" in headlines[2].split("<table>")[0]
    assert headlines[1].split("<h2>")[1].startswith(f"Other data: {folder.name}")


def test_validation_videos_are_not_new(run, videos, evaluated):
    splits = (run / "split.csv").read_text().splitlines()
    tested = [line for line in splits if ",test," in line]
    changed = [line.replace(",test,", ",val,") if line in tested[:3] else line for line in splits]
    (run / "split.csv").write_text("\n".join(changed) + "\n")
    data = moved_to_a_csv(videos, lambda path: "test" if "test" in path.parts else None)
    metrics = evaluate(run, open_source(str(data)), "test", QUIET).metrics
    assert (metrics.videos, metrics.trained_on, metrics.chose_epoch) == (8, 0, 3)
    assert metrics.new_only is not None
    assert metrics.new_only.videos == 5
    assert "chosen on 3 others" in trained_on_warnings(metrics)[0]


def test_renamed_training_videos_cause_a_warning(run, videos, tmp_path):
    other = tmp_path / "moved" / "test" / "disc_left" / "000.avi"
    other.parent.mkdir(parents=True)
    shutil.copy(videos / "train" / "disc_left" / "000.mp4", other)
    output = io.StringIO()
    (run / "split.csv").write_text("name,split\ndisc_left/000.mp4,train\n")
    evaluate(run, open_source(str(tmp_path / "moved")), "test", Console(file=output, width=200))
    assert "warning: 1 of these 1 videos" in output.getvalue()
    assert "(test/disc_left/000.avi for disc_left/000.mp4)" in output.getvalue()
    (run / "split.csv").write_text("name,split\ntrain/disc_left/000.mp4,train\ntest/disc_left/000.avi,test\n")
    output = io.StringIO()
    evaluate(run, open_source(str(tmp_path / "moved")), "test", Console(file=output, width=200))
    assert "warning" not in output.getvalue()  # the run has a video of this name


def test_training_videos_cause_a_warning(run, videos):
    rows = ["path,label,split", *(f"train/disc_up/{number:03d}.mp4,disc_up,test" for number in range(3))]
    csv_file = videos / "list.csv"
    csv_file.write_text("\n".join(rows))
    output = io.StringIO()
    result = evaluate(run, open_source(str(csv_file)), "test", Console(file=output, width=200))
    assert result.metrics.trained_on == 3
    assert "warning: the run was trained on 3 of these 3 videos" in output.getvalue()


def test_segments_of_training_videos_are_counted(run, videos):
    with (run / "split.csv").open("a") as file:
        file.write(
            '"cut/a.mp4#t=,0.1",train,disc_up,\n"cut/a.mp4#t=0.2,",test,disc_up,\n"cut/b#t=1.mp4",train,disc_up,\n'
        )
    (videos / "cut").mkdir()
    for name, taken in (("a.mp4", "000.mp4"), ("b#t=1.mp4", "001.mp4")):
        shutil.copy(videos / "test" / "disc_up" / taken, videos / "cut" / name)
    rows = ["path,label,split,start,end"]
    rows += ["cut/a.mp4,disc_up,test,0.05,0.15", "cut/a.mp4,disc_up,test,0.15,", "cut/b#t=1.mp4,disc_up,test,,"]
    (videos / "parts.csv").write_text("\n".join(rows))
    result = evaluate(run, open_source(str(videos / "parts.csv")), "test", QUIET)
    assert result.metrics.trained_on == 2  # all but the second segment
    assert result.metrics.groups == 2  # files


def test_nan_scores_are_refused(run, synthetic):
    saved = saved_models.load(run)
    with torch.no_grad():
        next(saved.model.late["merged"].parameters()).fill_(float("nan"))
    saved_models.save(saved, run)
    with pytest.raises(FloatingPointError, match="not numbers"):
        evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET)
    with pytest.raises(FloatingPointError, match="not numbers"):
        airstreams.load(run).predict(synthetic / "videos" / "test" / "disc_up" / "000.mp4")


def test_a_failed_evaluation_leaves_no_metrics(run, source, monkeypatch):
    """Whoever finds figures.json may rely on the other files."""
    evaluate(run, source, "test", QUIET)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_rows", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(run, source, "test", QUIET)
    assert not (run / "evaluation" / "test" / "figures.json").exists()


def test_replacing_the_metrics_of_other_videos_is_reported(run, synthetic, videos):
    evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET)

    def is_reported(folder):
        output = io.StringIO()
        evaluate(run, open_source(str(folder)), "test", Console(file=output, width=500))
        return "videos will be replaced" in output.getvalue()

    assert not is_reported(synthetic / "videos")
    assert not is_reported(videos)  # the same videos in another folder
    figures = RunFolder(run).evaluation("test").metrics
    before = json.loads(figures.read_text())
    figures.write_text(json.dumps(before | {"videos_sum": "of others"}))
    assert is_reported(synthetic / "videos")
    del before["videos_sum"]  # as in version 0.2, where only the name of DATA is known
    figures.write_text(json.dumps(before))
    assert is_reported(synthetic / "videos")


def test_a_split_without_readable_videos_is_refused(run, tmp_path):
    (tmp_path / "videos" / "disc_up").mkdir(parents=True)
    (tmp_path / "videos" / "disc_up" / "a.mp4").write_text("Not a film at all.")
    with pytest.raises(VideoError, match=r"disc_up/a\.mp4"):
        evaluate(run, open_source(str(tmp_path / "videos"), for_training=False), "test", QUIET)


def test_unknown_classes_are_refused(run, videos):
    for split in ("train", "test"):
        (videos / split / "disc_up").rename(videos / split / "cube_up")
    with pytest.raises(InputError, match=r"cube_up\..* disc_left, disc_up"):
        evaluate(run, open_source(str(videos)), "test", QUIET)


def test_a_missing_split_is_refused(run, synthetic):
    with pytest.raises(InputError, match=r"val.*train \(24\), test \(8\)"):
        evaluate(run, open_source(str(synthetic / "videos")), "val", QUIET)


def test_label_maps_of_another_teacher_are_not_scored(run, synthetic, tmp_path):
    source = open_source(str(synthetic / "videos"))
    other = label_maps.create(tmp_path / "other", "somebody else", ["background", "thing"], {})
    for video in source.videos:
        label_maps.save(other.root, str(video.label_map), np.zeros((8, 32, 32), np.uint8), range(8))
    output = io.StringIO()
    source = open_source(str(synthetic / "videos"), other.root)
    result = evaluate(run, source, "test", Console(file=output, width=200))
    assert result.metrics.segmentation is None
    assert "segmentation is not scored" in output.getvalue()
    assert "somebody else" in output.getvalue()
