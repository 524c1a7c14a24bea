"""Predictions, compared with evaluation's scores of the same files and parts of files."""

import csv
import json
import pickle
import shutil
import threading
import weakref
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from rich.console import Console

import airstreams
from airstreams.data import dataset, transforms
from airstreams.data.clips import frame_range
from airstreams.data.listing import Video
from airstreams.data.sources import open_source
from airstreams.data.synthetic import make_clip, render
from airstreams.data.video import iterate_frames, probe, read_frames
from airstreams.errors import InputError, VideoError
from airstreams.evaluation.evaluate import evaluate
from airstreams.evaluation.scoring import score_videos
from airstreams.inference.recogniser import Prediction, Recogniser
from airstreams.models.airstreams import build
from airstreams.runs import saved_model as saved_models


def test_neither_prediction_nor_evaluation_unpickles_anything(run, synthetic, monkeypatch):
    """Also where the run's folder has files that would run code when unpickled."""

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    (run / "model.pt").write_bytes(b"not to be read")
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    assert len(airstreams.load(run).predict(video).probabilities) == 4
    saved = saved_models.load(run)
    saved.config.data.workers = 0
    assert len(score_videos(saved, [Video(video, "a", ("disc_up",))]).videos) == 1


def with_window(run, seconds):
    saved = saved_models.load(run)
    saved.config.evaluation.window = seconds
    saved_models.save(saved, run)
    return run


def scored(run, videos):
    """Evaluation's probabilities: video name to class name to probability."""
    saved = saved_models.load(run)
    scores = score_videos(saved, videos)
    rows = scores.probabilities["merged"]
    names = [video.name for video in scores.videos]
    return {name: dict(zip(saved.classes, row, strict=True)) for name, row in zip(names, rows, strict=True)}


def assert_same(probabilities, expected):
    assert probabilities == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-5)


def test_predict_gives_the_scores_of_evaluate(run, synthetic):
    evaluate(run, open_source(str(synthetic / "videos")), "test", Console(quiet=True))
    with (run / "evaluation" / "test" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    recogniser = Recogniser(run, "cpu")
    for row in reversed(rows):  # in another order than evaluation's: a video must not depend on the one before
        probabilities = recogniser.predict(synthetic / "videos" / row["name"]).probabilities
        assert_same(probabilities, {name: row[name] for name in probabilities})
        assert next(iter(probabilities)) == row["predicted"]
    assert len({row["square_up"] for row in rows}) == 8, "equal scores for all videos would prove nothing"


def test_the_mean_logits_of_all_trained_heads_give_the_answer_of_evaluate_and_predict(run, synthetic):
    saved = saved_models.load(run)
    saved.config.model.answer = "mean"
    saved.config.evaluation.views = 1
    saved_models.save(saved, run)
    result = evaluate(run, open_source(str(synthetic / "videos")), "test", Console(quiet=True))
    of_heads = score_videos(saved, result.videos).probabilities
    product_NK = np.prod([of_heads[head] for head in ("rgb", "flow", "merged")], axis=0) ** (1 / 3)
    mean_NK = product_NK / product_NK.sum(axis=1, keepdims=True)
    assert list(of_heads) == ["rgb", "flow", "merged", "answer"]
    assert np.abs(mean_NK - of_heads["merged"]).max() > 0.001
    targets = np.array([saved.classes.index(video.labels[0]) for video in result.videos])
    assert list(result.metrics.streams) == ["rgb", "flow", "semantic", "merged", "answer"]
    assert result.metrics.top1 == result.metrics.streams["answer"].top1 == np.mean(mean_NK.argmax(axis=1) == targets)
    recogniser = Recogniser(run, "cpu")
    with (run / "evaluation" / "test" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, video, mean_K in zip(rows, result.videos, mean_NK, strict=True):
        mean = dict(zip(saved.classes, mean_K, strict=True))
        assert_same({name: float(row[name]) for name in saved.classes}, mean)
        assert_same(recogniser.predict(video.path).probabilities, mean)
    weights = saved.model.state_dict()
    lengths = [weights[f"late.{head}.classifier.weight"].shape[1] for head in ("rgb", "flow", "merged")]
    assert recogniser.features(result.videos[0].path).shape == (sum(lengths),)


def test_predict_needs_the_two_files_of_the_model_alone(run, synthetic, tmp_path):
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("model.json", "model.safetensors"):
        shutil.copy(run / name, alone)
    assert airstreams.load(alone).predict(video) == airstreams.load(run).predict(video)


def test_probabilities_are_named_surest_first_and_sum_to_one(trained, synthetic):
    prediction = airstreams.load(str(trained)).predict(str(synthetic / "videos" / "test" / "disc_up" / "001.mp4"))
    values = list(prediction.probabilities.values())
    assert set(prediction.probabilities) == {"disc_left", "disc_up", "square_left", "square_up"}
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert prediction.windows == []


@pytest.mark.parametrize(
    ("seconds", "suffix"), [(0.5, ".mp4"), (0.7, ".mp4"), (0.8, ".mp4"), (1.2, ".mp4"), (0.7, ".avi")]
)
def test_windows_cover_every_frame_once_and_score_their_own_frames(run, tmp_path, seconds, suffix):
    root = tmp_path / "long"
    render(root, ("disc",), ("up",), {"test": 1}, frames=30, size=64, seed=1, fps=10)
    path = root / "videos" / "test" / "disc_up" / "000.mp4"
    if suffix == ".avi":  # where frames are found by counting
        path = in_avi(path)
    prediction = Recogniser(with_window(run, seconds), "cpu").predict(path)
    windows = prediction.windows
    assert windows[0].start == 0
    assert windows[-1].end == pytest.approx(3.0)
    assert all(seconds / 2 <= window.end - window.start <= 1.5 * seconds for window in windows)
    parts = [Video(path, f"{w.start}", (), start=w.start, end=w.end) for w in windows]
    covered = [np.arange(part.first, part.last + 1) for part in map(frame_range, parts)]
    assert np.concatenate(covered).tolist() == list(range(30))

    expected = scored(run, parts)
    for window, part in zip(windows, parts, strict=True):
        assert_same(window.probabilities, expected[part.name])
    mean = {name: np.mean([w.probabilities[name] for w in windows]) for name in prediction.probabilities}
    assert_same(prediction.probabilities, mean)


def test_a_long_video_is_never_held_as_a_whole(run, tmp_path, monkeypatch):
    render(tmp_path, ("disc",), ("up",), {"test": 1}, frames=300, size=64, seed=1, fps=10)
    decoded: list[weakref.ref[np.ndarray]] = []
    held: list[int] = []

    def iterate(path, short_side, places, deinterlace):
        for frame in iterate_frames(path, short_side, places, deinterlace):
            held.append(sum(reference() is not None for reference in decoded))
            decoded.append(weakref.ref(frame))
            yield frame
            del frame

    monkeypatch.setattr(dataset, "iterate_frames", iterate)
    recogniser = Recogniser(with_window(run, 1.0), "cpu")
    assert len(recogniser.predict(tmp_path / "videos" / "test" / "disc_up" / "000.mp4").windows) == 30
    assert len(decoded) > 200
    assert max(held) < 40  # of two windows


def test_many_videos_get_the_answers_of_one_at_a_time(run, videos):
    """In order, with windows for some, and with an error in place of a bad file's answer."""
    paths = sorted((videos / "test").rglob("*.mp4"))
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    recogniser = Recogniser(run, "cpu")
    segment = Video(paths[0], "a segment", (), start=0.1, end=0.2)
    for window in (None, 0.07):
        results = list(recogniser.predict_many(iter([*paths, segment]), workers=3, window=window))
        assert len(results) == len(paths) + 1
        for path, result in zip(paths, results, strict=False):
            if path == paths[3]:
                assert isinstance(result, VideoError)
                assert result.path == path
                continue
            alone = recogniser.predict(path, window=window)
            assert isinstance(result, Prediction)
            assert result.probabilities == pytest.approx(alone.probabilities, abs=1e-6)
            assert [(w.start, w.end) for w in result.windows] == [(w.start, w.end) for w in alone.windows]
        assert isinstance(results[-1], Prediction)
        assert results[-1].probabilities == pytest.approx(scored(run, [segment])["a segment"], abs=1e-6)


def test_many_videos_are_taken_a_few_at_a_time(run, synthetic):
    path = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    recogniser = Recogniser(run, "cpu")
    threads = threading.active_count()
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield path

    results = recogniser.predict_many(endless())
    for _ in range(3):
        next(results)
    assert taken < 100
    results.close()
    assert threading.active_count() == threads
    with pytest.raises(InputError, match="workers"):
        recogniser.predict_many([path], workers=0)
    with pytest.raises(InputError, match="videos"):
        list(recogniser.predict_many([3]))  # type: ignore[list-item]


def in_avi(path):
    """The same frames in MPEG-4 part 2."""
    with av.open(path.with_suffix(".avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in read_frames(path, range(30)):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.with_suffix(".avi")


def test_a_video_of_two_windows_or_less_has_none(run, synthetic):
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"  # 8 frames at 30 per second: 0.27 s
    assert airstreams.load(with_window(run, 0.134)).predict(video).windows == []
    assert len(airstreams.load(with_window(run, 0.13)).predict(video).windows) == 2


def test_a_window_without_frames_is_left_out(run, tmp_path):
    times_ms = [0, 100, 200, 950, 1000, 1100]
    clip = make_clip("disc", "up", len(times_ms), 64, np.random.default_rng(0))
    _write(tmp_path / "still.mkv", clip.frames, times_ms)
    prediction = Recogniser(with_window(run, 0.3), "cpu").predict(tmp_path / "still.mkv")
    assert [window.start for window in prediction.windows] == pytest.approx([0, 0.9])  # none from 0.3 s and 0.6 s on
    assert len(prediction.probabilities) == 4


@pytest.mark.parametrize("streams", [["rgb", "flow", "semantic"], ["rgb"]])
def test_the_answers_classifier_turns_features_into_its_logits(run, synthetic, streams):
    """Also where the head of a single stream answers."""
    saved = saved_models.load(run)
    saved.config.evaluation.views = 1
    if streams == ["rgb"]:
        saved.config.model.streams = streams
        saved.model = build(saved.config.model, 4, len(saved.segment_classes))
    saved_models.save(saved, run)
    video = synthetic / "videos" / "test" / "disc_up" / "000.mp4"
    recogniser = Recogniser(run, "cpu")
    features = recogniser.features(video)
    assert features.dtype == np.float32
    weights = recogniser.saved.model.state_dict()
    classifier = f"late.{'merged' if len(streams) > 1 else 'rgb'}.classifier"
    logits = weights[f"{classifier}.weight"].numpy() @ features + weights[f"{classifier}.bias"].numpy()
    exponentials = np.exp(logits - logits.max())
    assert_same(
        recogniser.predict(video).probabilities,
        dict(zip(saved.classes, exponentials / exponentials.sum(), strict=True)),
    )


def test_features_are_the_mean_over_the_views(run, synthetic):
    recogniser = Recogniser(run, "cpu")
    recogniser.saved.config.evaluation.views = 3
    video = synthetic / "videos" / "test" / "square_left" / "001.mp4"
    seen: list[torch.Tensor] = []
    classifier = recogniser.saved.model.get_submodule("late.merged.classifier")
    classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    features = recogniser.features(video)
    (of_views,) = seen
    assert of_views.shape == (3, len(features))
    assert of_views.std(dim=0).max() > 1e-3
    np.testing.assert_allclose(features, of_views.numpy().mean(axis=0), rtol=1e-5)


def assert_frames_answer_as_their_file(recogniser, path, abs):
    info = probe(path)
    whole = recogniser.predict_frames(read_frames(path, range(info.frames)), info.fps)
    expected = recogniser.predict(path)
    for got, of_file in zip([whole, *whole.windows], [expected, *expected.windows], strict=True):
        assert got.probabilities == pytest.approx(of_file.probabilities, abs=abs)
    for got, of_file in zip(whole.windows, expected.windows, strict=True):
        assert (got.start, got.end) == pytest.approx((of_file.start, of_file.end))
    return whole


@pytest.mark.parametrize("rate", [None, 7.0, 8.0])  # 8 of 10 per second: halfway between two frames
@pytest.mark.parametrize(("frames", "windows"), [(3, 0), (12, 0), (30, 4)])
def test_frames_of_a_file_get_the_answer_of_the_file(run, tmp_path, rate, frames, windows):
    render(tmp_path, ("disc",), ("up",), {"test": 1}, frames=frames, size=64, seed=1, fps=10)
    recogniser = Recogniser(with_window(run, 0.7), "cpu")
    recogniser.saved.config.clip.rate = rate
    path = tmp_path / "videos" / "test" / "disc_up" / "000.mp4"
    assert len(assert_frames_answer_as_their_file(recogniser, path, abs=0).windows) == windows


def test_the_rate_of_frames_decides_windows_and_clips(run):
    frames = make_clip("disc", "up", 24, 64, np.random.default_rng(0)).frames
    recogniser = Recogniser(with_window(run, 1.0), "cpu")
    assert [(w.start, w.end) for w in recogniser.predict_frames(frames, 8).windows] == [(0, 1), (1, 2), (2, 3)]
    assert recogniser.predict_frames(frames, 12).windows == []
    recogniser.saved.config.clip.rate = 12
    twice = np.repeat(frames, 2, axis=0)
    assert recogniser.predict_frames(twice[:-1], 24) == recogniser.predict_frames(frames, 12)


def test_large_frames_are_reduced_as_a_files_are(run, tmp_path):
    render(tmp_path, ("disc",), ("up",), {"test": 1}, frames=8, size=160, seed=1, fps=10)
    path = tmp_path / "videos" / "test" / "disc_up" / "000.mp4"
    recogniser = Recogniser(run, "cpu")
    side = recogniser.saved.config.decoded_side
    expected = read_frames(path, range(8), side).astype(float)
    reduced = np.stack([transforms.reduced(frame, side) for frame in read_frames(path, range(8))])
    assert np.abs(reduced - expected).mean() < 2
    whole = assert_frames_answer_as_their_file(recogniser, path, abs=0.01)
    assert recogniser.predict_frames(reduced, probe(path).fps) == whole


@pytest.mark.parametrize(
    ("frames", "fps", "words"),
    [
        (np.zeros((8, 64, 64, 3), np.float32), 30, r"got float32 \(8, 64, 64, 3\)"),
        (np.zeros((8, 3, 64, 64), np.uint8), 30, r"got uint8 \(8, 3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.uint8), 30, r"got uint8 \(64, 64, 3\)"),
        (np.zeros((0, 64, 64, 3), np.uint8), 30, r"got uint8 \(0, 64, 64, 3\)"),
        ([np.zeros((64, 64, 3), np.uint8)], 30, "got list"),
        (torch.zeros((8, 64, 64, 3), dtype=torch.uint8), 30, "got Tensor"),
        (np.zeros((8, 64, 64, 3), np.uint8), 0, "fps: got 0"),
        (np.zeros((8, 64, 64, 3), np.uint8), None, "fps: got None"),
        (np.zeros((8, 64, 64, 3), np.uint8), float("nan"), "fps: got nan"),
    ],
)
def test_wrong_frames_and_rates_are_refused(trained, frames, fps, words):
    with pytest.raises(InputError, match=words) as raised:
        Recogniser(trained, "cpu").predict_frames(frames, fps)
    assert "\n" not in str(raised.value)


def test_a_damaged_file_is_refused_with_its_reason(trained, tmp_path):
    render(tmp_path, ("disc",), ("up",), {"test": 1}, frames=30, size=64, seed=1)
    whole = (tmp_path / "videos" / "test" / "disc_up" / "000.mp4").read_bytes()
    recogniser = airstreams.load(trained)
    for name, content, reason in (
        ("half.mp4", whole[: len(whole) // 2], "truncated"),
        ("most.mp4", whole[: len(whole) * 9 // 10], "truncated"),
        ("text.mp4", b"Not a film at all.\n" * 50, "not a video"),
        ("empty.mp4", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=reason):
            recogniser.predict(tmp_path / name)
    with pytest.raises(VideoError, match="does not exist"):
        recogniser.predict(tmp_path / "absent.mp4")


def test_a_file_without_its_end_but_with_its_index_is_refused(trained, tmp_path):
    """The index comes first in such a file (faststart), so it opens without an error."""
    clip = make_clip("disc", "up", 30, 64, np.random.default_rng(0))
    whole = tmp_path / "whole.mp4"
    _write(whole, clip.frames, movflags="+faststart")
    recogniser = airstreams.load(trained)
    recogniser.predict(whole)
    content = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(VideoError, match="truncated"):
        recogniser.predict(tmp_path / "cut.mp4")


def _write(path, frames_THW3, times_ms=None, **options):
    """30 fps unless `times_ms` says when each frame is shown."""
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream("libx264", rate=30)
        stream.height, stream.width = frames_THW3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(frames_THW3):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def test_missing_and_damaged_runs_are_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"model\.json"):
        airstreams.load(tmp_path)
    weights = run / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        airstreams.load(run)
    (run / "model.json").write_text("{")
    with pytest.raises(InputError, match=r"model\.json"):
        airstreams.load(run)


def test_the_device_is_the_callers_choice(trained, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {parameter.device.type for parameter in airstreams.load(trained, "cpu").saved.model.parameters()} == {"cpu"}


@pytest.mark.parametrize("device", ["cuda:99", "cudda"])
def test_a_missing_device_is_refused(trained, device):
    with pytest.raises(InputError, match=f"^device: got {device}") as raised:
        airstreams.load(trained, device)
    assert "\n" not in str(raised.value)


def test_weights_of_another_model_are_refused(run):
    description = json.loads((run / "model.json").read_text())
    description["classes"] = description["classes"][:3]
    (run / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"model\.json"):
        airstreams.load(run)
