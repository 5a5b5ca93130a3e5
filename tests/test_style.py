import io
import itertools
import os

import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lib import files
from lib.report import style


def grey(colour: str) -> float:
    """Relative luminance of a colour, 0 black to 1 white (WCAG 2, section 1.4.3)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.fixture
def figure():
    with style.use():
        figure = style.picture(3, 2)
        axes = figure.add_subplot()
        axes.plot([1, 2], [3, 4], label="line")
        axes.set_title("title")
    return figure


def test_use_leaves_matplotlib_as_it_was():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with style.use():
        assert matplotlib.rcParams["svg.hashsalt"] == "thimble"
    assert dict(matplotlib.rcParams) == before


def test_saved_files_are_the_same_bytes_and_carry_no_date(figure, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    svg, png = style.save(figure, "quality")
    assert (svg, png) == (files.figures() / "quality.svg", files.figures() / "quality.png")
    first = svg.read_bytes(), png.read_bytes()
    style.save(figure, "quality")
    assert (svg.read_bytes(), png.read_bytes()) == first
    assert b"<dc:date>" not in first[0] and b"Matplotlib" not in first[1]
    image = Image.open(png)
    assert image.size == (450, 300) and round(image.info["dpi"][0]) == 150
    assert sorted(os.listdir(files.figures())) == ["quality.png", "quality.svg"]


@pytest.mark.parametrize("name", ["", "a/b", "a.png", "../up"])
def test_save_refuses_what_is_no_plain_name(figure, name):
    with pytest.raises(ValueError, match="use letters"):
        style.save(figure, name)


def test_a_failed_save_keeps_the_old_file(figure, tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    _, png = style.save(figure, "quality")
    old = png.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    figure.axes[0].set_title("another")
    with pytest.raises(OSError, match="disk full"):
        style.save(figure, "quality")
    assert png.read_bytes() == old and len(os.listdir(files.figures())) == 2


def test_a_figure_shows_itself_in_a_notebook_without_pyplot(figure):
    from IPython.core.formatters import DisplayFormatter

    data, metadata = DisplayFormatter().format(figure)
    assert Image.open(io.BytesIO(data["image/png"])).size == (450, 300)
    assert metadata["image/png"] == {"width": 300, "height": 200}


def test_methods_differ_in_colour_marker_line_and_in_grey():
    everybody = list(style.LOOKS.values())
    for attribute in ("label", "colour"):
        assert len({getattr(look, attribute) for look in everybody}) == len(everybody)
    looks = everybody[:4]  # those that stand in one figure most often differ in all, and print in grey
    for attribute in ("label", "colour", "marker", "line"):
        assert len({str(getattr(look, attribute)) for look in looks}) == len(looks)
    greys = sorted(grey(look.colour) for look in looks)
    assert min(b - a for a, b in itertools.pairwise(greys)) > 0.04
    assert grey("#ffffff") == pytest.approx(1) and grey("black") == 0


def test_text_colours_stand_out_from_white():
    for colour in (style.INK, style.MUTED):
        assert 1.05 / (grey(colour) + 0.05) > 4.5  # WCAG 2 AA


def test_an_unknown_method_gets_a_look_of_its_own_that_does_not_change():
    assert style.look("abc") == style.look("abc") and style.look("abc").label == "ABC"
    assert style.look("something").label == "Something"
    assert style.look("abc").colour not in {look.colour for look in style.LOOKS.values()}
    assert sorted(["gptq", "zzz", "none", "abc", "rtn"], key=style.order) == ["none", "rtn", "gptq", "abc", "zzz"]
