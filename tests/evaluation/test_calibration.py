"""The calibration error against an independent version and closed forms; the temperature against a grid."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import airstreams
from airstreams.evaluation.calibration import (
    MOST_BINS,
    VIDEOS_PER_BIN,
    calibration_of,
    effect_of_temperature,
    fit_temperature,
    mean_probabilities,
)
from airstreams.evaluation.evaluate import Evaluation
from airstreams.evaluation.results import read_metrics
from airstreams.inference.export import ClipScorer
from airstreams.runs import saved_model as saved_models
from airstreams.runs.saved_model import KeptEpoch
from airstreams.viewing.reliability import reliability_plot
from airstreams.viewing.tables import calibration_in_words


def alone(videos):
    return [str(number) for number in range(videos)]


def of_answers(probability_N, right_N) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and targets of videos of two classes, whose answer, the first class, is right or wrong."""
    probabilities_N2 = np.stack([probability_N, 1 - np.asarray(probability_N)], axis=1)
    return probabilities_N2, np.where(right_N, 0, 1)


def sampled(videos, classes=4, views=1, scale=3.0, seed=0):
    """Logits of videos, and classes that are drawn by their softmax over one view: a calibrated model."""
    rng = np.random.default_rng(seed)
    logits_NVK = scale * rng.normal(size=(videos, views, classes))
    drawn = [rng.choice(classes, p=row) for row in mean_probabilities(logits_NVK)]
    return logits_NVK, np.array(drawn)


@pytest.mark.parametrize("bins", [1, 7, MOST_BINS])
def test_the_error_is_that_of_bins_with_equally_many_videos(bins):
    rng = np.random.default_rng(bins)
    N = bins * VIDEOS_PER_BIN
    probability_N, right_N = rng.uniform(0.5, 1, N), rng.random(N) < 0.7
    order = np.argsort(probability_N)
    parts = zip(np.split(probability_N[order], bins), np.split(right_N[order], bins), strict=True)
    expected = [abs(p.mean() - r.mean()) / bins for p, r in parts]
    found = calibration_of(*of_answers(probability_N, right_N), alone(N))
    assert found.error == pytest.approx(sum(expected))
    assert found.interval[0] <= found.error <= found.interval[1]
    assert [row.videos for row in found.bins] == [VIDEOS_PER_BIN] * bins
    assert found.probability == pytest.approx(probability_N.mean())


def test_closed_forms():
    half = np.arange(600) % 2 == 0
    sure = calibration_of(*of_answers(np.ones(600), half), alone(600))
    assert (sure.error, len(sure.bins), sure.error_if_calibrated) == (0.5, 1, 0.0)
    right_N = np.arange(600) % 300 < np.repeat([180, 270], 300)
    fitting = calibration_of(*of_answers(np.repeat([0.6, 0.9], 300), right_N), alone(600))
    assert fitting.error == pytest.approx(0, abs=1e-12)
    assert [(row.videos, row.accuracy) for row in fitting.bins] == [(300, 0.6), (300, 0.9)]


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    film_N = np.repeat(np.arange(30), 10)
    answers = of_answers(np.full(300, 0.9), (rng.random(30) < 0.5)[film_N])
    by_video, by_film = (calibration_of(*answers, [str(name) for name in names]) for names in (range(300), film_N))
    widths = [found.interval[1] - found.interval[0] for found in (by_video, by_film)]
    assert widths[1] > 2 * widths[0]
    assert calibration_of(*answers, ["one"] * 300).interval == [0, 1]


def test_calibrated_models_show_the_error_that_is_expected_of_them():
    errors = []
    for seed in range(8):
        logits, targets_N = sampled(200, seed=seed)
        found = calibration_of(mean_probabilities(logits), targets_N, alone(200))
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(found.error_if_calibrated, rel=0.2)
    assert np.mean(errors) > 0.03  # though nothing is wrong with them


@pytest.mark.parametrize("views", [1, 3])
def test_the_fitted_temperature_has_the_least_log_loss(views):
    logits, targets_N = sampled(80, views=views)
    found = fit_temperature(logits, targets_N)
    grid = np.geomspace(0.2, 5, 1000)
    losses = [-np.log(mean_probabilities(logits, T)[np.arange(80), targets_N]).mean() for T in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=4e-3)


def test_scaled_logits_give_their_factor_back():
    logits, targets_N = sampled(4000)
    once = fit_temperature(logits, targets_N)
    assert once is not None
    assert once == pytest.approx(1, abs=0.06)
    assert fit_temperature(2.5 * logits, targets_N) == pytest.approx(2.5 * once, rel=1e-4)


def test_without_a_least_log_loss_there_is_no_temperature():
    logits, _ = sampled(50)
    answers_N = logits[:, 0].argmax(axis=1)
    assert fit_temperature(logits, answers_N) is None  # all are right: the surer the better
    assert fit_temperature(-logits, answers_N) is None  # all are wrong


def test_a_temperature_keeps_the_order_of_the_classes_of_a_view():
    logits, _ = sampled(100)
    before, after = mean_probabilities(logits), mean_probabilities(logits, 3.0)
    assert (before.argsort(axis=1) == after.argsort(axis=1)).all()
    assert after.max() < before.max()


def test_the_effect_is_the_difference_of_the_errors():
    logits, targets_N = sampled(400)
    too_sure = 3 * logits
    found = effect_of_temperature(3.0, 50, too_sure, targets_N, alone(400))
    errors = [calibration_of(mean_probabilities(part), targets_N, alone(400)).error for part in (too_sure, logits)]
    assert [found.before, found.after] == pytest.approx(errors)
    assert found.change == pytest.approx(found.after - found.before)
    assert found.interval[0] < found.change < found.interval[1] < 0
    none = effect_of_temperature(1.0, 50, logits, targets_N, alone(400))
    assert (none.change, none.interval[0] < 0 < none.interval[1]) == (0, True)


@pytest.fixture
def tempered(run):
    """A run whose training fitted a temperature of 0.02, which makes its answers surer."""
    saved = saved_models.load(run)
    saved.kept = KeptEpoch(2, "best", "top1", 0.5, [0.2, 0.8], 9, temperature=0.02)
    saved_models.save(saved, run)
    return run


def test_evaluate_predict_and_export_use_the_temperature_alike(tempered, synthetic, call):
    videos = synthetic / "videos"
    plain: Evaluation = airstreams.evaluate(tempered, videos)
    without, before = (plain.folder.path / "scores.csv").read_text(), plain.metrics.calibration
    assert before is not None
    status, out, _ = call("evaluate", tempered, videos, "--calibrated", "--json")
    figures = json.loads(out)
    assert status == 0
    assert before.temperature == 1
    assert figures["calibration"]["temperature"] == 0.02
    fitted = figures["calibration"]["fitted"]
    assert (fitted["before"], fitted["videos"]) == (pytest.approx(before.error), 9)
    assert fitted["after"] == pytest.approx(figures["calibration"]["error"], abs=1e-5)
    assert figures["streams"]["rgb"] == plain.metrics.as_dict()["streams"]["rgb"]  # only the answer has it
    assert read_metrics(plain.folder.metrics).as_dict() == figures
    assert plain.folder.calibration_plot.is_file()
    text = (plain.folder.path / "scores.csv").read_text()
    assert text != without
    rows = list(csv.DictReader(text.splitlines()))
    recogniser = airstreams.load(tempered, "cpu", calibrated=True)
    for row in rows[:3]:
        for name, probability in recogniser.predict(videos / row["name"]).probabilities.items():
            assert probability == pytest.approx(float(row[name]), abs=2e-5)
    clips = torch.randint(0, 256, (2, 4, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        logits = recogniser.saved.model(clips.permute(0, 4, 1, 2, 3)).logits["merged"]
        exported = ClipScorer(recogniser.saved).eval()(clips)
    assert torch.equal(exported, (logits / 0.02).softmax(dim=1))


def test_a_file_of_predictions_goes_on_with_the_same_temperature_only(tempered, synthetic, call, tmp_path):
    video, out = synthetic / "videos/test/disc_up/000.mp4", tmp_path / "answers.csv"
    assert call("predict", tempered, video, "--out", out, "--calibrated")[0] == 0
    status, _, err = call("predict", tempered, video, "--out", out)
    assert (status, "--calibrated" in err) == (2, True)


def test_a_run_without_a_temperature_is_refused(run, synthetic, call, tmp_path):
    for words in (
        ("evaluate", run, synthetic / "videos"),
        ("predict", run, synthetic / "videos/test/disc_up/000.mp4"),
        ("export", run, "--out", tmp_path / "m.pt2"),
    ):
        status, _, err = call(*words, "--calibrated")
        assert (status, sum("--calibrated" in line for line in err.splitlines())) == (2, 1)


def test_the_words_say_what_a_temperature_would_bring(tmp_path):
    logits, targets_N = sampled(400)
    too_sure = 3 * logits
    found = calibration_of(mean_probabilities(too_sure), targets_N, alone(400))
    effects = [effect_of_temperature(T, 50, too_sure, targets_N, alone(400)) for T in (3.0, 1.0, 0.3)]
    better, unsure, worse = (calibration_in_words(replace(found, fitted=effect))[1] for effect in effects)
    assert ("would lower" in better, "--calibrated" in better) == (True, True)
    assert ("not significant" in unsure, "--calibrated" in unsure) == (True, False)
    assert ("would raise" in worse, "--calibrated" in worse) == (True, False)
    in_use = calibration_in_words(replace(found, fitted=effects[0], temperature=3.0))[1]
    assert ("lowers" in in_use, "--calibrated" in in_use) == (True, False)
    assert calibration_in_words(None) == []
    reliability_plot(tmp_path / "plot.png", found)
    assert (tmp_path / "plot.png").stat().st_size > 5000
