"""The store of a teacher's values: what is read is what was written, within the stated error."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from airstreams.data.value_store import STEPS, ValueStore, create, learn_projection
from airstreams.errors import InputError, VideoError

NAMES = ("depth", "edge")
FRAMES = np.arange(40) * 3


def made(root, **changes):
    given = {"teacher": "rays-1", "kind": "maps", "names": NAMES, "settings": {"stride": 3}} | changes
    return create(ValueStore(root, **given))


def rows_of(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (len(FRAMES), *shape)).astype(np.float32)


@pytest.fixture(params=["uint8", "float16"])
def store(request, tmp_path):
    return made(tmp_path / "targets", dtype=request.param, low=-2.0, high=2.0)


def test_values_come_back_within_the_stated_error(store):
    rows = rows_of((2, 5, 7)) * 4 - 2
    rows[3, 1, 2] = np.nan
    store.write("a/b", FRAMES, rows)
    wanted = [0, 1, 117, 9, 9, 48]
    read = store.read("a/b", wanted)
    expected = np.stack([rows[i // 3] if i % 3 == 0 else np.full_like(rows[0], np.nan) for i in wanted])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(read), np.isnan(expected))
    error = np.nanmax(np.abs(read - expected))
    limit = 4 / STEPS / 2 if store.dtype == "uint8" else 2 * 2.0**-11
    assert 0 < error <= limit * 1.0001
    np.testing.assert_array_equal(store.labelled_frames("a/b"), FRAMES)
    assert store.read("absent", [0]) is None
    stored = load_file(store.file_of("a/b"))  # any program can read it
    np.testing.assert_array_equal(stored["frame_indices"], FRAMES)
    assert (stored["values"].dtype, stored["values"].shape) == (store.dtype, rows.shape)
    np.testing.assert_array_equal(np.concatenate([some for _, some in store.chunks("a/b")]), store.read("a/b", FRAMES))


def test_values_outside_the_range_become_its_ends(tmp_path):
    store = made(tmp_path, dtype="uint8", low=0.0, high=10.0, kind="clip")
    store.write("a", [0], np.array([[-3.0, 12.0]]))
    np.testing.assert_array_equal(store.read("a", [0]), [[0, 10]])


def test_a_store_is_read_as_it_was_described(tmp_path):
    store = made(tmp_path, mirrored=(NAMES,), negated=("edge",), in_px=True, dtype="uint8")
    assert ValueStore.open(tmp_path) == store
    store.write_contents({"b": "1", "a": "2"})
    assert store.read_contents() == {"a": "2", "b": "1"}
    store.write("a", [], np.zeros((0, 2, 3, 3)))
    assert list(store.keys()) == ["a"]
    assert len(store.labelled_frames("a")) == 0


def test_equal_values_give_equal_bytes_and_a_killed_writer_leaves_no_file(store):
    rows = rows_of((2, 5, 7))
    store.write("a", FRAMES, rows)
    first = store.file_of("a").read_bytes()
    store.file_of("a").unlink()
    writer = store.writer("a")
    for frame, row in zip(FRAMES.tolist(), rows, strict=True):
        assert not store.has("a")
        writer.add(frame, row)
    writer.finish()
    assert store.file_of("a").read_bytes() == first
    writer = store.writer("b")
    writer.add(0, rows[0])
    assert list(store.keys()) == ["a"]
    writer.discard()
    assert {path.name for path in store.root.iterdir()} == {"a.safetensors", "targets.json"}


@pytest.mark.parametrize(
    ("kind", "shape"),
    [("maps", (3, 4, 5)), ("points", (1, 2, 2)), ("grid", (2, 4)), ("clip", (3,)), ("maps", (2, 0, 4))],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, kind, shape):
    store = made(tmp_path, kind=kind)
    with pytest.raises(ValueError, match="shape"):
        store.write("a", [0], np.zeros((1, *shape)))
    assert not store.has("a")
    assert [path.name for path in tmp_path.iterdir()] == ["targets.json"]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"kind": "dreams"}, "dreams"),
        ({"names": []}, "names"),
        ({"dtype": "int4"}, "int4"),
        ({"low": 2.0, "high": 1.0}, "range"),
        ({"low": "2"}, "type"),
        ({"mirrored": [["depth"]]}, "mirrored"),
        ({"mirrored": [["depth", "sea"]]}, "mirrored"),
        ({"negated": ["sea"]}, "negated"),
        ({"negated": 3}, "type"),
    ],
)
def test_wrong_descriptions_are_refused(tmp_path, change, key):
    store = made(tmp_path)
    (tmp_path / "targets.json").write_text(json.dumps(store.description() | change))
    with pytest.raises(InputError, match=rf"targets\.json.*{key}"):
        ValueStore.open(tmp_path)


def test_broken_files_are_refused(tmp_path):
    store = made(tmp_path)
    frames = np.array([0], np.int32)
    of_another_type, of_another_size = np.zeros((1, 2, 3, 3), np.uint8), np.zeros((1, 3, 3, 3), np.float16)
    save_file({"frame_indices": frames, "values": of_another_type}, tmp_path / "a.safetensors")
    save_file({"frame_indices": frames, "values": of_another_size}, tmp_path / "b.safetensors")
    save_file({"frame_indices": frames[:, None], "values": np.zeros((1, 2, 3, 3), "f2")}, tmp_path / "c.safetensors")
    store.write("d", [0], np.zeros((1, 2, 3, 3)))
    store.file_of("d").write_bytes(store.file_of("d").read_bytes()[:-2])
    for key in "abcd":
        with pytest.raises(VideoError, match=rf"{key}\.safetensors"):
            store.read(key, [0])


def test_the_identity_differs_between_teachers_settings_and_projections(tmp_path):
    store = made(tmp_path / "a", kind="clip")
    others = [replace(store, teacher="rays-2"), replace(store, settings={}), replace(store, names=("x", "y"))]
    projected = create(replace(store, root=tmp_path / "b"), learn_projection(rows_of((2,)), 2, standardise=True))
    identities = {each.identity for each in (store, *others, projected)}
    assert len(identities) == 5


def test_a_projection_keeps_the_directions_of_largest_variance(tmp_path):
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    sample = rng.normal(size=(400, 6)) * [9, 5, 3, 1, 0.5, 0.1] @ axes.T + 7
    learnt = learn_projection(sample, 2, standardise=False)
    values, vectors = np.linalg.eigh(np.cov(sample.T))
    for component, expected in zip(learnt.components, vectors[:, ::-1].T[:2], strict=True):
        assert abs(component @ expected) == pytest.approx(1)
    projected = learnt(sample)
    np.testing.assert_allclose(projected.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(projected.var(axis=0, ddof=1), values[::-1][:2], rtol=1e-4)
    standardised = learn_projection(sample, 6, standardise=True)
    assert standardised(sample).var(axis=0).sum() == pytest.approx(6, rel=1e-4)

    store = create(ValueStore(tmp_path, "rays-1", "clip", NAMES), learnt)
    assert list(store.keys()) == []
    again = store.projection()
    assert again is not None
    np.testing.assert_array_equal(again(sample), projected)
    with pytest.raises(ValueError, match="finite"):
        learn_projection(np.full((3, 2), np.nan), 1, standardise=True)
