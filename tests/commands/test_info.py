"""`airstreams info`: costs of recipes and runs."""

from pathlib import Path

from airstreams.commands.info import model_of
from tests.calls import with_json


def test_a_recipe_and_a_run_are_counted_part_by_part(call, trained):
    found = with_json(call("info", trained, "--json"))
    cost = found["multiply_adds"]
    assert found["parameters"] > 0
    assert 0 < cost["inference"] < cost["training"]
    assert sum(part["inference"] for part in cost["parts"].values()) == cost["inference"]
    assert sum(part["training"] for part in cost["parts"].values()) == cost["training"]
    assert found["classes"] == 4  # the run's own, not a data set's
    status, out, _ = call("info", "demo")
    assert status == 0
    assert all(name.split(".")[0] in out for name in cost["parts"])


def test_the_segmenter_of_a_recipe_has_the_classes_that_it_keeps():
    assert model_of("jhmdb").segment_classes == 81
    assert model_of("jhmdb-small").segment_classes == 3  # background, person, all others


def test_a_model_without_the_semantic_stream_has_no_segmentation_classes(call, tmp_path):
    model = "model: {streams: [rgb, flow], flow: {iterations: 1}}"
    (tmp_path / "two.yaml").write_text(f"clip: {{frames: 2, size: 64}}\n{model}\n")
    status, out, _ = call("info", tmp_path / "two.yaml")
    assert status == 0
    assert "segmentation" not in out
    assert with_json(call("info", tmp_path / "two.yaml", "--json"))["segment_classes"] == 0


def test_a_folder_hides_a_recipe_of_its_name_only_if_it_is_a_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert model_of("demo").classes == 51
    Path("demo").rmdir()
    run.rename("demo")
    assert model_of("demo").classes == 4
