"""The report, built from invented records (see report_data)."""

import json
import os
import re

import pytest

from lib import files, results
from lib.metrics.score import Score
from lib.report import figures, notebooks, rows, site
from tests import report_data


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.setattr(rows, "promised", list)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """One figure is enough where the figures are not the point."""
    monkeypatch.setattr(site, "shown", lambda: {"quality_by_bytes": (figures.quality_by_bytes, "Quality.")})


def few(**columns):
    """A small invented benchmark: the original, RTN and GPTQ at 4 bits."""
    kept = [("none", 16, 0), ("rtn", 4, 0), ("gptq", 4, 0)]
    return report_data.benchmark(without=[key for key in report_data.INVENTED if key not in kept], **columns)


def notebook(*cells, name="00_start_here") -> None:
    """Write an executed notebook into the report."""
    document = {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    files.write_text(files.report() / "notebooks" / f"{name}.ipynb", json.dumps(document))


def code(source: str, *outputs) -> dict:
    shared = {"cell_type": "code", "id": "a", "metadata": {}, "execution_count": 1}
    return shared | {"source": [source], "outputs": list(outputs)}


def prose(source: str) -> dict:
    return {"cell_type": "markdown", "id": "b", "source": source.splitlines(keepends=True), "metadata": {}}


def addresses(page: str) -> list[str]:
    return re.findall(r"""(?:src|href)=["']([^"']+)["']""", page)


def test_the_report_holds_together_offline_and_says_what_was_found(capsys):
    report_data.store(report_data.benchmark())
    report_data.store(report_data.errors(4))
    notebook(prose("# Compress a model"), code("1 + 1"))
    assert site.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(files.report() / "index.html") and any("GPTQ 4 bits" in line for line in printed)
    page = (files.report() / "index.html").read_text()
    for address in addresses(page):
        assert not re.match(r"https?:|//", address)
        assert (files.report() / address).exists(), address
    for part in ("The smallest artifact within 5% of", "28.50 ± 0.40", "Compress a model", "LaTeX", "All 13 runs"):
        assert part in page
    assert "no finished run of 30_depth_pruning" not in page  # the gap is in the figure, as a picture
    assert len(page) < 100_000
    assert (files.report() / "files" / "layer_error.png").read_bytes() == (
        files.figures() / "layer_error.png"
    ).read_bytes()


def test_nothing_on_record_gives_a_report_that_says_so(quick):
    page = site.build().read_text()
    assert (
        "Nothing to compare yet" in page
        and "No executed notebook yet" in page
        and "No finished run of: Original" in page
    )


def test_building_twice_gives_the_same_bytes(quick):
    report_data.store(few())
    first = site.build().read_bytes()
    assert site.build().read_bytes() == first


def test_failures_are_listed_and_unfair_tables_refused(quick, monkeypatch):
    report_data.store(few().query("method != 'none'"))
    with pytest.raises(RuntimeError), results.start("22_gptq"):
        raise RuntimeError("stopped")
    error = {"output_type": "error", "ename": "ValueError", "evalue": "bits=<9>", "traceback": ["ValueError: bits=<9>"]}
    notebook(prose("# GPTQ"), code("fail()", error), name="22_gptq.failed")
    page = site.build().read_text()
    assert "22_gptq failed: ValueError: bits=&lt;9&gt;" in page and "notebooks/22_gptq.failed.html" in page
    assert re.search(r"22_gptq-\S+: failed, its numbers are not shown", page)
    assert "no finished run of the original model" in page and "benchmark.csv" not in page
    assert site.main([]) == 1


def test_claims_that_do_not_hold_have_a_list_of_their_own(quick):
    with results.start("22_gptq") as run:
        run.claim("GPTQ < rounding", False, gptq=2.0, rounding=1.5)
        run.claim("this one holds", True)
    page = site.build().read_text()
    assert "Claims that did not hold" in page and "GPTQ &lt; rounding (gptq 2, rounding 1.5)" in page
    assert "this one holds" not in page
    with results.start("22_gptq") as run:  # the same configuration again: the newest run of it counts
        run.claim("GPTQ < rounding", True)
    assert "Claims that did not hold" not in site.build().read_text()


def test_a_second_model_has_its_own_table(quick):
    report_data.store(few())
    report_data.store(few(model="other/second-model"))
    page = site.build().read_text()
    assert "Results: tiny-model on" in page and "Results: second-model on" in page and "benchmark-2.csv" in page


def test_inputs_are_shown(quick, monkeypatch):
    import lib.sources

    used = [{"kind": "text", "name": "packaged", "split": "test", "origin": "pydoc", "sha256": "f00d" * 16}]
    monkeypatch.setattr(lib.sources, "used", lambda: used)
    report_data.store(few())
    page = site.build().read_text()
    assert "f00df00df00d" in page and "pydoc" in page


def test_readme_block_is_replaced_and_the_rest_kept(home):
    report_data.store(few())
    path = home / "README.md"
    path.write_text(f"before\n{site.BEGIN}\nold numbers\n{site.END}\nafter\n")
    site.readme(path)
    text = path.read_text()
    assert text.startswith(f"before\n{site.BEGIN}\n") and text.endswith(f"{site.END}\nafter\n")
    assert "| GPTQ 4 bits | 28.50 ± 0.40 |" in text and "old numbers" not in text
    assert (files.figures() / "readme.png").read_bytes().startswith(b"\x89PNG")
    site.readme(path)
    assert path.read_text() == text


def test_readme_refuses_missing_marks_and_missing_runs(home):
    path = home / "README.md"
    path.write_text(site.BEGIN)
    with pytest.raises(ValueError, match="lacks <!-- results:end -->"):
        site.readme(path)
    path.write_text(site.BEGIN + site.END)
    with pytest.raises(ValueError, match="no finished run of 50_benchmark"):
        site.readme(path)
    assert path.read_text() == site.BEGIN + site.END


def test_main_writes_the_readme(quick, home, monkeypatch):
    report_data.store(few())
    monkeypatch.setattr(files, "ROOT", home)
    (home / "README.md").write_text(site.BEGIN + site.END)
    assert site.main(["--readme"]) == 0
    assert "RTN 4 bits" in (home / "README.md").read_text()


def test_notebook_page_needs_no_network_and_keeps_what_matters():
    bar = {"output_type": "stream", "name": "stderr", "text": ["\r 0%|", "\r 50%|", "\r 100%|\n"]}
    widget = {
        "output_type": "display_data", "metadata": {},
        "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "5/5 blocks"},
    }  # fmt: skip
    table = {
        "output_type": "execute_result",
        "metadata": {},
        "execution_count": 1,
        "data": {"text/html": ["<b>\n", "bold</b>"]},
    }
    formula = r"It is $\lVert W x \rVert_2$, `$not this$`, \$5, and $\begin{x}y\end{x}$." + "\n\n$$ a = \\frac{1}{2} $$"
    notebook(prose("# Title <1>\n" + formula), code("x = 1", bar, widget, table))
    (page,) = notebooks.convert(files.report() / "notebooks")
    text = page.path.read_text()
    assert page.title == "Title <1>" and not page.failed and page.error == ""
    assert "<title>Title &lt;1&gt;</title>" in text and "<script" not in text
    assert all(address.startswith(("data:", "#", "../")) for address in addresses(text))
    assert "100%|" in text and "50%|" not in text and "5/5 blocks" in text and "<b>\nbold</b>" in text
    assert text.count("data:image/svg+xml") == 2 and r"<code>\begin{x}y\end{x}</code>" in text
    assert "$not this$" in text and '<span class="display">' in text


def test_conversion_is_skipped_while_nothing_changed_and_stale_pages_go(monkeypatch):
    folder = files.report() / "notebooks"
    notebook(prose("# One"))
    (folder / ".half.part.ipynb").write_text("{")
    (folder / "gone.html").write_text(
        notebooks.page({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, "x")
    )
    (folder / "mine.html").write_text("somebody's own page")
    (page,) = notebooks.convert(folder)
    assert not (folder / "gone.html").exists() and (folder / "mine.html").exists()
    page.path.write_text("kept")
    os.utime(page.path, (2e9, 2e9))
    notebooks.convert(folder)
    assert page.path.read_text() == "kept"
    os.utime(folder / "00_start_here.ipynb", (2.1e9, 2.1e9))
    notebooks.convert(folder)
    assert "One" in page.path.read_text()


def test_the_ladder_is_ranked_on_the_page_and_missed_where_it_is_not_on_record(quick):
    site.build()
    page = (files.report() / "index.html").read_text()
    assert "Methods by bit width" in page and "no finished run of 29_best_recipe yet" in page
    with results.start("29_best_recipe", dict(model="tiny", text="packaged", windows=4, bits=3)) as run:
        for rung, value in {"rtn": 0.9, "recipe": 0.2, "gptq": 0.4}.items():
            run.record("kl_divergence", Score(value, 0.01, 4, "nats", False), rung=rung)
    site.build()
    page = (files.report() / "index.html").read_text()
    places = re.findall(r"<tr><th scope='row'>3</th><td>(\d)</td><td>(\w+)</td>", page)
    assert places == [("1", "recipe"), ("2", "gptq"), ("3", "rtn")] and "no finished run of 29" not in page
