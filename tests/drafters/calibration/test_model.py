"""Hazards of a draft model's tokens: learned, leaning on what is alike, kept."""

from __future__ import annotations

import numpy as np
import pytest

from specx.drafters.calibration.model import ModelCalibration
from specx.kernels._native import ModelCounts
from specx.kernels.reference.model_counts import AGREES, OTHER, SILENT

FIRST = ModelCounts.first(False, 0.0)


def test_before_anything_is_seen_a_larger_margin_and_agreement_are_surer():
    calibration = ModelCalibration()
    by_margin = [
        calibration.counts.hazard(calibration.counts.cell(False, m, 1, SILENT)) for m in (0.1, 1.2, 3.5, 20.0)
    ]
    assert by_margin == sorted(by_margin) and 0.4 < by_margin[0] < 0.7 and by_margin[-1] > 0.95
    by_agreement = [
        calibration.counts.hazard(calibration.counts.cell(False, 1.2, 1, a)) for a in (OTHER, SILENT, AGREES)
    ]
    assert by_agreement == sorted(by_agreement)
    assert calibration.acceptance is None and calibration.trials == 0


@pytest.mark.parametrize("noisy", [False, True])
def test_hazards_become_the_observed_frequencies(noisy):
    calibration, rng = ModelCalibration(), np.random.default_rng(3)
    truth = {0.1: 0.3, 2.2: 0.6, 7.0: 0.9}
    for _ in range(3000):
        margin = float(rng.choice(list(truth)))
        cell = calibration.counts.cell(noisy, margin, 1, SILENT)
        calibration.counts.score(
            cell, calibration.counts.first(noisy, 0.0), bool(rng.random() < truth[margin])
        )
    for margin, share in truth.items():
        assert calibration.counts.hazard(calibration.counts.cell(noisy, margin, 1, SILENT)) == pytest.approx(
            share, abs=0.12
        )
        # A cell that has seen nothing leans on those of the same margin.
        assert calibration.counts.hazard(calibration.counts.cell(noisy, margin, 5, SILENT)) == pytest.approx(
            share, abs=0.15
        )
    assert calibration.counts.forecast(calibration.counts.first(noisy, 0.0)) == pytest.approx(0.6, abs=0.2)
    assert calibration.acceptance == pytest.approx(0.6, abs=0.03)
    untouched = ModelCalibration()
    other = calibration.counts.cell(not noisy, 2.2, 1, SILENT)
    assert calibration.counts.hazard(other) == untouched.counts.hazard(other)


def test_the_forecast_follows_the_token_before():
    calibration = ModelCalibration()
    sure, unsure = calibration.counts.following(False, 8.0), calibration.counts.following(False, 0.1)
    assert (
        calibration.counts.forecast(sure)
        == calibration.counts.forecast(unsure)
        == calibration.counts.later(False)
    )
    cell = calibration.counts.cell(False, 1.0, 2, SILENT)
    for _ in range(50):
        calibration.counts.score(cell, unsure, True)
        calibration.counts.score(cell, sure, False)
    assert calibration.counts.forecast(unsure) > 0.9 > 0.1 > calibration.counts.forecast(sure)
    assert calibration.counts.later(False) == pytest.approx(0.5, abs=0.1)


def test_it_survives_the_store():
    calibration = ModelCalibration()
    for right in (True, False, True):
        calibration.counts.score(calibration.counts.cell(True, 0.7, 3, AGREES), FIRST, right)
    arrays = calibration.to_arrays()
    again = ModelCalibration.from_arrays(arrays)
    assert again.trials == 3 and again.acceptance == calibration.acceptance
    cell = calibration.counts.cell(True, 0.7, 3, AGREES)
    assert again.counts.hazard(cell) == calibration.counts.hazard(cell)
    again.counts.score(cell, FIRST, True)
    assert calibration.trials == 3  # copies


@pytest.mark.parametrize("damage", ["missing", "shape", "negative", "nan", "hits", "dtype"])
def test_damaged_arrays_are_refused(damage):
    arrays = ModelCalibration().to_arrays()
    counts = arrays["counts"]
    if damage == "missing":
        del arrays["counts"]
    elif damage == "shape":
        arrays["counts"] = counts[:1]
    elif damage == "dtype":
        arrays["counts"] = counts.astype(np.float32)
    else:
        value = {"negative": (-1, 0), "nan": (np.nan, 1), "hits": (2, 1)}[damage]
        counts[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="calibration"):
        ModelCalibration.from_arrays(arrays)


def test_a_trial_is_believed_until_more_is_seen():
    known = ModelCalibration.of_trial(300, 600)
    assert known.acceptance == 0.5 and known.trials == 600
    assert abs(known.counts.later(False) - 0.5) < 0.02 and abs(known.counts.later(True) - 0.5) < 0.02
    again = ModelCalibration.from_arrays(known.to_arrays())
    cell, at = again.counts.cell(False, 1.0, 1, 0), again.counts.first(False, 0.0)
    for _ in range(300):
        again.counts.score(cell, at, True)
    assert again.counts.later(False) > 0.9
    assert ModelCalibration.of_trial(0, 0).acceptance is None
