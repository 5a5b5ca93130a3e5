"""The figures about packed inference, on invented records, and the profile behind one of them."""

import pandas as pd
import torch

from lib import runtime
from lib.metrics import step_profile
from lib.report import packed as figures
from lib.runtime import engine, torch_kernels
from tests import packed, tiny


def table(metric, rows):
    base = {"run": "r", "metric": metric, "status": "finished", "time": "2026", "notebook": "40_packed_kernels"}
    return pd.DataFrame([base | {"stderr": 0.0, "n": 3} | row for row in rows])


def texts(figure):
    figure.draw_without_rendering()
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    return found + [text.get_text() for axes in figure.axes if axes.get_legend() for text in axes.get_legend().texts]


def test_bars_add_up_to_a_token():
    parts = {"queries": 1e-3, "down": 1e-3, "head": 2e-3, "attention": 5e-4, step_profile.REST: 5e-4}
    rows = [{"arm": "packed", "phase": phase, "value": value} for phase, value in parts.items()]
    rows += [
        {"arm": "original", "phase": phase, "value": 0.02} for phase in ("products", "attention", step_profile.REST)
    ]
    shown = texts(figures.where_time_goes(table("phase_seconds", rows)))
    assert {"5 ms", "60 ms", "head", "products", step_profile.REST} <= set(shown)


def test_gaps_are_shown_without_records():
    assert any("no finished run" in text for text in texts(figures.where_time_goes(pd.DataFrame())))


def test_the_parts_of_a_token_add_up_in_both_runtimes():
    model, tokens = tiny.llama(), tiny.tokens(1, 8)
    found = step_profile.of_model(model, tokens, 4)
    assert set(found) == {"products", "attention", step_profile.REST} and all(value > 0 for value in found.values())
    packed.quantize_(model, lambda name: (4, 32, False), dtype=torch.float32)
    session = runtime.Session(runtime.pack_(model))
    found = step_profile.of_session(session, tokens[0], 4)
    if engine.cpu.library() is not None:
        assert found["head"] > 0 and "waiting" not in found
    assert session.length == 11
    plain = runtime.Session(model, backend=torch_kernels.Reference(session.weights))
    assert list(step_profile.of_session(plain, tokens[0], 2)) == [step_profile.REST]
