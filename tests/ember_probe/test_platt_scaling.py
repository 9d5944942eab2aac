import numpy as np
import pytest
import spacy
from hypothesis import given
from hypothesis import strategies as st

from spacy_llmner.ember_probe import platt_scaling as calibration
from spacy_llmner.pipeline.scorers import calibration_error
from tests.ember_probe.helpers import make_examples, make_nlp, make_sgd, train


@given(st.floats(0.001, 0.999), st.floats(0.1, 4.0), st.floats(-2.0, 2.0))
def test_invert_undoes_apply(score, slope, offset):
    there = calibration.apply((slope, offset), score)
    assert 0.0 <= there <= 1.0
    assert calibration.invert((slope, offset), there) == pytest.approx(score, abs=1e-3)


@pytest.mark.parametrize("score", [0.0, 1e-12, 0.3, 1.0])
def test_identity_and_extremes(score):
    assert calibration.apply(calibration.IDENTITY, score) == pytest.approx(score, abs=1e-6)
    assert 0.0 <= calibration.apply((5.0, -3.0), score) <= 1.0


def overconfident(n, seed, times=3):
    """Scores whose log-odds are `times` too large, and the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 1.0, n)
    right = rng.random(n) < 1 / (1 + np.exp(-logits))
    return list(zip((1 / (1 + np.exp(-times * logits))).tolist(), right.tolist()))


@pytest.mark.parametrize("times", [2, 3, 6])
def test_fit_mends_overconfident_scores(times):
    fitted = calibration.fit(overconfident(600, 0, times))
    assert 0.6 / times < fitted[0] < 1.6 / times
    unseen = overconfident(600, 1, times)
    mended = [(calibration.apply(fitted, score), right) for score, right in unseen]
    assert calibration_error(mended) < calibration_error(unseen) / 2
    # The order of the scores stays: precision and recall at any cut are the same.
    order = np.argsort([score for score, _ in unseen])
    assert (np.diff(np.array([score for score, _ in mended])[order]) >= 0).all()


def test_fit_leaves_good_scores_alone():
    rng = np.random.default_rng(2)
    scores = rng.random(2000)
    scored = list(zip(scores.tolist(), (rng.random(2000) < scores).tolist()))
    slope, offset = calibration.fit(scored)
    assert slope == pytest.approx(1.0, abs=0.2)
    assert offset == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize(
    "scored",
    [
        [],
        [(0.9, True), (0.2, False)],
        [(0.9, True)] * 50,
        [(0.1, False)] * 50,
    ],
)
def test_too_little_to_tell(scored):
    assert calibration.fit(scored) == calibration.IDENTITY


def test_fit_stands_extreme_scores():
    scored = [(1.0, True)] * 30 + [(0.0, False)] * 30 + [(1.0, False)]
    slope, offset = calibration.fit(scored)
    assert 0 < slope <= 5 and np.isfinite(offset)


def test_only_training_calibrates(tiny_llm, tmp_path, monkeypatch):
    """The first scoring after an update fits the calibration; it is saved, and then stays."""
    trained = train(make_nlp(tiny_llm, width=32))
    fitted = []

    def fit(scored):
        fitted.append(scored)
        return (0.5, -0.25)

    monkeypatch.setattr(calibration, "fit", fit)
    before = trained("Mira Stone met Oskar Blum.")
    results = trained.evaluate(make_examples(trained))
    assert results["ents_f"] == 1.0
    assert 0.0 <= results["ents_ece"] <= 1.0
    assert len(fitted) == 1 and all(right for _, right in fitted[0])
    # Another corpus that is scored afterwards, such as test, changes nothing.
    trained.evaluate(make_examples(trained)[:2])
    assert len(fitted) == 1
    # In a training run that goes on, what the last fit did is undone before the next one.
    trained.update(make_examples(trained), sgd=make_sgd(0.0))
    trained.evaluate(make_examples(trained))
    assert len(fitted) == 2
    assert np.allclose([s for s, _ in fitted[0]], [s for s, _ in fitted[1]], atol=1e-5)
    trained.to_disk(tmp_path)
    doc = trained("Mira Stone met Oskar Blum.")
    for old, new in zip(before.ents, doc.ents):
        assert new._.score == pytest.approx(calibration.apply((0.5, -0.25), old._.score))

    loaded = spacy.load(tmp_path)
    loaded.evaluate(make_examples(loaded))
    assert loaded.get_pipe("ember_probe").cfg["calibration"] == [0.5, -0.25]
    assert len(fitted) == 2
