"""Real annotation jobs, also interrupted and distributed ones, with teachers that follow a simple rule."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from rich.console import Console

import airstreams
from airstreams.cli import main
from airstreams.data.label_maps import LabelStore
from airstreams.data.sources import open_source
from airstreams.data.video import read_frames
from airstreams.errors import InputError
from airstreams.teachers import annotate as job
from tests.pages import blocks, page
from tests.processes import Call

TEACHERS = '''
    import os
    import time
    from pathlib import Path

    import numpy as np

    CALLS = Path(__file__).with_name("calls")


    def rule(frames_THW3):
        """The strongest colour where there is one, no label for bright pixels, background elsewhere."""
        strongest, weakest = frames_THW3.max(3), frames_THW3.min(3)
        labels_THW = np.where(strongest - weakest > 15, frames_THW3.argmax(3) + 1, 0)
        return np.where(weakest > 180, 255, labels_THW).astype(np.uint8)


    class Teacher:
        name = "rule"
        classes = ("background", "red", "green", "blue")

        def __call__(self, frames_THW3):
            with CALLS.open("a") as calls:
                calls.write(f"{os.getpid()} {len(frames_THW3)}\\n")
            return rule(frames_THW3)


    class Batchwise(Teacher):
        """The label maps of a frame depend on the whole batch."""

        name = "batch dependent"
        pause = 0.0

        def __call__(self, frames_THW3):
            time.sleep(self.pause)
            labels_THW = super().__call__(frames_THW3)
            shift = (int(frames_THW3.sum(dtype=np.int64)) + len(frames_THW3)) % 4
            return np.where(labels_THW == 255, 255, (labels_THW + shift) % 4).astype(np.uint8)


    class Slow(Batchwise):
        pause = 0.04


    class Renamed(Teacher):
        classes = ("background", "rot", "green", "blue")


    class Fails(Batchwise):
        error = RuntimeError

        def __call__(self, frames_THW3):
            labels_THW = super().__call__(frames_THW3)
            if len(CALLS.read_text().splitlines()) == 30:
                raise self.error("out of paint")
            return labels_THW


    class FailsOtherwise(Fails):
        error = ValueError


    class Forgets(Teacher):
        """At its last batch it deletes finished label maps."""

        def __call__(self, frames_THW3):
            if len(CALLS.read_text().splitlines() if CALLS.exists() else []) == 15:
                next(Path(__file__).with_name("labels").rglob("[!.]*.npz")).unlink()
            return super().__call__(frames_THW3)
'''
NAMES = ("background", "red", "green", "blue")


def rule(frames_THW3):
    strongest, weakest = frames_THW3.max(3), frames_THW3.min(3)
    labels_THW = np.where(strongest - weakest > 15, frames_THW3.argmax(3) + 1, 0)
    return np.where(weakest > 180, 255, labels_THW)


@pytest.fixture
def workshop(tmp_path):
    """The folder of the teachers, where they record their calls."""
    (tmp_path / "teachers.py").write_text(textwrap.dedent(TEACHERS))
    return tmp_path


@pytest.fixture
def annotate(workshop, capfd):
    """Runs the job in this process and returns its exit status, stdout and stderr."""

    def run(data, out, *options, teacher="Teacher"):
        capfd.readouterr()
        status = main(arguments(data, workshop, teacher, out, *options))
        return status, *capfd.readouterr()

    return run


def arguments(data, workshop, teacher, out, *options):
    words = ["annotate", data, "--teacher", f"{workshop / 'teachers.py'}:{teacher}", "--out", out, *options]
    if "--workers" not in options:
        words += ["--workers", 0]
    return [str(word) for word in words]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(airstreams.__file__).parents[1])}


def start(*words, **options):
    """Start the job in a process of its own."""
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def calls(workshop):
    """The process and the number of frames of each call of the teacher."""
    path = workshop / "calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def content(folder):
    """All files, temporary ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def film(path, frames=8, size=(64, 48), seed=0, key_every=4):
    """Write a video of coloured blocks, (width, height) px, 10 frames per second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    draw = np.random.default_rng(seed)
    blocks = draw.integers(0, 256, (frames, 3, 4, 3), np.uint8)
    blocks[:, 0, 0] = 255  # the rule gives no label
    blocks[:, 1, 1] = 90  # background
    rows, columns = np.arange(height) * 3 // height, np.arange(width) * 4 // width
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(10), options={"g": str(key_every), "bf": "0", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for picture in blocks[:, rows][:, :, columns]:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv444p")))
        out.mux(stream.encode(None))
    return path


def break_midway(path, frame=8):
    """Damage one key frame, so that only the frames before it can be decoded."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][frame]
    data = bytearray(path.read_bytes())
    for position in range(packet.pos + packet.size // 4, packet.pos + packet.size // 4 + 20):
        data[position] ^= 0xA5
    path.write_bytes(data)


# The content of the store


def test_every_nth_frame_has_the_teachers_label_map(annotate, synthetic, tmp_path):
    out = tmp_path / "labels"
    status, _, stderr = annotate(synthetic / "videos", out, "--stride", 3, "--batch-size", 7, "--workers", 2)
    assert status == 0, stderr
    assert json.loads((out / "labels.json").read_text()) == {
        "teacher": "rule",
        "classes": list(NAMES),
        "settings": {"stride": 3, "max_side": None, "classes": None},
    }
    source = open_source(str(synthetic / "videos"), out)
    assert len(source.videos) == 32
    for video in source.videos:
        assert source.label_store.labelled_frames(video.label_map).tolist() == [0, 3, 6]  # type: ignore[arg-type, union-attr]
        read = source.label_store.read(video.label_map, range(8))  # type: ignore[arg-type, union-attr]
        np.testing.assert_array_equal(read[[0, 3, 6]], rule(read_frames(video.path, [0, 3, 6])))  # type: ignore[index]
        assert (read[[1, 2, 4, 5, 7]] == 255).all()  # type: ignore[index]
    assert len(content(out)) == 34  # with labels.json and contents.csv
    assert not (out / "left_out.csv").exists()


def test_only_the_frames_of_segments_are_labelled(annotate, tmp_path):
    long, short = film(tmp_path / "films" / "long.mp4", frames=40), film(tmp_path / "films" / "short.mp4", seed=1)
    (tmp_path / "list.csv").write_text(
        "path,label,start,end\n"
        "films/long.mp4,wave,0.45,1.05\n"  # frames 5 to 10
        "films/long.mp4,jump,0.95,1.25\n"  # frames 10 to 12
        "films/long.mp4,wave,3.65,\n"  # frames 37 to 39
        "films/short.mp4,jump,,\n"
    )
    out = tmp_path / "labels"
    found = json.loads(annotate(tmp_path / "list.csv", out, "--stride", 2, "--json")[1])
    assert (found["videos"], found["labelled"], found["frames"]) == (2, 2, 5 + 4)
    store = LabelStore.open(out)
    for path, key, indices in ((long, "films/long", [6, 8, 10, 12, 38]), (short, "films/short", [0, 2, 4, 6])):
        assert store.labelled_frames(key).tolist() == indices
        np.testing.assert_array_equal(store.read(key, indices), rule(read_frames(path, indices)))
    assert len(open_source(str(tmp_path / "list.csv"), out).videos) == 4


def test_a_segment_shorter_than_the_stride_has_no_label_map(annotate, tmp_path):
    film(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("path,label,start,end\na.mp4,wave,0.05,0.35\n")  # frames 1 to 3
    status, out, _ = annotate(tmp_path / "list.csv", tmp_path / "labels", "--stride", 4, "--json")
    assert json.loads(out)["missing"] == []
    assert status == 0


SIZES = {"a": (64, 48), "b": (64, 48), "c": (30, 60), "d": (16, 16), "e": (64, 36), "f": (64, 48)}


@pytest.fixture
def several_sizes(tmp_path):
    for seed, (name, size) in enumerate(SIZES.items()):
        film(tmp_path / "films" / "wave" / f"{name}.mp4", size=size, seed=seed)
    return tmp_path / "films"


def test_large_frames_are_reduced_and_sizes_are_not_mixed_in_a_batch(annotate, several_sizes, workshop, tmp_path):
    out = tmp_path / "labels"
    status, _, stderr = annotate(several_sizes, out, "--max-side", 32, "--batch-size", 6)
    assert status == 0, stderr
    store = LabelStore.open(out)
    shapes = {"a": (24, 32), "b": (24, 32), "c": (32, 16), "d": (16, 16), "e": (18, 32), "f": (24, 32)}
    for name, shape in shapes.items():
        read = store.read(f"wave/{name}", range(8))
        frames = read_frames(several_sizes / "wave" / f"{name}.mp4", range(8), short_side=min(shape))
        assert read.shape == (8, *shape)  # type: ignore[union-attr]
        np.testing.assert_array_equal(read, rule(frames))
    # A batch may have frames of two videos, but never of two sizes.
    assert [count for _, count in calls(workshop)] == [6, 6, 4, 6, 2, 6, 2, 6, 2, 6, 2]


def test_no_side_exceeds_max_side(annotate, several_sizes, tmp_path):
    annotate(several_sizes, tmp_path / "labels", "--max-side", 17, "--stride", 8)
    store = LabelStore.open(tmp_path / "labels")
    sides = {name: max(store.read(f"wave/{name}", [0]).shape[1:]) for name in SIZES}  # type: ignore[union-attr]
    assert 15 < max(sides.values()) <= 17, sides


def test_classes_that_are_not_kept_become_background(annotate, several_sizes, tmp_path):
    out = tmp_path / "labels"
    status, _, stderr = annotate(several_sizes, out, "--classes", "blue, red,blue")
    assert status == 0, stderr
    store = LabelStore.open(out)
    assert store.classes == ("background", "blue", "red")
    assert store.settings["classes"] == ["blue", "red", "blue"]
    label_maps = rule(read_frames(several_sizes / "wave" / "a.mp4", range(8)))
    assert set(np.unique(label_maps)) == {0, 1, 2, 3, 255}
    for theirs, ours in {0: 0, 1: 2, 2: 0, 3: 1, 255: 255}.items():
        assert (store.read("wave/a", range(8))[label_maps == theirs] == ours).all()  # type: ignore[index]


def test_batches_are_full_across_videos(annotate, synthetic, workshop, tmp_path):
    annotate(synthetic / "videos", tmp_path / "labels", "--batch-size", 20, "--stride", 2)
    # Two groups of 16 videos with four frames each.
    assert [count for _, count in calls(workshop)] == [20, 20, 20, 4] * 2


@pytest.fixture(scope="module")
def uninterrupted(synthetic, tmp_path_factory):
    """The store that the batch-dependent teacher makes without interruption."""
    workshop = tmp_path_factory.mktemp("uninterrupted")
    (workshop / "teachers.py").write_text(textwrap.dedent(TEACHERS))
    assert main(arguments(synthetic / "videos", workshop, "Batchwise", workshop / "labels", "--batch-size", 5)) == 0
    assert [count for _, count in calls(workshop)] == [*[5] * 25, 3] * 2
    return workshop / "labels"


def test_the_store_does_not_depend_on_the_number_of_workers(annotate, synthetic, uninterrupted, tmp_path):
    for workers in (1, 3):
        out = tmp_path / str(workers)
        assert annotate(synthetic / "videos", out, "--batch-size", 5, "--workers", workers, teacher="Batchwise")[0] == 0
        assert content(out) == content(uninterrupted)
    other = tmp_path / "other"
    annotate(synthetic / "videos", other, "--batch-size", 6, teacher="Batchwise")
    assert content(other) != content(uninterrupted)  # so the check above would notice other batches


# Interruptions


def wait_for(process, reached):
    deadline = time.monotonic() + 60
    while process.poll() is None and not reached() and time.monotonic() < deadline:
        time.sleep(0.003)
    assert reached()


def test_a_killed_job_resumes_to_the_same_bytes(annotate, synthetic, uninterrupted, workshop, tmp_path):
    out = tmp_path / "labels"
    command = arguments(synthetic / "videos", workshop, "Slow", out, "--batch-size", 5, "--workers", 1)
    some = random.randrange(2, 20)  # at least 26 calls are left by then
    moments = [
        lambda: len(calls(workshop)) >= 7,  # before any file is finished
        lambda: any(out.rglob("[0-9]*.npz")),  # while the files of a group are renamed, or soon after
        lambda: sum(pid == processes[-1].pid for pid, _ in calls(workshop)) >= some,
    ]
    held: set[Any] = set()
    processes: list[Any] = []
    for number, moment in enumerate(moments):
        process = Call(main, command, output=tmp_path / "output.txt", new_group=True)
        processes.append(process)
        wait_for(process, moment)
        if number:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        assert process.wait() == -signal.SIGKILL  # the loader processes have ended, too
        finished = {name for name in content(out) if not Path(name).name.startswith(".")}
        assert held <= finished  # finished files are never lost
        held = finished
        for name in finished:
            assert (out / name).read_bytes() == content(uninterrupted)[name]
    assert len(held) < 33
    assert annotate(synthetic / "videos", out, "--batch-size", 5, teacher="Batchwise")[0] == 0
    assert content(out) == content(uninterrupted)


@pytest.mark.parametrize("lost", [["test/disc_up/001"], ["train/square_up/00" + n for n in "135"]])
def test_only_the_interrupted_group_is_annotated_again(annotate, synthetic, uninterrupted, workshop, tmp_path, lost):
    out = shutil.copytree(uninterrupted, tmp_path / "labels")
    for key in lost:
        file = out / f"{key}.npz"
        file.rename(file.with_name(f".17.{file.name}"))  # the temporary file of a killed process
    assert annotate(synthetic / "videos", out, "--batch-size", 5, teacher="Batchwise")[0] == 0
    assert content(out) == content(uninterrupted)
    assert [count for _, count in calls(workshop)] == [*[5] * 25, 3]


@pytest.mark.parametrize("left", [".17.labels.json", ".17.left_out.csv", "test/disc_up/.17.000.npz"])
def test_temporary_files_of_a_killed_process_are_removed(annotate, synthetic, uninterrupted, workshop, tmp_path, left):
    out = shutil.copytree(uninterrupted, tmp_path / "labels")
    (out / left).write_bytes(b"half")
    status, printed, _ = annotate(synthetic / "videos", out, "--batch-size", 5, "--json", teacher="Batchwise")
    assert (status, json.loads(printed)["frames"], calls(workshop)) == (0, 0, [])
    assert content(out) == content(uninterrupted)


def test_a_job_killed_at_its_first_file_starts_again(annotate, synthetic, uninterrupted, tmp_path):
    out = tmp_path / "labels"
    out.mkdir()
    (out / ".17.labels.json").write_bytes(b'{"teacher": ')
    status, _, stderr = annotate(synthetic / "videos", out, "--batch-size", 5, teacher="Batchwise")
    assert status == 0, stderr
    assert content(out) == content(uninterrupted)


def test_finished_files_with_a_leading_dot_are_kept(annotate, workshop, tmp_path):
    film(tmp_path / ".hidden.mp4")
    (tmp_path / "list.csv").write_text("path,label\n.hidden.mp4,wave\n")
    for _ in range(2):
        assert annotate(tmp_path / "list.csv", tmp_path / "labels")[0] == 0
    assert len(calls(workshop)) == 1


def test_a_keyboard_interrupt_leaves_no_traceback(annotate, synthetic, uninterrupted, workshop, tmp_path):
    out = tmp_path / "labels"
    command = arguments(synthetic / "videos", workshop, "Slow", out, "--batch-size", 5, "--workers", 2)
    for _ in range(3):  # about once in a hundred times Python loses an interrupt during a finaliser
        process = start("-m", "airstreams", *command, start_new_session=True)
        before = len(calls(workshop))
        wait_for(process, lambda before=before: len(calls(workshop)) >= before + 3)
        os.killpg(process.pid, signal.SIGINT)  # as from a terminal: the loader processes get it too
        _, stderr = process.communicate(timeout=120)
        if process.returncode:
            break
        shutil.rmtree(out)
    assert process.returncode == 1
    assert stderr.splitlines()[-1].startswith("airstreams: interrupted")
    assert "Traceback" not in stderr
    assert set(content(out)) == {"labels.json", "contents.csv"}


@pytest.mark.parametrize("teacher", ["Fails", "FailsOtherwise"])
def test_a_failing_teacher_leaves_only_finished_files(annotate, synthetic, workshop, tmp_path, teacher):
    out = tmp_path / "labels"
    options = ("--batch-size", 5, "--workers", 1)
    status, printed, stderr = annotate(synthetic / "videos", out, *options, teacher=teacher)
    assert (status, printed) == (1, "")
    assert "out of paint" in stderr
    assert "Traceback" not in stderr
    assert len(content(out)) == 2 + 16  # the first group's
    assert annotate(synthetic / "videos", out, *options, teacher="Batchwise")[0] == 0
    assert len(content(out)) == 2 + 32
    assert [count for _, count in calls(workshop)[30:]] == [*[5] * 25, 3]


# Bad videos


@pytest.fixture
def bad_ones(tmp_path):
    """Eight videos, three of them damaged in different ways. `good/` has undamaged copies."""
    for number in range(8):
        film(tmp_path / "good" / "wave" / f"{number}.mp4", frames=16, seed=number)
    folder = shutil.copytree(tmp_path / "good", tmp_path / "films") / "wave"
    (folder / "1.mp4").write_text("Not a film at all.\n" * 40)
    (folder / "4.mp4").write_bytes((folder / "4.mp4").read_bytes()[:2000])
    break_midway(folder / "6.mp4")
    return folder.parent


def test_bad_videos_are_left_out_with_their_reasons(annotate, bad_ones, workshop, tmp_path):
    out = tmp_path / "labels"
    status, printed, stderr = annotate(bad_ones, out, "--batch-size", 3, "--json")
    assert status == 1
    found = json.loads(printed)
    assert {"videos", "labelled", "frames", "seconds", "left_out", "missing"} == set(found)
    assert (found["videos"], found["labelled"], found["missing"]) == (8, 5, [])
    reasons = {item["path"]: item["reason"] for item in found["left_out"]}
    paths = [str(bad_ones / "wave" / f"{number}.mp4") for number in (1, 4, 6)]
    assert list(reasons) == paths
    assert [reasons[path].split(":")[0] for path in paths] == ["not a video", "truncated", "unreadable"]
    assert "annotating: 96 of 96 frames in" in stderr  # of the 6 files whose header can be read
    assert 5 * 16 < found["frames"] == sum(count for _, count in calls(workshop)) < 6 * 16  # and some of the bad one
    files = content(out)
    about = {"labels.json", "contents.csv", "left_out.csv"}
    assert set(files) == {*about, *(f"wave/{number}.npz" for number in (0, 2, 3, 5, 7))}
    rows = list(csv.reader(files["left_out.csv"].decode().splitlines()))
    assert rows == [["path", "reason"], *([path, reasons[path]] for path in paths)]

    # The same call again does not call the teacher.
    before = len(calls(workshop))
    status, printed, _ = annotate(bad_ones, out, "--batch-size", 3)
    assert status == 1
    for path in paths:
        assert f"{path}: {reasons[path]}" in printed
    assert "5 of 8 files" in printed
    assert "0 frames" in printed
    assert content(out) == files
    assert len(calls(workshop)) == before

    # One video is repaired, then all.
    for numbers, status in (((1,), 1), ((4, 6), 0)):
        for number in numbers:
            shutil.copy(tmp_path / "good" / "wave" / f"{number}.mp4", bad_ones / "wave" / f"{number}.mp4")
        assert annotate(bad_ones, out, "--batch-size", 3)[0] == status
        assert (out / "wave" / "1.npz").exists()
        assert (out / "left_out.csv").exists() == bool(status)
    annotate(tmp_path / "good", tmp_path / "fresh", "--batch-size", 3)
    assert content(out) == content(tmp_path / "fresh")


def test_a_known_bad_video_is_not_annotated_again(annotate, workshop, tmp_path):
    break_midway(film(tmp_path / "films" / "wave" / "a.mp4", frames=16))
    answers = [annotate(tmp_path / "films", tmp_path / "labels", "--batch-size", 4) for _ in range(2)]
    assert [status for status, _, _ in answers] == [1, 1]
    assert set(content(tmp_path / "labels")) == {"labels.json", "contents.csv", "left_out.csv"}
    assert sum(count for _, count in calls(workshop)) == 8  # those before the damage, once


def test_renamed_videos_are_not_annotated_again(annotate, workshop, tmp_path):
    for number in range(3):
        film(tmp_path / "films" / "wave" / f"{number}.mp4", seed=number)
    assert annotate(tmp_path / "films", tmp_path / "labels")[0] == 0
    before, files = len(calls(workshop)), content(tmp_path / "labels")
    rows = ["path,label"]
    for number in range(3):
        (tmp_path / "films" / "wave" / f"{number}.mp4").rename(tmp_path / f"new {number}.mp4")
        rows.append(f"new {number}.mp4,wave")
    (tmp_path / "list.csv").write_text("\n".join(rows))
    status, printed, stderr = annotate(tmp_path / "list.csv", tmp_path / "labels")
    assert (status, len(calls(workshop)), content(tmp_path / "labels")) == (0, before, files)
    assert "3 files under other names" in stderr
    assert "3 of 3 files labelled" in printed
    film(tmp_path / "new 3.mp4", seed=3)
    (tmp_path / "list.csv").write_text("\n".join([*rows, "new 3.mp4,wave"]))
    assert annotate(tmp_path / "list.csv", tmp_path / "labels")[0] == 0
    assert set(content(tmp_path / "labels")) == {*files, "new 3.npz"}


def test_lost_files_are_reported_as_missing(annotate, synthetic, workshop, tmp_path):
    out = tmp_path / "labels"
    status, printed, _ = annotate(synthetic / "videos", out, "--json", teacher="Forgets")
    found = json.loads(printed)
    assert status == 1
    assert (found["labelled"], len(found["missing"]), found["left_out"]) == (31, 1, [])
    assert str(synthetic / "videos") in found["missing"][0]
    assert annotate(synthetic / "videos", out)[0] == 0
    assert len(content(out)) == 34


# Several processes


TWO_JOBS = """
    # Two jobs of two processes. In the second one the processes do not share a disk: each has a folder of its own.
    import json
    import os
    import sys
    from pathlib import Path

    from airstreams.cli import main

    rank = os.environ["RANK"]
    shared, not_shared = json.loads(sys.argv[1])
    not_shared[not_shared.index("--out") + 1] += rank
    statuses = [main(shared)]
    sys.stdout.flush()
    os.dup2(sys.stdout.fileno(), 1)  # under torchrun the first call made it stderr
    statuses += [main(not_shared)]
    Path(__file__).with_name(f"statuses{rank}.json").write_text(json.dumps(statuses))
"""


@pytest.fixture(scope="module")
def two_processes(synthetic, tmp_path_factory):
    """The folder in which two processes did the jobs of `TWO_JOBS`, and what they printed: JSON for each job."""
    folder = tmp_path_factory.mktemp("two_processes")
    (folder / "teachers.py").write_text(textwrap.dedent(TEACHERS))
    (folder / "two_jobs.py").write_text(textwrap.dedent(TWO_JOBS))
    videos = shutil.copytree(synthetic / "videos", folder / "videos")
    (videos / "train" / "square_up" / "003.mp4").write_bytes(b"")
    shared = arguments(videos, folder, "Batchwise", folder / "two", "--batch-size", 5, "--json", "--workers", 1)
    not_shared = arguments(synthetic / "videos", folder, "Teacher", folder / "labels", "--json")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(*launcher, str(folder / "two_jobs.py"), json.dumps([shared, not_shared]))
    printed, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    statuses = [json.loads((folder / f"statuses{rank}.json").read_text()) for rank in (0, 1)]
    assert statuses == [[1, 1], [0, 0]], stderr  # the main process reports for both
    return folder, [json.loads(line) for line in printed.splitlines()], stderr


def test_two_processes_write_the_same_store_as_one(annotate, two_processes):
    folder, (found, _), stderr = two_processes
    status, printed, _ = annotate(folder / "videos", folder / "one", "--batch-size", 5, "--json", teacher="Batchwise")
    alone = json.loads(printed)
    assert (status, alone["labelled"]) == (1, 31)
    assert {**found, "seconds": 0} == {**alone, "seconds": 0}
    assert content(folder / "two") == content(folder / "one")
    assert len({pid for pid, count in calls(folder) if count == 5}) == 2  # both worked on the first job
    assert stderr.count(f"annotating: {alone['frames']} frames\n") == 1


def test_files_on_another_disk_are_reported_as_missing(synthetic, two_processes):
    folder, (_, found), _ = two_processes
    assert (found["videos"], found["labelled"], found["left_out"]) == (32, 16, [])
    done = {str(path.relative_to(folder / "labels0").with_suffix("")) for path in folder.glob("labels0/**/*.npz")}
    names = {str(Path(path).relative_to(synthetic / "videos").with_suffix("")) for path in found["missing"]}
    assert len(done) == len(names) == 16
    assert not done & names


# Refusals


@pytest.mark.parametrize(
    ("options", "teacher", "words"),
    [
        ((), "Batchwise", ("teacher", "rule", "batch dependent")),
        (("--stride", 2), "Teacher", ("stride 1", "2")),
        (("--max-side", 32), "Teacher", ("max_side None", "32")),
        (("--classes", "red"), "Teacher", ("classes None", "['red']")),
        ((), "Renamed", ("classes", "rot")),
    ],
)
def test_a_store_with_other_settings_is_refused(annotate, several_sizes, workshop, tmp_path, options, teacher, words):
    out = tmp_path / "labels"
    annotate(several_sizes, out)
    (out / "wave" / "a.npz").unlink()
    (out / "wave" / ".17.b.npz").write_bytes(b"of a running job")
    files, before = content(out), len(calls(workshop))
    line = refusal(annotate(several_sizes, out, *options, teacher=teacher))
    assert all(word in line for word in (*words, str(out)))
    assert content(out) == files
    assert len(calls(workshop)) == before


def refusal(answer):
    status, printed, stderr = answer
    assert (status, printed) == (2, ""), stderr
    assert len(stderr.splitlines()) == 1, stderr
    assert stderr.startswith("airstreams: ")
    return stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--classes", "red,pink"), ("--classes", "pink", "red, green, blue")),
        (("--classes", "red,"), ("--classes", "red, green, blue")),
        (("--classes", ""), ("--classes", "red, green, blue")),
        (("--stride", 0), ("--stride 0",)),
        (("--stride", "1.5"), ("stride",)),
        (("--max-side", 15), ("--max-side 15",)),
        (("--batch-size", 0), ("--batch-size 0",)),
        (("--workers", -1), ("--workers -1",)),
        (("--score-threshold", 2), ("score_threshold", "2")),
        (("--score-threshold", 0.3), ("score_threshold=0.3",)),  # its factory takes no options
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(annotate, several_sizes, tmp_path, options, words):
    line = refusal(annotate(several_sizes, tmp_path / "labels", *options))
    assert all(word in line for word in words)
    assert not (tmp_path / "labels").exists()


def test_a_folder_that_is_not_a_store_is_refused(annotate, several_sizes, tmp_path):
    out = tmp_path / "labels"
    out.mkdir()
    (out / "thesis.tex").write_text("three years of work")
    assert str(out) in refusal(annotate(several_sizes, out))
    (out / "labels.json").write_text("[]")
    files = content(out)
    line = refusal(annotate(several_sizes, out))
    assert all(word in line for word in ("labels.json", "teacher, classes, settings"))
    assert content(out) == files


def test_a_store_that_another_job_writes_is_refused(annotate, several_sizes, workshop, held, tmp_path):
    with held(tmp_path / "labels"):
        line = refusal(annotate(several_sizes, tmp_path / "labels"))
    assert str(tmp_path / "labels") in line
    assert "annotating" in line
    assert calls(workshop) == []


def test_an_unwritable_folder_is_refused(annotate, several_sizes, workshop, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "labels", tmp_path / "file" / "a" / "b"):
        assert str(out) in refusal(annotate(several_sizes, out))
    assert (tmp_path / "file").read_text() == "mine"
    if Path("/proc/self").exists():
        assert "/proc/labels" in refusal(annotate(several_sizes, Path("/proc/labels")))
    assert calls(workshop) == []


# Memory


def test_a_long_video_is_not_held_in_memory(annotate, workshop, tmp_path):
    frames, size = 600, (128, 96)
    film(tmp_path / "films" / "wave" / "long.mp4", frames=frames, size=size, key_every=50)
    tracemalloc.start()
    status, _, stderr = annotate(tmp_path / "films", tmp_path / "labels", "--batch-size", 8)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert status == 0, stderr
    assert [count for _, count in calls(workshop)] == [8] * (frames // 8)
    assert most < frames * size[0] * size[1] * 3 / 4
    labels = LabelStore.open(tmp_path / "labels").read("wave/long", range(0, frames, 37))
    truth = rule(read_frames(tmp_path / "films" / "wave" / "long.mp4", range(0, frames, 37)))
    np.testing.assert_array_equal(labels, truth)


class Own:
    """A teacher of a user who calls from Python."""

    def __init__(self, maps=lambda frames: np.ones(frames.shape[:3], np.uint8), name="own", classes=NAMES[:2]):
        self.maps, self.name, self.classes = maps, name, classes

    def __call__(self, frames_THW3):
        return self.maps(frames_THW3)


def job_of(synthetic, teacher, out):
    videos = open_source(str(synthetic / "videos")).videos[:4]
    return job.annotate(videos, teacher, job.Settings(stride=4), out, 3, 0, Console(quiet=True))


def test_any_object_with_the_interface_is_a_teacher(synthetic, tmp_path):
    assert job_of(synthetic, Own(), tmp_path / "labels").frames == 8
    store = LabelStore.open(tmp_path / "labels")
    assert (store.teacher, store.classes) == ("own", ("background", "red"))
    assert len(list(store.keys())) == 4
    assert all(np.all(store.read(key, [0, 4]) == 1) for key in list(store.keys()))
    assert job_of(synthetic, Own(classes=["background", "red"]), tmp_path / "labels").frames == 0


@pytest.mark.parametrize(
    ("teacher", "error", "match"),
    [
        (Own(lambda frames: np.full(frames.shape[:3], 2, np.uint8)), RuntimeError, "own .*class id 2"),
        (Own(lambda frames: np.ones(frames.shape[:3], int)), RuntimeError, "own .*int64"),
        (Own(lambda frames: np.ones((1, 64, 64), np.uint8)), RuntimeError, r"own .*\(1, 64, 64\).*uint8 \(3,"),
        (Own(classes=["person", "red"]), InputError, "own .*'person'"),
        (Own(name=None), InputError, "Own .*None"),
        (np.zeros, InputError, "None"),
    ],
)
def test_objects_without_the_interface_are_refused(synthetic, tmp_path, teacher, error, match):
    with pytest.raises(error, match=match) as raised:
        job_of(synthetic, teacher, tmp_path / "labels")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.npz"))


def test_the_teacher_in_the_docs_draws_coloured_pixels(synthetic, tmp_path, monkeypatch, capfd):
    (code,) = blocks(page("labels.md"), "python")
    (command,) = blocks(page("labels.md"), "sh")
    monkeypatch.chdir(tmp_path)
    Path("my_teacher.py").write_text(code)
    Path("videos").symlink_to(synthetic / "videos")
    words = command.split()
    assert words[0] == "airstreams"
    assert main([*words[1:], "--stride", "8", "--workers", "0"]) == 0
    store = LabelStore.open(Path("labels"))
    assert (store.teacher, store.classes) == ("colours-1", NAMES)
    keys = list(store.keys())
    frames_THW3 = np.concatenate([read_frames(synthetic / "videos" / f"{key}.mp4", [0]) for key in keys]).astype(int)
    coloured = frames_THW3.max(axis=3) - frames_THW3.min(axis=3) > 60
    assert 0.001 < coloured.mean() < 0.999
    maps = np.concatenate([np.asarray(store.read(key, [0])) for key in keys])
    np.testing.assert_array_equal(maps, np.where(coloured, 1 + frames_THW3.argmax(axis=3), 0))
