"""Programs that follow a training: told settings, losses and the divergence on unseen text, and closed at its end."""

import sys
import types

import pytest
from accelerate import tracking

from lib.report.distillation_curve import Curve
from lib.trainers import trackers
from tests.test_quantization_aware import original, student, train  # noqa: F401 (fixtures)


@pytest.fixture
def trackio(monkeypatch):
    """A module that notes what trackio would be told."""
    module, told = types.ModuleType("trackio"), []
    run = types.SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end"))
    module.init = lambda project: told.append(project) or run
    module.config = types.SimpleNamespace(update=lambda values, allow_val_change: told.append(values))
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.setattr(tracking, "_available_trackers", ["trackio"])
    return told


def test_a_training_tells_its_followers(trackio, student, original):  # noqa: F811
    curve = Curve()
    with trackers.following(["trackio"], project="some", settings={"bits": 2, "texts": {"a": 1.0}}) as told:
        found = train(student, original, followers=[*told, curve])
    assert trackio[:2] == ["some", {"bits": 2, "texts": "{'a': 1.0}"}] and trackio[-1] == "end"
    steps = trackio[2:-1]
    assert [step for step, _ in steps] == list(range(7)) and steps[0][1] == {"unseen_kl": found.divergences[0]}
    assert [values["loss"] for _, values in steps[1:]] == found.history.losses == [*curve.losses.values()]
    unseen = {step: values["unseen_kl"] for step, values in steps if "unseen_kl" in values}
    assert unseen == found.divergences == curve.unseen
    line = curve.figure().axes[0].lines[1]
    assert list(line.get_xdata()) == [0, 2, 4, 6] and list(line.get_ydata()) == [*found.divergences.values()]


def test_trackers_that_are_closed_where_a_training_fails(trackio):
    with pytest.raises(RuntimeError), trackers.following(["trackio"], project="some", settings={}):
        raise RuntimeError
    assert trackio[-1] == "end"


def test_unknown_and_missing_trackers(monkeypatch):
    with pytest.raises(ValueError, match="'wandbb' is no tracker"):
        trackers.check(["wandbb"])
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match="pip install aim"):
        trackers.check(["aim"])
    with trackers.following([], project="some", settings={}) as told:
        assert told == []
