"""Videos whose frames are flat greys that encode their number, so a clip shows which frames it took."""

import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from airstreams.config import ClipConfig, Config, DataConfig, EvaluationConfig, TrainingConfig
from airstreams.console import Progress
from airstreams.data import label_maps
from airstreams.data.cache import FrameCache
from airstreams.data.check import BadVideo
from airstreams.data.dataset import Sample, StepSampler, TrainingClips, VideoViews, Views
from airstreams.data.listing import Action, Video
from airstreams.data.sources import open_source
from airstreams.data.targets import ClassesPerPixel, Targets
from airstreams.errors import InputError

STEP = 5  # grey levels from one frame to the next


def write_video(path, frames, size=64, times_ms=None):
    """Frame n has the grey 10 + n STEP; 30 fps unless `times_ms` says when each frame is shown."""
    pictures = [np.full((size, size, 3), 10 + number * STEP, np.uint8) for number in range(frames)]
    return write_pictures(path, pictures, times_ms)


def write_pictures(path, pictures, times_ms=None):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "4"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = round(number * 1000 / 30) if times_ms is None else times_ms[number]
            frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbers_in(clip_THW3):
    return [round((float(np.asarray(frame).mean()) - 10) / STEP) for frame in clip_THW3]


def video_at(path, **facts):
    return Video(path=path, name=path.name, labels=("a",), **facts)


def config_of(clip, evaluation=None, seed=0):
    data = DataConfig(colour=0, workers=0)
    return Config(seed=seed, clip=clip, data=data, evaluation=evaluation or EvaluationConfig())


def sample_of(clips, key):
    """A sample that is not a BadVideo."""
    sample = clips[key]
    assert isinstance(sample, Sample), sample
    return sample


def views_of(video, clip, evaluation=None):
    views = VideoViews([video], config_of(clip, evaluation))[0]
    assert isinstance(views, Views), views
    return [numbers_in(view) for view in views.clips]


def targets_of(store):
    return {} if store is None else {"semantic": Targets(ClassesPerPixel(), store)}


def drawn_clips(video, clip, draws=40, label_store=None):
    clips = TrainingClips([video], config_of(clip), ("a",), multi_label=False, targets=targets_of(label_store))
    return [sample_of(clips, (0, draw, 0)) for draw in range(draws)]


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """40 frames at 30 per second."""
    return write_video(tmp_path_factory.mktemp("videos") / "forty.mkv", 40)


@pytest.mark.parametrize(
    "clip", [ClipConfig(4, stride=3, size=64), ClipConfig(4, rate=10, size=64)], ids=["stride", "rate"]
)
def test_training_clips_start_at_every_frame_that_fits(forty, clip):
    clips = [numbers_in(sample.frames) for sample in drawn_clips(video_at(forty), clip, 200)]
    assert all(clip == [clip[0], clip[0] + 3, clip[0] + 6, clip[0] + 9] for clip in clips)
    assert {clip[0] for clip in clips} == set(range(31))


def test_a_rate_takes_the_nearest_frame_at_any_frame_rate(tmp_path, forty):
    at_30_fps = drawn_clips(video_at(forty), ClipConfig(4, rate=10, size=64))
    assert all(np.diff(numbers_in(sample.frames)).tolist() == [3, 3, 3] for sample in at_30_fps)

    # 25 fps, then a frame that is shown for a second, then 25 fps again.
    times = [40 * n for n in range(10)] + [1360 + 40 * n for n in range(10)]
    uneven = write_video(tmp_path / "uneven.mkv", 20, times_ms=times)
    for sample in drawn_clips(video_at(uneven), ClipConfig(6, rate=8, size=64)):
        clip = numbers_in(sample.frames)
        for step, number in enumerate(clip):
            moment = times[clip[0]] + 125 * step
            assert abs(times[number] - moment) == min(abs(time - moment) for time in times)


@pytest.mark.parametrize("fps", [30, 30000 / 1001])
def test_the_files_own_rate_neither_doubles_nor_skips_frames(tmp_path, fps):
    video = write_video(tmp_path / "whole_ms.mkv", 40, times_ms=[round(1000 * n / fps) for n in range(40)])
    for sample in drawn_clips(video_at(video), ClipConfig(16, rate=30, size=64)):
        assert np.diff(numbers_in(sample.frames)).tolist() == [1] * 15


def test_a_clip_longer_than_its_video_repeats_the_last_frame(tmp_path):
    short = write_video(tmp_path / "short.mkv", 5)
    for clip in (ClipConfig(8, stride=1, size=64), ClipConfig(8, rate=30, size=64)):
        for sample in drawn_clips(video_at(short), clip, draws=5):
            assert numbers_in(sample.frames) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert views_of(video_at(short), ClipConfig(8, stride=1, size=64)) == [[0, 1, 2, 3, 4, 4, 4, 4]] * 3


@pytest.mark.parametrize(
    ("clip", "longer"),
    [
        (ClipConfig(4, stride=2, size=64), ClipConfig(4, stride=5, size=64)),
        (ClipConfig(4, rate=15, size=64), ClipConfig(4, rate=6, size=64)),
    ],
    ids=["stride", "rate"],
)
def test_a_segments_clips_stay_inside_it(forty, clip, longer):
    segment = video_at(forty, start=10 / 30 - 0.005, end=20 / 30 - 0.005)  # frames 10 to 19
    clips = [numbers_in(s.frames) for s in drawn_clips(segment, clip, draws=100)]
    assert {clip[0] for clip in clips} == {10, 11, 12, 13}
    assert all(clip[-1] == clip[0] + 6 for clip in clips)
    too_long = [numbers_in(s.frames) for s in drawn_clips(segment, longer, draws=3)]
    assert too_long == [[10, 15, 19, 19]] * 3


def test_a_segment_of_one_frame_repeats_it(forty):
    segment = video_at(forty, start=10 / 30 - 0.005, end=11 / 30 - 0.005)
    assert views_of(segment, ClipConfig(4, stride=2, size=64)) == [[10] * 4] * 3


def test_a_segment_without_frames_is_a_bad_video(forty):
    beyond = video_at(forty, start=5.0, end=6.0)
    clips = TrainingClips([beyond], config_of(ClipConfig(4, size=64)), ("a",), False, {})
    assert isinstance(clips[0, 0, 0], BadVideo)
    assert "5.0 s" in clips[0, 0, 0].reason


def test_views_are_evenly_spaced(forty):
    clip = ClipConfig(4, stride=2, size=64)
    three = views_of(video_at(forty), clip, EvaluationConfig(views=3))
    assert three == [[0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39]]
    assert views_of(video_at(forty), clip, EvaluationConfig(views=1)) == [[16, 18, 20, 22]]


def test_each_view_has_crops_from_side_to_side(tmp_path):
    """In a wide video whose columns get brighter, a crop's brightness shows its position."""
    ramp = np.tile(np.linspace(0, 250, 128).astype(np.uint8)[None, :, None], (64, 1, 3))
    video = video_at(write_pictures(tmp_path / "wide.mp4", [ramp] * 8))
    config = config_of(ClipConfig(frames=2, stride=1, size=64), EvaluationConfig(views=2, crops=3))
    views = VideoViews([video], config)[0]
    assert isinstance(views, Views)
    assert views.clips.shape[:2] == (6, 2)
    brightness = views.clips.float().mean(dim=(1, 2, 3, 4)).tolist()
    assert brightness == pytest.approx([62, 125, 188] * 2, abs=6)


def test_clips_do_not_depend_on_the_number_of_workers(synthetic):
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    config = Config(clip=ClipConfig(4, stride=1, size=64), training=TrainingConfig(batch_size=6))

    def batches(workers):
        clips = TrainingClips(source.split("train"), config, source.classes, False, targets_of(source.label_store))
        sampler = StepSampler([video.labels[0] for video in source.split("train")], config)
        loader = DataLoader(clips, batch_sampler=sampler, num_workers=workers, collate_fn=clips.collate)
        found = []
        for epoch in (0, 1):
            sampler.start(epoch, 0)
            found += list(loader)
        return found

    alone = batches(0)
    assert len(alone) == 8
    for workers in (1, 2):
        for one, other in zip(alone, batches(workers), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(one[:6], other[:6], strict=True))
            assert torch.equal(one.teachers["semantic"], other.teachers["semantic"])
            assert one.names == other.names


def test_clips_depend_on_epoch_seed_and_draw(synthetic):
    source = open_source(str(synthetic / "videos"))

    def clip_of(seed, key):
        config = Config(seed=seed, clip=ClipConfig(4, stride=1, size=64))
        sample = sample_of(TrainingClips(source.split("train"), config, source.classes, False, {}), key)
        return sample.frames.tolist(), sample.box, sample.flip, sample.colour.tolist()

    reference = clip_of(0, (0, 0, 5))
    assert reference == clip_of(0, (0, 0, 5))
    for seed, key in ((0, (1, 0, 5)), (0, (0, 1, 5)), (1, (0, 0, 5))):
        assert not any(one == other for one, other in zip(reference[1::2], clip_of(seed, key)[1::2], strict=True))


def test_label_maps_follow_the_frames_of_the_clip(tmp_path, forty):
    store = label_maps.create(tmp_path, "ruler", [f"class {n}" for n in range(40)], {})
    labels = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None], (40, 24, 24))
    label_maps.save(tmp_path, "forty", labels, range(40))
    for sample in drawn_clips(video_at(forty, label_map="forty"), ClipConfig(4, stride=2, size=64), 20, store):
        assert sample.teachers["semantic"].shape == (4, 16, 16)
        ids = [labels.unique().tolist() for labels in sample.teachers["semantic"]]
        assert ids == [[n] for n in numbers_in(sample.frames)]


def test_label_maps_of_another_video_are_refused(tmp_path, forty):
    store = label_maps.create(tmp_path, "ruler", ["background", "person"], {})
    label_maps.save(tmp_path, "forty", np.ones((41, 24, 24), np.uint8), range(41))
    video, config = video_at(forty, label_map="forty"), config_of(ClipConfig(4, stride=2, size=64))
    for read in (
        TrainingClips([video], config, ("a",), multi_label=False, targets=targets_of(store))[0, 0, 0],
        VideoViews([video], config, targets_of(store))[0],
    ):
        assert isinstance(read, BadVideo)
        assert str(tmp_path / "forty.npz") in read.reason
        assert str(forty) not in read.reason


def test_clips_of_stride_two_start_at_labelled_frames(tmp_path, forty):
    store = label_maps.create(tmp_path, "ruler", ["background", "person"], {})
    label_maps.save(tmp_path, "forty", np.ones((20, 24, 24), np.uint8), range(0, 40, 2))
    video = video_at(forty, label_map="forty")
    samples = drawn_clips(video, ClipConfig(4, stride=2, size=64), 100, store)
    assert all((sample.teachers["semantic"] == 1).all() for sample in samples)
    assert {numbers_in(sample.frames)[0] for sample in samples} == set(range(0, 34, 2))
    # With a stride of 3, every clip has label maps in every second frame, so all starts are used.
    samples = drawn_clips(video, ClipConfig(4, stride=3, size=64), 200, store)
    for sample in samples:
        labelled = [bool((labels == 1).all()) for labels in sample.teachers["semantic"]]
        assert labelled == [number % 2 == 0 for number in numbers_in(sample.frames)]
        assert ((sample.teachers["semantic"] == 1) | (sample.teachers["semantic"] == 255)).all()
    assert {numbers_in(sample.frames)[0] for sample in samples} == set(range(31))


def test_a_video_without_label_maps_is_unlabelled_in_a_batch(tmp_path, forty):
    store = label_maps.create(tmp_path, "ruler", ["background", "person"], {})
    label_maps.save(tmp_path, "forty", np.ones((40, 24, 24), np.uint8), range(40))
    videos = [video_at(forty, label_map="other"), video_at(forty, label_map="forty")]
    clips = TrainingClips(videos, config_of(ClipConfig(4, size=64)), ("a",), False, targets_of(store))
    batch = clips.collate([clips[0, 0, 0], clips[0, 1, 1]])
    assert batch.teachers["semantic"].shape == (2, 4, 16, 16)
    assert (batch.teachers["semantic"][0] == 255).all()
    assert (batch.teachers["semantic"][1] == 1).all()
    assert clips.collate([clips[0, 0, 0]]).teachers == {}


def test_a_broken_video_is_counted_and_never_replaced(tmp_path, forty):
    shutil.copy(forty, tmp_path / "breaks.mkv")
    (tmp_path / "breaks.mkv").write_bytes(b"no video any more")
    videos = [video_at(forty), video_at(tmp_path / "breaks.mkv"), video_at(forty)]
    config = config_of(ClipConfig(4, size=64))
    clips = TrainingClips(videos, config, ("a",), False, {})
    batch = clips.collate([clips[0, draw, draw] for draw in range(3)])
    assert len(batch.frames_BTHW3) == len(batch.target) == len(batch.names) == 2
    assert [bad.video.name for bad in batch.bad_videos] == ["breaks.mkv"]
    assert "not a video" in batch.bad_videos[0].reason
    for row, index in enumerate((0, 2)):
        frames = torch.from_numpy(sample_of(clips, (0, index, index)).frames)
        assert torch.equal(batch.frames_BTHW3[row, :, : frames.shape[1], : frames.shape[2]], frames)
    views = VideoViews(videos, config)
    assert isinstance(views[1], BadVideo)
    only_bad = clips.collate([clips[0, 1, 1]])
    assert (only_bad.names, len(only_bad.bad_videos)) == ([], 1)
    assert not only_bad.frames_BTHW3.any()  # a black clip, so that processes that train together take the same steps


def test_targets_are_class_indices_or_multi_label_rows(forty):
    both, none = replace(video_at(forty), labels=("c", "a")), replace(video_at(forty), labels=())
    config = config_of(ClipConfig(4, size=64))
    single = TrainingClips([replace(both, labels=("c",))], config, ("a", "b", "c"), False, {})
    assert sample_of(single, (0, 0, 0)).target.item() == 2
    multi = TrainingClips([both, none], config, ("a", "b", "c"), True, {})
    assert multi.collate([multi[0, 0, 0], multi[0, 1, 1]]).target.tolist() == [[1, 0, 1], [0, 0, 0]]


def sampler_of(labels, batch_size, process=0, processes=1, accumulate=1, balanced=False):
    training = TrainingConfig(batch_size=batch_size, accumulate=accumulate)
    config = Config(seed=1, data=DataConfig(balanced=balanced), training=training)
    return StepSampler([(label,) if isinstance(label, str) else label for label in labels], config, process, processes)


def test_each_epoch_takes_every_video_once_in_a_new_order():
    sampler = sampler_of(["a"] * 50, batch_size=10)
    orders = []
    for epoch in (0, 1):
        sampler.start(epoch, 0)
        keys = [key for batch in sampler for key in batch]
        assert [key[:2] for key in keys] == [(epoch, draw) for draw in range(50)]
        orders.append([index for _, _, index in keys])
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1]


def test_an_epoch_resumes_at_a_step():
    sampler = sampler_of(["a"] * 50, batch_size=8, accumulate=2)
    sampler.start(3, 0)
    whole = list(sampler)
    assert len(whole) == len(sampler) == 12  # two batches each of six steps; two videos are left
    sampler.start(3, 4)
    assert len(sampler) == 4
    assert list(sampler) == whole[8:]


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 3), (2, 1), (4, 1), (2, 3)])
def test_a_step_takes_the_same_clips_in_any_number_of_processes(processes, accumulate):
    labels = ["a"] * 50
    steps = [sorted(batch) for batch in sampler_of(labels, batch_size=12)]
    shares = [list(sampler_of(labels, 12, process, processes, accumulate)) for process in range(processes)]
    for step, clips in enumerate(steps):
        mine = slice(step * accumulate, (step + 1) * accumulate)
        assert sorted(key for share in shares for batch in share[mine] for key in batch) == clips


def test_a_step_that_cannot_be_divided_evenly_is_refused():
    with pytest.raises(InputError, match=r"training.batch_size: got 12 for 50 videos, expected a multiple of 8 "):
        sampler_of(["a"] * 50, 12, processes=2, accumulate=4)
    with pytest.raises(InputError, match=r"training.batch_size: got 16 for 3 videos"):
        sampler_of(["a"] * 3, 16, processes=4)
    assert [len(batch) for batch in sampler_of(["a"] * 7, 16, processes=2)] == [3]  # fewer videos than a step takes


def test_balanced_sampling_draws_all_classes_equally_often():
    labels = ["common"] * 60 + ["rare"] * 6 + ["middle"] * 24
    sampler = sampler_of(labels, batch_size=9, balanced=True)
    indices = [index for batch in sampler for _, _, index in batch]
    assert len(indices) == 9 * len(sampler) == 90
    assert Counter(labels[index] for index in indices) == {"common": 30, "rare": 30, "middle": 30}
    assert Counter(index for index in indices if labels[index] == "rare") == dict.fromkeys(range(60, 66), 5)
    assert max(Counter(index for index in indices if labels[index] == "common").values()) == 1


def test_balanced_sampling_of_several_labels_draws_each_class_equally_often_for_itself():
    """`rare` occurs only together with `common`, so `common` is seen whenever `rare` is drawn, too."""
    labels = [("common",)] * 60 + [("common", "rare")] * 4 + [("middle",)] * 24 + [()] * 8
    sampler = sampler_of(labels, batch_size=12, balanced=True)
    drawn = [labels[index] for batch in sampler for _, _, index in batch]
    assert len(drawn) == 96
    of_class = Counter(label for names in drawn for label in names or ("none",))
    assert of_class["middle"] == of_class["none"] == 24
    assert 24 <= of_class["rare"] <= 26  # 24 draws of the class `rare`, and a few of 24 among the 64 of `common`
    assert of_class["common"] == 24 + 24


def test_a_clips_target_is_its_active_labels(forty):
    """Frames 0 to 39 at 30 per second; each action covers one frame."""
    actions = tuple(Action(f"frame {n:02}", n / 30 - 0.005, n / 30 + 0.005) for n in range(40))
    video = replace(video_at(forty), labels=tuple(action.label for action in actions), actions=actions)
    clips = TrainingClips([video], config_of(ClipConfig(4, stride=2, size=64)), video.labels, True, {})
    for draw in range(20):
        sample = sample_of(clips, (0, draw, 0))
        first = numbers_in(sample.frames)[0]
        assert sample.target.nonzero().flatten().tolist() == list(range(first, first + 7))


def test_clips_are_the_same_with_a_cache(synthetic, tmp_path):
    source = open_source(str(synthetic / "videos"), synthetic / "labels")
    videos = source.split("train")
    config = Config(clip=ClipConfig(4, stride=1, size=64))
    cache = FrameCache(tmp_path, 10**9, config.decoded_side)
    cache.prepare(videos, source.label_store, Progress(Console(quiet=True)))
    cached = TrainingClips(videos, config, source.classes, False, targets_of(source.label_store), cache)
    plain = TrainingClips(videos, config, source.classes, False, targets_of(source.label_store))
    for index in range(len(videos)):
        one, other = (sample_of(clips, (0, index, index)) for clips in (plain, cached))
        assert np.array_equal(one.frames, other.frames)
        assert torch.equal(one.teachers["semantic"], other.teachers["semantic"])
        assert (one.box, one.flip, one.target) == (other.box, other.flip, other.target)
