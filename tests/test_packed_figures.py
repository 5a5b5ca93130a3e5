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


def test_the_layouts_picture_shows_every_step_of_every_width():
    figure = figures.layout()
    for axes, bits in zip(figure.axes, (2, 3, 4, 8)):
        steps = [text.get_text() for text in axes.texts if text.get_text() in set("01234567")]
        assert sorted(set(steps)) == list("01234567")
        assert len(steps) == (16 if bits == 3 else 8)  # at 3 bits every step has low bits and a third one


def test_rates_are_bytes_over_seconds_under_the_memorys_line():
    rows = [{"value": 1e-5 * bits, "bits": bits, "shape": "4 × 4", "bytes": 1e5 * bits} for bits in (2, 4)]
    data = pd.concat([table("product_seconds", rows), table("bandwidth", [{"value": 2e10}])])
    figure = figures.speed_by_shape(data)
    heights = [container.lines[0].get_ydata()[0] for container in figure.axes[0].containers]
    assert heights == [10.0, 10.0] and "memory: 20 GB/s" in texts(figure)


def test_bars_add_up_to_a_token():
    parts = {"queries": 1e-3, "down": 1e-3, "head": 2e-3, "attention": 5e-4, step_profile.REST: 5e-4}
    rows = [{"arm": "packed", "phase": phase, "value": value} for phase, value in parts.items()]
    rows += [
        {"arm": "original", "phase": phase, "value": 0.02} for phase in ("products", "attention", step_profile.REST)
    ]
    shown = texts(figures.where_time_goes(table("phase_seconds", rows)))
    assert {"5 ms", "60 ms", "head", "products", step_profile.REST} <= set(shown)


def test_gaps_are_shown_without_records():
    for draw in (figures.speed_by_shape, figures.where_time_goes):
        assert any("no finished run" in text for text in texts(draw(pd.DataFrame())))


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
