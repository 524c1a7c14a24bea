"""The files that an evaluation leaves, counted anew from the scores of every video."""

import csv
import io
import json
import shutil

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
from airstreams.runs import saved_model as saved_models

QUIET = Console(quiet=True)


def rows_of(result):
    with (result.folder.path / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_figures_are_those_of_the_scores_written_down(run, synthetic):
    result = evaluate(run, open_source(str(synthetic / "videos")), "test", Console(quiet=True))
    rows = rows_of(result)
    scores = np.array([[float(row[name]) for name in result.saved.classes] for row in rows])
    predicted = [result.saved.classes[index] for index in scores.argmax(axis=1)]
    true = [row["label"] for row in rows]
    assert [row["name"].split("/")[1] for row in rows] == true
    assert [row["predicted"] for row in rows] == predicted
    assert scores.sum(axis=1) == pytest.approx(np.ones(8), abs=1e-4)
    assert result.figures["top1"] == pytest.approx(np.mean([t == p for t, p in zip(true, predicted, strict=True)]))
    assert result.figures["videos"] == len(rows) == 8
    assert result.figures["left_out"] == 0
    confusion = json.loads((result.folder.path / "confusion.json").read_text())
    assert confusion["counts"] == result.confusion
    expected = [
        [sum((t, p) == (down, across) for t, p in zip(true, predicted, strict=True)) for across in result.saved.classes]
        for down in result.saved.classes
    ]
    assert confusion == {"classes": list(result.saved.classes), "counts": expected}
    assert result.figures["per_class"] == {
        name: {"videos": 2, "accuracy": expected[place][place] / 2} for place, name in enumerate(result.saved.classes)
    }
    assert json.loads((result.folder.path / "figures.json").read_text()) == result.figures


def test_the_figures_say_how_sure_they_are_and_by_which_views(run, synthetic):
    figures = evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET).figures
    assert (figures["classes"], figures["unlabelled"], figures["map_unlabelled_as_negatives"]) == (4, 0, None)
    assert figures["groups"] == 8
    assert figures["protocol"] == {"views": 2, "crops": 1, "published": None}
    for name in ("top1", "mean_per_class"):
        low, high = figures["intervals"][name]
        assert low <= figures[name] <= high
    assert figures["intervals"]["top5"] is figures["intervals"]["map"] is None
    assert figures["streams"]["merged"]["intervals"] == figures["intervals"]
    assert figures["streams"]["semantic"]["intervals"]["top1"] is None  # untrained


@pytest.fixture
def charades(synthetic, tmp_path):
    """Charades' layout with four classes, one training and eight test videos, the first two of which have no action."""
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
    """The trained run, taken for one of Charades' classes."""
    saved = saved_models.load(run)
    saved.classes, saved.multi_label = open_source(f"charades:{charades}").classes, True
    saved_models.save(saved, run)
    (run / "split.csv").unlink(missing_ok=True)
    return run


def test_charades_is_scored_as_its_official_script_does_and_says_so(multi_label_run, charades, capsys):
    assert main(["evaluate", str(multi_label_run), f"charades:{charades}", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    published = figures["protocol"]["published"]
    assert (published["name"], published["figures"], published["split"]) == ("charades", ["map"], "test")
    assert published["deviations"] == ["8 videos listed, not 1863", "2 views, not 10", "1 crops, not 3"]
    assert (figures["videos"], figures["unlabelled"], figures["classes"]) == (8, 2, 4)
    with (multi_label_run / "evaluation" / "test" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for key, competing in (("map", rows[2:]), ("map_unlabelled_as_negatives", rows)):
        precisions = []
        for name in list(rows[0])[3:]:
            own = [row for row in competing if name in row["label"].split(";")]
            ahead = [[row for row in competing if float(row[name]) >= float(mine[name])] for mine in own]
            precisions.append(np.mean([sum(row in own for row in above) / len(above) for above in ahead]))
        assert figures[key] == pytest.approx(np.mean(precisions), abs=1e-6)
        if key == "map":
            of_class = zip(list(rows[0])[3:], precisions, strict=True)
            assert figures["per_class"] == {
                name: {"videos": 2, "average_precision": pytest.approx(precision, abs=1e-6)}
                for name, precision in of_class
            }
    low, high = figures["intervals"]["map"]
    assert 0 <= low < figures["map"] < high <= 1
    assert main(["evaluate", str(multi_label_run), f"charades:{charades}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for words in (
        "Protocol of charades: mAP on test; the custom is each class's highest score over the views, not the mean.",
        "Here otherwise: 8 videos listed, not 1863; 2 views, not 10; 1 crops, not 3.",
        "2 videos without any action are ranked last",
        "the mean over 2 clips, 1 crops each",
    ):
        assert words in printed


def test_bad_videos_are_left_out_counted_listed_and_spoken_of(run, videos):
    (videos / "test" / "disc_up" / "000.mp4").write_bytes(b"")
    cut = videos / "test" / "square_up" / "001.mp4"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    said = io.StringIO()
    result = evaluate(run, open_source(str(videos)), "test", Console(file=said, width=200))
    assert (result.figures["videos"], result.figures["left_out"]) == (6, 2)
    assert np.array(result.confusion).sum() == 6
    listed = {row["name"]: row["predicted"] for row in rows_of(result) if row["predicted"].startswith("left out")}
    assert set(listed) == {"test/disc_up/000.mp4", "test/square_up/001.mp4"}
    assert "empty" in listed["test/disc_up/000.mp4"]
    assert "truncated" in listed["test/square_up/001.mp4"]
    assert "2 of 8 videos left out" in said.getvalue()


def test_data_without_splits_is_scored_by_those_that_training_drew_and_new_videos_count_as_test(run, videos):
    names = [f"disc_{how}/{number:03d}.mp4" for how in ("left", "up") for number in range(6)]
    with (run / "split.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "split"))
        rows.writerows((name, "test" if "003" in name else "train") for name in names if "005" not in name)
    shutil.rmtree(videos / "train" / "square_left")
    shutil.rmtree(videos / "train" / "square_up")
    said = io.StringIO()
    result = evaluate(run, open_source(str(videos / "train")), "test", Console(file=said, width=200))
    assert "10 of 12 videos go by the names of the run's own: 8 train, 2 test" in said.getvalue()
    assert "2 of 12 videos are new to the run: they count as test videos" in said.getvalue()
    assert {row["name"] for row in rows_of(result)} == {name for name in names if "003" in name or "005" in name}
    # The same files under other names.
    (videos / "list.csv").write_text("path,label\n" + "".join(f"train/{name},{name[:-8]}\n" for name in names))
    evaluate(run, open_source(str(videos / "list.csv")), "test", Console(file=said, width=200))
    assert "12 of 12 videos are new to the run" in said.getvalue()
    assert (
        "beware: 8 of these 12 videos look like some that were trained on under other names (train/disc_left/000.mp4 "
        "for disc_left/000.mp4)" in said.getvalue()
    )
    (run / "split.csv").unlink()
    with pytest.raises(InputError, match=r"no split\.csv in it, .*; copy it with the model"):
        evaluate(run, open_source(str(videos / "list.csv")), "test", QUIET)


def test_data_of_another_form_that_hold_what_was_trained_on_are_spoken_of(run, videos, tmp_path):
    other = tmp_path / "moved" / "test" / "disc_left" / "000.avi"
    other.parent.mkdir(parents=True)
    shutil.copy(videos / "train" / "disc_left" / "000.mp4", other)
    said = io.StringIO()
    (run / "split.csv").write_text("name,split\ndisc_left/000.mp4,train\n")
    evaluate(run, open_source(str(tmp_path / "moved")), "test", Console(file=said, width=200))
    assert (
        "beware: 1 of these 1 videos look like some that were trained on under other names (test/disc_left/000.avi for"
        in said.getvalue()
    )
    (run / "split.csv").write_text("name,split\ntrain/disc_left/000.mp4,train\ntest/disc_left/000.avi,test\n")
    said = io.StringIO()
    evaluate(run, open_source(str(tmp_path / "moved")), "test", Console(file=said, width=200))
    assert "beware" not in said.getvalue()  # the run knows it by name


def test_videos_that_were_trained_on_are_counted_and_spoken_of(run, videos):
    rows = ["path,label,split", *(f"train/disc_up/{number:03d}.mp4,disc_up,test" for number in range(3))]
    csv_file = videos / "seen.csv"
    csv_file.write_text("\n".join(rows))
    said = io.StringIO()
    result = evaluate(run, open_source(str(csv_file)), "test", Console(file=said, width=200))
    assert result.figures["trained_on"] == 3
    assert "3 of these 3 videos were trained on, by their names" in said.getvalue()


def test_parts_of_videos_that_were_trained_on_are_spoken_of(run, videos):
    with (run / "split.csv").open("a") as file:
        file.write('"cut/a.mp4#t=,0.1",train\n"cut/a.mp4#t=0.2,",test\n"cut/b#t=1.mp4",train\n')
    (videos / "cut").mkdir()
    for name, taken in (("a.mp4", "000.mp4"), ("b#t=1.mp4", "001.mp4")):
        shutil.copy(videos / "test" / "disc_up" / taken, videos / "cut" / name)
    rows = ["path,label,split,start,end"]
    rows += ["cut/a.mp4,disc_up,test,0.05,0.15", "cut/a.mp4,disc_up,test,0.15,", "cut/b#t=1.mp4,disc_up,test,,"]
    (videos / "parts.csv").write_text("\n".join(rows))
    result = evaluate(run, open_source(str(videos / "parts.csv")), "test", QUIET)
    assert result.figures["trained_on"] == 2  # all but the second part
    assert result.figures["groups"] == 2  # files


def test_scores_that_are_no_numbers_are_no_figures(run, synthetic):
    saved = saved_models.load(run)
    with torch.no_grad():
        next(saved.model.late["merged"].parameters()).fill_(float("nan"))
    saved_models.save(saved, run)
    with pytest.raises(FloatingPointError, match="not numbers, since its training diverged"):
        evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET)
    with pytest.raises(FloatingPointError, match="not numbers"):
        airstreams.load(run).predict(synthetic / "videos" / "test" / "disc_up" / "000.mp4")


def test_where_there_are_figures_the_scores_are_those_that_they_are_of(run, source, monkeypatch):
    """As after a crash between two of the files: what reads figures.json may rely on the others."""
    evaluate(run, source, "test", QUIET)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluation, "write_rows", full)
    with pytest.raises(OSError, match="No space"):
        evaluate(run, source, "test", QUIET)
    assert not (run / "evaluation" / "test" / "figures.json").exists()


def test_figures_of_other_data_are_not_replaced_in_silence(run, synthetic, videos):
    evaluate(run, open_source(str(synthetic / "videos")), "test", QUIET)
    for source, told in ((synthetic / "videos", False), (videos, True)):
        said = io.StringIO()
        evaluate(run, open_source(str(source)), "test", Console(file=said, width=500))
        assert (f"its figures of {synthetic / 'videos'} will be replaced" in said.getvalue()) is told


def test_a_split_without_one_readable_video_is_refused_with_a_reason(run, tmp_path):
    (tmp_path / "videos" / "disc_up").mkdir(parents=True)
    (tmp_path / "videos" / "disc_up" / "a.mp4").write_text("Not a film at all.")
    with pytest.raises(VideoError, match=r"disc_up/a\.mp4: not a video"):
        evaluate(run, open_source(str(tmp_path / "videos"), to_learn_from=False), "test", QUIET)


def test_data_of_a_class_that_the_model_does_not_know_is_refused(run, videos):
    for split in ("train", "test"):
        (videos / split / "disc_up").rename(videos / split / "cube_up")
    with pytest.raises(InputError, match=r"does not know: cube_up; expected some of disc_left, disc_up"):
        evaluate(run, open_source(str(videos)), "test", Console(quiet=True))


def test_a_split_that_the_data_lacks_is_refused(run, synthetic):
    with pytest.raises(InputError, match=r"no videos in the split 'val'.*train \(24\), test \(8\)"):
        evaluate(run, open_source(str(synthetic / "videos")), "val", Console(quiet=True))


def test_label_maps_of_another_teacher_are_not_scored_and_that_is_said(run, synthetic, tmp_path):
    source = open_source(str(synthetic / "videos"))
    other = label_maps.create(tmp_path / "other", "somebody else", ["background", "thing"], {})
    for video in source.videos:
        label_maps.save(other.root, str(video.label_map), np.zeros((8, 32, 32), np.uint8), range(8))
    said = io.StringIO()
    source = open_source(str(synthetic / "videos"), other.root)
    result = evaluate(run, source, "test", Console(file=said, width=200))
    assert result.figures["segmentation"] is None
    assert "segmentation not scored: somebody else's classes" in said.getvalue()
