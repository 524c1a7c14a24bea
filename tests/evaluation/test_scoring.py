"""Scores agree with those of single views, single heads and single videos."""

import copy
import multiprocessing
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from airstreams.config import EvaluationConfig
from airstreams.data.dataset import VideoViews, Views
from airstreams.data.targets import ClassesPerPixel, Targets
from airstreams.errors import VideoError
from airstreams.evaluation.scoring import CLIPS_AT_ONCE, ClipsAtOnce, metrics_of, score_videos, score_views, targets_of
from airstreams.runs import saved_model as saved_models


@pytest.fixture(scope="module")
def saved(trained):
    return saved_models.load(trained)


def clips_of(video, config):
    views = VideoViews([video], config)[0]
    assert isinstance(views, Views), views
    return views.clips


def test_a_score_is_the_mean_over_the_views(saved, source):
    config = replace(saved.config, evaluation=EvaluationConfig(views=CLIPS_AT_ONCE + 3))
    clips = clips_of(source.split("test")[0], config)
    assert len(clips) > CLIPS_AT_ONCE
    averaged, *_ = score_views(saved, clips, ["merged", "rgb"])
    for head in ("merged", "rgb"):
        with torch.inference_mode():
            singly = [saved.model(clip[None].permute(0, 4, 1, 2, 3), [head]).logits[head] for clip in clips]
        assert torch.allclose(averaged[head], torch.cat(singly).softmax(dim=1).mean(dim=0), atol=1e-6)


def test_a_card_with_too_little_memory_scores_fewer_clips_at_once(saved, source):
    clips = clips_of(source.split("test")[0], replace(saved.config, evaluation=EvaluationConfig(views=7)))
    expected, *_ = score_views(saved, clips, ["merged"])
    sizes: list[int] = []
    remarks: list[str] = []

    class Small:
        """A model on a card with room for some clips."""

        parameters = saved.model.parameters

        def __init__(self, room):
            self.room = room

        def __call__(self, clips_B3THW, heads):
            sizes.append(len(clips_B3THW))
            if len(clips_B3THW) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return saved.model(clips_B3THW, heads)

    at_once = ClipsAtOnce(remarks.append)
    for _ in range(2):
        averaged, *_ = score_views(replace(saved, model=Small(2)), clips, ["merged"], at_once)
        assert torch.allclose(averaged["merged"], expected["merged"], atol=1e-6)
    assert sizes == [7, 7, 4, 2, 2, 2, 1, 2, 2, 2, 1]  # 16, 8, 4, 2 at once; the second video begins with 2
    assert len(remarks) == 3

    with pytest.raises(torch.OutOfMemoryError):
        score_views(replace(saved, model=Small(0)), clips, ["merged"])


def test_heads_score_the_same_alone_and_together(saved, source):
    clips = clips_of(source.split("test")[0], saved.config)
    together, *_ = score_views(saved, clips, ["rgb", "flow", "merged"])
    for head in together:
        alone, *_ = score_views(saved, clips, [head])
        assert torch.allclose(alone[head], together[head], atol=1e-6)


def test_videos_score_the_same_alone_and_together(saved, source):
    videos = source.split("test")
    together = score_videos(saved, videos)
    for number, video in enumerate(videos):
        alone = score_videos(saved, [video])
        for head in ("rgb", "flow", "merged"):
            assert alone.probabilities[head][0] == pytest.approx(together.probabilities[head][number], abs=1e-6)


def test_only_trained_heads_are_scored(saved, source):
    scores = score_videos(saved, source.split("test"))
    assert set(scores.probabilities) == {"rgb", "flow", "merged"}
    streams = metrics_of(saved, scores).streams
    assert list(streams) == ["rgb", "flow", "semantic", "merged"]
    assert streams["semantic"].top1 is None
    for head in ("rgb", "flow", "merged"):
        right = scores.probabilities[head].argmax(axis=1) == targets_of(saved, scores.videos)
        assert streams[head].top1 == pytest.approx(right.mean())


def test_a_bad_video_is_left_out_and_changes_no_other_score(saved, source, tmp_path):
    good = list(source.split("test"))
    (tmp_path / "broken.mp4").write_bytes(good[1].path.read_bytes()[:300])
    broken = replace(good[1], name="broken", path=tmp_path / "broken.mp4")
    scores = score_videos(saved, [good[0], broken, *good[1:]])
    assert scores.videos == good
    assert [bad.video.name for bad in scores.left_out] == ["broken"]
    assert scores.left_out[0].reason
    assert np.array_equal(scores.probabilities["merged"], score_videos(saved, good).probabilities["merged"])
    metrics = metrics_of(saved, scores)
    assert (metrics.videos, metrics.left_out) == (8, 1)
    with pytest.raises(VideoError, match="none of 1 videos"):
        score_videos(saved, [broken])


def test_scores_do_not_depend_on_the_number_of_workers(saved, source):
    alone, helped = (score_videos(saved, source.split("test"), workers=workers) for workers in (0, 2))
    assert helped.videos == alone.videos
    assert np.array_equal(helped.probabilities["merged"], alone.probabilities["merged"])


def test_an_error_leaves_no_process_behind(saved, source):
    impossible = replace(source.split("test")[0], start="soon")
    with pytest.raises(Exception, match="DataLoader worker") as caught:
        score_videos(saved, [impossible], workers=1)
    assert caught.tb is not None
    assert not multiprocessing.active_children()


@pytest.fixture
def little_shared_memory():
    """Files, which shared memory consists of, may not exceed 50 kB; the views of a video take 98 kB."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes shared memory of files")
def test_too_little_shared_memory_is_an_error(saved, source, little_shared_memory):
    def give_up(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with pytest.raises(RuntimeError, match=r"shared memory.*0 workers"):
            score_videos(saved, source.split("test"), workers=1)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere loaders start as torch does by default")
def test_loaders_work_with_forkserver_as_start_method(saved, source):
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)  # the default from Python 3.14 on
    try:
        assert len(score_videos(saved, source.split("test"), workers=1).videos) == 8
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_segmentation_metrics_agree_with_counting_frame_by_frame(saved, source, tmp_path):
    """The disc plays the person; its mask is shifted against the teacher's label map."""
    classes = ("background", "person", *saved.segment_classes[2:])
    store = replace(source.label_store, classes=classes)
    targets = {"semantic": Targets(ClassesPerPixel(), store)}
    masked = replace(source.split("test")[0], mask=tmp_path / "mask.npz")
    assert masked.labels == ("disc_left",)
    np.savez(masked.mask, mask=np.roll(store.read(masked.label_map, range(8)) == 1, 2, axis=1))
    videos = [masked, source.split("test")[2]]
    saved = replace(saved, segment_classes=classes, model=copy.deepcopy(saved.model))
    segmenter = saved.model.representations["semantic"].segmenter
    # The trained segmenter may predict one class everywhere. Let it predict a person where a feature is above its mean.
    with torch.no_grad():
        torch.nn.init.zeros_(segmenter.classifier.bias)
        torch.nn.init.zeros_(segmenter.classifier.weight)[1].normal_(generator=torch.Generator().manual_seed(0))
        frames_N3HW = clips_of(masked, saved.config).flatten(0, 1).permute(0, 3, 1, 2) / 255 - 0.5
        segmenter.classifier.bias[1] = -segmenter(frames_N3HW)[:, 1].mean()

    counts = np.zeros((len(classes), len(classes)), int)
    overlaps = {"person_iou": np.zeros(2), "teacher_person_iou": np.zeros(2)}
    for video in videos:
        views = VideoViews([video], saved.config, targets, masks=True)[0]
        assert isinstance(views, Views)
        for view, clip in enumerate(views.clips):
            for t, frame_HW3 in enumerate(clip):
                with torch.inference_mode():
                    logits_1Shw = segmenter(frame_HW3.permute(2, 0, 1)[None] / 255 - 0.5)
                found_HW = F.interpolate(logits_1Shw, (64, 64), mode="bilinear")[0].argmax(dim=0).numpy()
                label_map_HW = views.label_maps["semantic"][view, t].numpy()
                np.add.at(counts, (label_map_HW, found_HW), 1)
                if views.masks is not None:
                    mask_HW = views.masks[view, t].numpy() == 1
                    for name, person_HW in (("person_iou", found_HW == 1), ("teacher_person_iou", label_map_HW == 1)):
                        overlaps[name] += (person_HW & mask_HW).sum(), (person_HW | mask_HW).sum()

    scored = score_videos(saved, videos, targets).segmentation
    assert scored is not None
    assert scored.pixel_accuracy == pytest.approx(np.trace(counts) / counts.sum())
    occurring = np.flatnonzero(counts.sum(axis=1))
    unions = [counts[n].sum() + counts[:, n].sum() - counts[n, n] for n in occurring]
    assert scored.miou == pytest.approx(np.mean(counts[occurring, occurring] / unions))
    for name, (both, either) in overlaps.items():
        assert 0 < both < either
        assert getattr(scored, name) == pytest.approx(both / either)


def test_segmentation_is_scored_only_with_label_maps(saved, source):
    assert score_videos(saved, source.split("test")).segmentation is None
    targets = {"semantic": Targets(ClassesPerPixel(), source.label_store)}
    scored = score_videos(saved, source.split("test"), targets).segmentation
    assert scored is not None
    assert 0 <= scored.miou <= scored.pixel_accuracy <= 1
    # The object covers about a tenth of the frame, so a 4x4 grid keeps most of it.
    assert 0.85 < scored.ceiling.pixel_accuracy < 1
    assert scored.ceiling.miou > 0.5
    assert scored.person_iou is None
