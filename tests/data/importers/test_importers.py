"""Files of annotation tools, written by hand in the published formats, become videos and parts with labels."""

import json
import textwrap

import av
import numpy as np
import pytest

from airstreams.commands.command import with_root
from airstreams.data.csv_list import write_csv
from airstreams.data.sources import open_source
from airstreams.errors import InputError


def write_video(path, frames, grey):
    """A video of grey frames, 10 in a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), grey + 5 * index, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two videos of 40 frames at 10 frames per second, one of them in a folder below."""
    made = tmp_path_factory.mktemp("annotated")
    (made / "below").mkdir()
    for grey, name in enumerate(("first.mp4", "below/second clip.mp4")):
        write_video(made / name, 40, grey)
    return made


def parts(source):
    """The videos with their labels and times."""
    return {(video.path.name, video.start, video.end): video.labels for video in source.videos}


def save(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def boris_project(**observation):
    base = {
        "file": {"1": ["/home/someone/films/first.mp4"], "2": []},
        "type": "MEDIA",
        "time offset": 0.0,
        "media_info": {
            "length": {"/home/someone/films/first.mp4": 4.0},
            "fps": {"/home/someone/films/first.mp4": 10.0},
        },
        "events": [
            [0.5, "cat", "walk", "", ""],
            [0.6, "dog", "walk", "", ""],
            [1.5, "cat", "walk", "", ""],
            [1.7, "dog", "jump", "", "a comment", 17],
            [2.0, "dog", "walk", "", ""],
        ],
    }
    kinds = {"0": {"type": "State event", "code": "walk"}, "1": {"type": "Point event", "code": "jump"}}
    return {
        "time_format": "s",
        "project_format_version": "7.0",
        "observations": {"one": base | observation},
        "behaviors_conf": kinds,
    }


def test_boris_projects_have_states_and_points(folder):
    data = save(folder, "project.boris", boris_project())
    source = open_source(data, for_training=False)
    assert parts(source) == {("first.mp4", 0.5, 1.5): ("walk",), ("first.mp4", 0.6, 2.0): ("walk",)}
    assert any("jump" in warning and "around" in warning for warning in source.warnings)
    widened = parts(open_source(f"{data}?around=0.5", for_training=False))
    assert widened["first.mp4", 1.2, 2.2] == ("jump",)
    assert parts(open_source(f"{data}?tier=cat", for_training=False)) == {("first.mp4", 0.5, 1.5): ("walk",)}


def test_a_state_of_boris_without_a_stop_is_ignored_and_named(folder):
    events = [[0.5, "", "walk", "", ""], [1.0, "", "walk", "", ""], [2.0, "", "walk", "", ""]]
    source = open_source(save(folder, "open.boris", boris_project(events=events)), for_training=False)
    assert parts(source) == {("first.mp4", 0.5, 1.0): ("walk",)}
    assert any("walk at 2 s" in warning for warning in source.warnings)


AGGREGATED = """\
Observation id,Media file name,FPS (frame/s),Subject,Behavior,Behavior type,Start (s),Stop (s),Duration (s)
one,first.mp4,10.0,No focal subject,walk,STATE,0.5,1.5,1.0
one,first.mp4,10.0,No focal subject,jump,POINT,2.0,2.0,0
"""
TABULAR = """\
Observation id\tone
Media file(s)

Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus
0.5\tC:\\films\\first.mp4\t4.0\t10.0\t\twalk\t\t\tSTART
1.5\tC:\\films\\first.mp4\t4.0\t10.0\t\twalk\t\t\tSTOP
2.0\tC:\\films\\first.mp4\t4.0\t10.0\t\tjump\t\t\tPOINT
"""


@pytest.mark.parametrize(("name", "content"), [("aggregated.csv", AGGREGATED), ("tabular.tsv", TABULAR)])
def test_boris_exports_are_recognised_by_their_columns(folder, name, content):
    source = open_source(save(folder, name, content), for_training=False)
    assert parts(source) == {("first.mp4", 0.5, 1.5): ("walk",)}
    assert any("jump" in warning for warning in source.warnings)


ELAN = """\
<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-05T10:00:00+01:00" FORMAT="3.0" VERSION="3.0">
  <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/second%20clip.mp4" MIME_TYPE="video/mp4" {origin}/>
    <MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/films/sound.wav" MIME_TYPE="audio/x-wav"/>
  </HEADER>
  <TIME_ORDER>
    <TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1500"/>
    <TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2600"/>
  </TIME_ORDER>
  <TIER LINGUISTIC_TYPE_REF="default" TIER_ID="Actions">
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
      <ANNOTATION_VALUE>wave</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
    <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
      <ANNOTATION_VALUE>clap hands</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
  </TIER>
  {second}
</ANNOTATION_DOCUMENT>
"""
SPEECH = """<TIER TIER_ID="Speech"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts1"
    TIME_SLOT_REF2="ts4"><ANNOTATION_VALUE>hello</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"""


def test_elan_annotations_have_times_in_ms(folder):
    data = save(folder, "one.eaf", ELAN.format(origin="", second=""))
    name = "second clip.mp4"
    assert parts(open_source(data)) == {(name, 0.5, 1.5): ("wave",), (name, 2.0, 2.6): ("clap hands",)}
    later = save(folder, "later.eaf", ELAN.format(origin='TIME_ORIGIN="250"', second=""))
    assert (name, 0.75, 1.75) in parts(open_source(later))


def test_several_tiers_need_a_choice(folder):
    data = save(folder, "two.eaf", ELAN.format(origin="", second=SPEECH))
    with pytest.raises(InputError, match="tier=Actions") as caught:
        open_source(data)
    assert caught.value.__cause__ is None  # the file itself is as ELAN writes it
    assert len(open_source(f"{data}?tier=Actions").videos) == 2
    with pytest.raises(InputError, match="Nobody"):
        open_source(f"{data}?tier=Nobody")


def test_xml_that_defines_entities_is_refused(folder):
    hostile = ELAN.format(origin="", second="").replace(
        "<ANNOTATION_DOCUMENT", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><ANNOTATION_DOCUMENT', 1
    )
    with pytest.raises(InputError, match=r"hostile\.eaf"):
        open_source(save(folder, "hostile.eaf", hostile))


CVAT_VIDEO = """\
<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><id>7</id><name>films</name><size>20</size><mode>interpolation</mode>
    <start_frame>2</start_frame><frame_filter>step=2</frame_filter>
    <labels><label><name>walk</name></label></labels><source>first.mp4</source></task></meta>
  <track id="0" label="walk" source="manual">
    <box frame="1" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/>
    <box frame="2" outside="0" occluded="0" keyframe="0" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/>
    <box frame="3" outside="1" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/>
  </track>
  <track id="1" label="run" source="manual">
    <box frame="16" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/>
    <box frame="18" outside="0" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9" z_order="0"/>
  </track>
</annotations>
"""
CVAT_IMAGES = """\
<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
  <meta><task><id>7</id><mode>annotation</mode></task><source>first.mp4</source></meta>
  <image id="3" name="frame_000003" width="64" height="64"><tag label="walk" source="manual"></tag></image>
  <image id="4" name="frame_000004" width="64" height="64"><tag label="walk" source="manual"></tag></image>
  <image id="9" name="frame_000009" width="64" height="64"><tag label="run" source="manual"></tag></image>
</annotations>
"""


def test_cvat_frames_become_times_of_the_video(folder):
    # Task frame 1 is video frame 2 + 1 * 2 = 4. The part ends where task frame 3 begins, at video frame 8.
    source = open_source(save(folder, "annotations.xml", CVAT_VIDEO))
    assert parts(source) == {("first.mp4", 0.4, 0.8): ("walk",), ("first.mp4", 3.4, None): ("run",)}
    tags = open_source(save(folder, "tags.xml", CVAT_IMAGES))
    assert parts(tags) == {("first.mp4", 0.3, 0.5): ("walk",), ("first.mp4", 0.9, 1.0): ("run",)}


def label_studio_task(video, *results, number=1):
    return {
        "id": number,
        "data": {"video": video},
        "annotations": [{"id": 5, "was_cancelled": False, "result": list(results)}],
        "predictions": [],
    }


def timeline(label, *ranges):
    value = {"ranges": [{"start": first, "end": last} for first, last in ranges], "timelinelabels": [label]}
    return {"from_name": "actions", "to_name": "video", "type": "timelinelabels", "value": value}


def choice(*labels):
    return {"from_name": "kind", "to_name": "video", "type": "choices", "value": {"choices": list(labels)}}


def test_label_studio_has_choices_and_timelines(folder):
    tasks = [
        label_studio_task("/data/upload/3/0a1b2c3d-first.mp4", timeline("walk", (6, 15)), timeline("run", (31, 40))),
        label_studio_task("/data/local-files/?d=below/second%20clip.mp4", timeline("walk", (1, 10)), number=2),
    ]
    source = open_source(save(folder, "export.json", tasks))
    assert parts(source) == {
        ("first.mp4", 0.5, 1.5): ("walk",),
        ("first.mp4", 3.0, None): ("run",),
        ("second clip.mp4", 0.0, 1.0): ("walk",),
    }
    whole = [
        label_studio_task("first.mp4", choice("walk", "outdoors")),
        label_studio_task("below/second clip.mp4", choice("run"), number=2),
    ]
    source = open_source(save(folder, "choices.json", whole))
    assert parts(source) == {
        ("first.mp4", None, None): ("walk", "outdoors"), ("second clip.mp4", None, None): ("run",)
    }  # fmt: skip
    assert source.multi_label


def test_label_studios_short_export_is_read(folder):
    short = [
        {"video": "/data/upload/3/0a1b2c3d-first.mp4", "id": 1, "kind": "walk", "annotator": 1, "lead_time": 3.0},
        {"video": "second clip.mp4", "id": 2, "kind": {"choices": ["run", "walk"]}, "annotator": 1, "lead_time": 3.0},
    ]
    source = open_source(save(folder, "short.json", short))
    assert set(parts(source).values()) == {("walk",), ("run", "walk")}


VIA = {
    "project": {"pid": "__VIA_PROJECT_ID__", "rev": "1", "pname": "films", "vid_list": ["1", "2"]},
    "config": {},
    "attribute": {
        "1": {"aname": "Action", "anchor_id": "FILE1_Z2_XY0", "type": 4, "options": {"0": "walk", "1": "run"}},
    },
    "file": {
        "1": {"fid": "1", "fname": "first.mp4", "type": 4, "loc": 1, "src": ""},
        "2": {
            "fid": "2",
            "fname": "second clip.mp4",
            "type": 4,
            "loc": 2,
            "src": "https://example.org/second%20clip.mp4",
        },
    },
    "metadata": {
        "1_a": {"vid": "1", "flg": 0, "z": [0.5, 1.25], "xy": [], "av": {"1": "0"}},
        "1_b": {"vid": "1", "flg": 0, "z": [2.0], "xy": [], "av": {"1": "1"}},
        "2_a": {"vid": "2", "flg": 0, "z": [], "xy": [], "av": {"1": "1"}},
        "2_b": {"vid": "2", "flg": 0, "z": [1.0], "xy": [2, 1, 1, 5, 5], "av": {"1": "1"}},
    },
    "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
}


def test_via_options_are_classes(folder):
    source = open_source(save(folder, "via.json", VIA))
    assert parts(source) == {("first.mp4", 0.5, 1.25): ("walk",), ("second clip.mp4", None, None): ("run",)}
    assert len(source.warnings) == 2  # the point, and the region


def test_labels_of_one_part_are_joined(folder):
    events = [
        [0.5, "a", "walk", "", ""],
        [1.5, "a", "walk", "", ""],
        [0.5, "a", "talk", "", ""],
        [1.5, "a", "talk", "", ""],
    ]
    source = open_source(save(folder, "both.boris", boris_project(events=events)), for_training=False)
    assert parts(source) == {("first.mp4", 0.5, 1.5): ("walk", "talk")}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.json", '{"observations": ', "cut.json"),
        ("other.json", {"a": 1}, "other.json"),
        ("list.json", [1, 2], "list.json"),
        ("cut.eaf", "<ANNOTATION_DOCUMENT><HEADER>", "cut.eaf"),
        ("strange.boris", {"observations": {"one": {"file": 3}}, "behaviors_conf": {}}, "strange.boris"),
        ("types.boris", {"observations": 5, "behaviors_conf": {}}, "types.boris"),
        ("bytes.json", "\x00\x01", "bytes.json"),
        ("backwards.boris", boris_project(events=[[2, "", "walk"], [1, "", "walk"]]), "backwards.boris"),
        ("wrong.boris", boris_project(events=[["x", "", "walk"], [1]]), "event 2"),
        ("absent.boris", boris_project(file={"1": ["elsewhere.mp4"]}), "--root"),
    ],
)
def test_files_that_cannot_be_read_are_named(folder, name, content, said):
    with pytest.raises(InputError, match=said):
        open_source(save(folder, name, content))


def test_videos_elsewhere_need_a_root(folder, tmp_path):
    data = save(tmp_path, "one.eaf", ELAN.format(origin="", second=SPEECH))
    with pytest.raises(InputError, match="--root"):
        open_source(f"{data}?tier=Actions")
    assert len(open_source(with_root(f"{data}?tier=Actions", folder)).videos) == 2
    assert len(open_source(with_root(data, folder) + "&tier=Actions").videos) == 2


def test_the_list_as_a_csv_file_gives_the_same_videos(folder):
    source = open_source(save(folder, "again.eaf", ELAN.format(origin="", second="")))
    write_csv(folder / "list.csv", source.videos, source.multi_label)
    assert parts(open_source(str(folder / "list.csv"))) == parts(source)
    assert (folder / "list.csv").read_text().splitlines()[:2] == textwrap.dedent(
        """\
        path,label,start,end
        below/second clip.mp4,wave,0.5,1.5"""
    ).splitlines()
    with pytest.raises(InputError, match=r"list\.csv"):
        write_csv(folder / "list.csv", source.videos, source.multi_label)
