"""The figures about evaluations, drawn from made-up records."""

import pandas as pd

from lib.report import evaluation
from tests import report_data


def of(metric, task, value, **labels):
    made = report_data.base("run-51", evaluation.NOTEBOOK) | {"metric": metric, "task": task, "value": value}
    return made | {"stderr": 0.05, "n": 40, "unit": "share"} | labels


def scores():
    beside = {"chance": 0.25, "constant": 0.3}
    return pd.DataFrame(
        [
            of("score", "skilled", 0.6, measured="acc", low=0.5, high=0.7, **beside),
            of("score", "guessing", 0.28, measured="acc_norm", low=0.18, high=0.38, **beside),
            of("score", "worse", 0.1, measured="acc", low=0.05, high=0.2, **beside),
            of("score", "free", 0.2, measured="pass@1", low=0.1, high=0.3, chance=None, constant=None),
            of("score", "bleu", 31.0, measured="bleu", low=28.0, high=34.0, chance=None, constant=None)
            | {"unit": "points"},
        ]
    )


def test_scores_without_skill_are_hollow():
    figure = evaluation.scores(scores())
    (axes,) = figure.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert [label.split("\n")[0] for label in labels] == ["skilled", "guessing", "worse", "free"]
    assert labels[1].endswith("accuracy per character, n=40") and labels[3].endswith("pass@1, n=40, no baseline")
    points = {line.get_ydata()[0]: line for line in axes.lines if line.get_marker() == "o" and len(line.get_ydata())}
    assert [points[place].get_markerfacecolor() == "white" for place in range(4)] == [False, True, True, True]
    assert sum(line.get_marker() == "x" and len(line.get_ydata()) for line in axes.lines) == 3
    figure.canvas.draw()


def test_skill_without_anything_to_beat_is_unknown():
    free = scores().to_dict("records")[3]
    assert evaluation.skilled(free) is None
    assert (
        evaluation.skilled({**free, "chance": 0.05}) is True and evaluation.skilled({**free, "constant": 0.1}) is False
    )


def test_without_records_the_figure_says_so():
    shown = [text.get_text() for text in evaluation.scores(pd.DataFrame()).axes[0].texts]
    assert any(evaluation.NOTEBOOK in text for text in shown)
