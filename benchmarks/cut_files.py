"""Whether a file that was cut can give a wrong frame, and whether each kind of whole file is accepted.

    python benchmarks/cut_files.py
    python benchmarks/cut_files.py --cuts 8 --containers mp4 ts_h264_b --no-whole

It renders a video in 14 containers, and cuts each file at many places: half of them anywhere, half in its last
twentieth. Each cut file goes through `check`, and then through `read_frames` without `check`. Every frame that is
returned must equal the frame of the whole file with the same index. Then it renders whole files of many kinds: each
must be accepted, with all its frames.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from airstreams.data.video import check, forget_files, probe, read_frames
from airstreams.errors import VideoError

WIDTH, HEIGHT = 96, 64
END = 0.05  # the part of a file that gets half of the cuts
B_FRAMES = {"bf": "3", "g": "12"}
NO_B_FRAMES = {"bf": "0", "g": "12"}
X265 = {"x265-params": "keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0:log-level=none"}
VPX = {"g": "12", "cpu-used": "8", "deadline": "realtime"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
LIVE = {"live": "1"}


@dataclass(frozen=True)
class Kind:
    """How a file is written.

    suffix: of the file's name.
    codec, options: of the pictures.
    muxer: options of the container.
    sound: whether it has a sound track.
    change: what is done to the file's bytes afterwards.
    uncertain: number of frames at the end that may be left out, since nothing in the file says that they are whole.
    pixels: FFmpeg's name of their format.
    """

    suffix: str
    codec: str
    options: Mapping[str, str] = field(default_factory=dict)
    muxer: Mapping[str, str] = field(default_factory=dict)
    sound: bool = False
    change: Callable[[bytes], bytes] = bytes
    uncertain: int = 0
    pixels: str = "yuv420p"


CONTAINERS = {
    "mp4": Kind(".mp4", "libx264", B_FRAMES),
    "mp4_fragments": Kind(".mp4", "libx264", B_FRAMES, FRAGMENTS),
    "mkv": Kind(".mkv", "libx264", B_FRAMES),
    "mkv_live": Kind(".mkv", "libx264", B_FRAMES, LIVE),
    "webm_live": Kind(".webm", "libvpx-vp9", VPX, LIVE),
    "ts_h264": Kind(".ts", "libx264", NO_B_FRAMES),
    "ts_h264_b": Kind(".ts", "libx264", B_FRAMES),
    "ts_hevc": Kind(".ts", "libx265", X265),
    "ts_mpeg2": Kind(".ts", "mpeg2video", B_FRAMES),
    "mpg": Kind(".mpg", "mpeg2video", B_FRAMES),
    "avi": Kind(".avi", "mpeg4", B_FRAMES),
    "flv": Kind(".flv", "libx264", B_FRAMES),
    "gif": Kind(".gif", "gif", pixels="rgb8"),
    "raw_h264": Kind(".h264", "libx264", B_FRAMES, uncertain=3),
}


def _padded(data: bytes) -> bytes:
    return data + bytes(3000)


WHOLE = CONTAINERS | {
    "mp4_faststart": Kind(".mp4", "libx264", B_FRAMES, {"movflags": "faststart"}, sound=True),
    "mp4_sidx": Kind(".mp4", "libx264", B_FRAMES, {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"}),
    "mp4_fragment_for_a_frame": Kind(".mp4", "libx264", NO_B_FRAMES, {"movflags": "frag_every_frame+empty_moov"}),
    "mp4_fragments_with_sound": Kind(".mp4", "libx264", B_FRAMES, FRAGMENTS, sound=True),
    "mp4_padded": Kind(".mp4", "libx264", B_FRAMES, change=_padded),
    "mp4_reserved_index": Kind(".mp4", "libx264", B_FRAMES, {"moov_size": "20000"}),
    "mov": Kind(".mov", "libx264", B_FRAMES, sound=True),
    "mov_prores": Kind(".mov", "prores_ks", pixels="yuv422p10le"),
    "mkv_without_checksums": Kind(".mkv", "libx264", B_FRAMES, {"write_crc32": "0"}),
    "mkv_reserved_index": Kind(".mkv", "libx264", B_FRAMES, {"reserve_index_space": "5000"}, sound=True),
    "mkv_short_clusters": Kind(".mkv", "libx265", X265, {"cluster_time_limit": "200"}),
    "mkv_live_with_sound": Kind(".mkv", "libx264", NO_B_FRAMES, LIVE, sound=True),
    "mkv_padded": Kind(".mkv", "libx264", B_FRAMES, change=_padded),
    "webm": Kind(".webm", "libvpx-vp9", VPX),
    "ts_with_sound": Kind(".ts", "libx264", B_FRAMES, sound=True),
    "m2ts": Kind(".m2ts", "libx264", B_FRAMES, {"mpegts_m2ts_mode": "1"}),
    "m2ts_with_sound": Kind(".m2ts", "libx264", NO_B_FRAMES, {"mpegts_m2ts_mode": "1"}, sound=True),
    "ts_padded": Kind(".ts", "libx264", NO_B_FRAMES, change=_padded),
    "ts_joined": Kind(".ts", "libx264", B_FRAMES, change=lambda data: data + data),
    "vob": Kind(".vob", "mpeg2video", B_FRAMES, sound=True),
    "mpg_mpeg1": Kind(".mpg", "mpeg1video", B_FRAMES),
    "avi_mjpeg": Kind(".avi", "mjpeg", pixels="yuvj420p"),
    "avi_with_sound": Kind(".avi", "mpeg4", NO_B_FRAMES, sound=True),
    "flv_without_duration": Kind(".flv", "libx264", NO_B_FRAMES, {"flvflags": "no_duration_filesize"}, sound=True),
    "ogg_vp8": Kind(".ogg", "libvpx", VPX),
    "gif_with_bytes_after": Kind(".gif", "gif", pixels="rgb8", change=lambda data: data + b"after"),
    "asf": Kind(".asf", "msmpeg4", NO_B_FRAMES),
    "ivf": Kind(".ivf", "libvpx-vp9", VPX),
}


def pictures(number: int) -> list[np.ndarray]:
    """Pictures that all differ from each other, everywhere: noise on a square that moves."""
    draw = np.random.default_rng(0)
    images = []
    for index in range(number):
        image = draw.integers(60, 120, (HEIGHT, WIDTH, 3))
        left = 5 * index % (WIDTH - 16)
        image[index % (HEIGHT - 16) :][:16, left : left + 16] += 100
        images.append(image.astype(np.uint8))
    return images


def render(path: Path, kind: Kind, images: Sequence[np.ndarray]) -> Path:
    """Write the pictures as a file of a kind, with 30 per second."""
    with av.open(str(path), "w", options=dict(kind.muxer)) as out:
        stream = out.add_stream(kind.codec, rate=30, options=dict(kind.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, kind.pixels
        stream.codec_context.time_base = Fraction(1, 30)
        codec = "mp2" if kind.suffix in (".vob", ".avi", ".ts", ".m2ts") else "aac"
        sound = out.add_stream(codec, rate=48000, layout="stereo") if kind.sound else None
        assert sound is None or isinstance(sound, AudioStream)
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=kind.pixels)
            frame.pts, frame.time_base = index, Fraction(1, 30)
            out.mux(stream.encode(frame))
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.int16), format="s16", layout="stereo")
                silence.sample_rate, silence.pts, silence.time_base = 48000, 1600 * index, Fraction(1, 48000)
                out.mux(sound.encode(silence))
        out.mux(stream.encode(None))
        if sound is not None:
            out.mux(sound.encode(None))
    path.write_bytes(kind.change(path.read_bytes()))
    return path


def frames_of(path: Path) -> np.ndarray:
    """All frames by a plain loop from the beginning: the reference."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def places(length: int, cuts: int, draw: random.Random) -> list[int]:
    """Lengths of cut files: half of the cuts anywhere, half near the end."""
    anywhere = [draw.randrange(1, length) for _ in range(cuts // 2)]
    return anywhere + [draw.randrange(int(length * (1 - END)), length) for _ in range(cuts - cuts // 2)]


def outcome_of_check(path: Path, right: np.ndarray) -> str:
    """Whether `check` refuses a file, or accepts it with right frames, or with a wrong one."""
    forget_files()
    try:
        info = check(path)
        frames = read_frames(path, range(info.frames))
    except VideoError:
        return "refused"
    return "accepted" if np.array_equal(frames, right[: len(frames)]) else "accepted, wrong"


def outcome_of_reading(path: Path, right: np.ndarray, draw: random.Random) -> str:
    """The same of `read_frames` without `check`: the last frames and some others, each alone."""
    forget_files()
    read = False
    try:
        frames = probe(path).frames
    except VideoError:
        return "refused"
    for index in {*range(max(0, frames - 4), frames), *(draw.randrange(frames) for _ in range(4))}:
        try:
            frame = read_frames(path, [index])[0]
        except VideoError:
            continue
        read = True
        if index >= len(right) or not np.array_equal(frame, right[index]):
            return "accepted, wrong"
    return "accepted" if read else "refused"


def cut(name: str, folder: Path, frames: int, cuts: int, seed: int) -> dict[str, Counter[str]]:
    """The outcomes for a container by what read the files: `check` and `read`."""
    kind = CONTAINERS[name]
    whole = render(folder / f"{name}{kind.suffix}", kind, pictures(frames))
    data, right = whole.read_bytes(), frames_of(whole)
    draw = random.Random(f"{name} {seed}")
    outcomes: dict[str, Counter[str]] = {"check": Counter(), "read": Counter()}
    path = folder / f"cut_{name}{kind.suffix}"
    for length in places(len(data), cuts, draw):
        path.write_bytes(data[:length])
        checked, read = outcome_of_check(path, right), outcome_of_reading(path, right, draw)
        outcomes["check"][checked] += 1
        outcomes["read"][read] += 1
        for way, outcome in (("check", checked), ("read", read)):
            if outcome.endswith("wrong"):
                print(f"{name} cut at byte {length} of {len(data)}: wrong frame after {way}", file=sys.stderr)
    return outcomes


def whole(name: str, folder: Path, frames: int) -> str:
    """`sound`, or what is wrong with the answer about a whole file."""
    kind = WHOLE[name]
    path = render(folder / f"whole_{name}{kind.suffix}", kind, pictures(frames))
    right = frames_of(path)
    forget_files()
    try:
        info = check(path)
        read = read_frames(path, range(info.frames))
    except VideoError as error:
        return error.reason
    if not len(right) - kind.uncertain <= info.frames <= len(right):
        return f"{info.frames} of {len(right)} frames"
    return "sound" if np.array_equal(read, right[: info.frames]) else "a wrong frame"


def main() -> None:
    """Print the counts; exit with 1 if there was a wrong frame, or a whole file was refused."""
    parser = argparse.ArgumentParser(description="Cut files at many places, and look for wrong frames.")
    parser.add_argument("--cuts", type=int, default=80, help="of each container (default: 80)")
    parser.add_argument("--frames", type=int, default=60, help="of each video (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--containers", nargs="+", default=list(CONTAINERS), choices=CONTAINERS, metavar="NAME")
    parser.add_argument("--no-whole", action="store_true", help="leave out the whole files")
    call = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"{'container':16}{'check: refused':>16}{'accepted':>10}{'wrong':>7}{'read: refused':>16}{'wrong':>7}")
        for name in call.containers:
            outcomes = cut(name, folder, call.frames, call.cuts, call.seed)
            checked, read = outcomes["check"], outcomes["read"]
            failures += checked["accepted, wrong"] + read["accepted, wrong"]
            print(
                f"{name:16}{checked['refused']:16}{checked['accepted']:10}{checked['accepted, wrong']:7}"
                f"{read['refused']:16}{read['accepted, wrong']:7}",
                flush=True,
            )
        if not call.no_whole:
            answers = {name: whole(name, folder, call.frames) for name in WHOLE}
            bad = {name: answer for name, answer in answers.items() if answer != "sound"}
            failures += len(bad)
            print(f"whole files: {len(answers) - len(bad)} of {len(answers)} accepted with the right frames")
            for name, answer in bad.items():
                print(f"  {name}: {answer}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
