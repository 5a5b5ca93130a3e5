"""The report, built from invented records (see report_data)."""

import json
import os
import re
from html import escape

import pytest

from lib import files, published, results
from lib.metrics.score import Score
from lib.report import chapters, notebooks, pages, selection, site
from tests import report_data
from tests.page_structure import Structure

BEGIN, END = published.marks("results")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path))
    monkeypatch.setattr(selection, "promised", list)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """One figure is enough where the figures are not the point."""
    leading = {site.LEADING: chapters.FIGURES[site.LEADING]}
    monkeypatch.setattr(chapters, "FIGURES", leading)


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


def read(name: str) -> str:
    """A page of the report that was built."""
    return (files.report() / name).read_text()


def test_the_report_holds_together_offline_and_says_what_was_found(capsys):
    report_data.store(report_data.benchmark())
    report_data.store(report_data.errors(4))
    notebook(prose("# Compress a model\n\n[Next](20_grids.ipynb)\n\n|a|\n|-|\n|1|"), code("1 + 1"))
    error = {"output_type": "error", "ename": "ValueError", "evalue": "x", "traceback": ["ValueError: x"]}
    notebook(prose("# Mine é"), code("fail()", error), name="mine & é-bits=3.failed")
    assert site.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(files.report() / "index.html") and any("GPTQ 4 bits" in line for line in printed)
    found = {path: Structure(path) for path in files.report().rglob("*.html")}
    assert len(found) == 12  # the index, eight chapters and that of notebooks without a number, two notebooks
    for path, page in found.items():
        assert page.headings[0] == "h1" and page.headings.count("h1") == 1, path
        assert page.viewport and page.policy and not page.scripts and not page.loose_tables and not page.unnamed, path
        for address in page.loaded:
            assert not re.match(r"https?:|//", address)
        for address in page.addresses:
            page.check(address, found)
    page, measured = read("index.html"), read("chapter-50.html")
    for part in ("The smallest artifact within 5% of", "26.25", "chapter-00.html"):
        assert part in page
    for part in ("28.50 ± 0.40", "LaTeX", "worse than without any model for: RTN 2\N{NO-BREAK SPACE}bits"):
        assert part in measured
    assert "notebooks/00_start_here.html" in read("chapter-00.html") and "All 13 runs" in read("chapter-60.html")
    assert "no finished run of 30_depth_pruning" not in page  # the gap is in the figure, as a picture
    assert len(page) < 100_000
    assert (files.report() / "files" / "layer_error.png").read_bytes() == (
        files.figures() / "layer_error.png"
    ).read_bytes()


def test_the_page_begins_with_the_question_the_answer_and_one_figure(quick):
    report_data.store(report_data.benchmark())
    text = Structure(site.build()).text
    asked, _, rest = text.split("Asked.")[1].partition("Answer.")
    assert "Of tiny-model on packaged text, 24 windows: the original against 11 compressed versions" in asked
    first, second, third = re.split(
        r"(?<=[a-z)]\.) (?=[A-Z])", rest.split("SVG")[0].split("Quality against")[0].strip()
    )
    assert "GPTQ 4 bits at about 116 MB (0.01975 ± 0.00022 against 0.06097 ± 0.00068 of RTN 4 bits)" in first
    assert "63% of the original's 269 MB" in second and "0.930 ± 0.015 times the original's speed (n = 24)" in second
    assert "The leads at 170 MB, 116 MB and 103 MB are more than noise" in third
    assert third.endswith("at 90 MB no difference was seen.") and rest.count("Quality against what") == 1


def test_nothing_on_record_gives_a_report_that_says_so(quick):
    page = site.build().read_text()
    assert (
        "Nothing to compare yet" in page and "0 of 10 notebooks run" in page and "No finished run of: Original" in page
    )


def test_building_twice_gives_the_same_bytes(quick):
    report_data.store(few())
    site.build()
    first = {path: path.read_bytes() for path in files.report().rglob("*.*")}
    site.build()
    assert {path: path.read_bytes() for path in files.report().rglob("*.*")} == first


def test_failures_are_listed_and_unfair_tables_refused(quick, monkeypatch):
    report_data.store(few().query("method != 'none'"))
    with pytest.raises(RuntimeError), results.start("22_gptq"):
        raise RuntimeError("stopped")
    error = {"output_type": "error", "ename": "ValueError", "evalue": "bits=<9>", "traceback": ["ValueError: bits=<9>"]}
    bar = {"output_type": "stream", "name": "stderr", "text": ["\r 0%|", "\r 50%|\n", "then\n"]}
    source = "\n".join(f"line = {number}" for number in range(9)) + "\nfail('<b>')"
    notebook(prose("# GPTQ"), code(source, bar, error), code("never()"), name="22_gptq-bits=9.failed")
    notebook(prose("# Grids"), code("1"), name="20_grids")
    page = site.build().read_text()
    assert "1 notebook failed" in page and "10 notebooks run, 1 failed" in page
    for each in (page, read("chapter-20.html")):  # its name, its sentence, the end of its cell and of what that printed
        shown = re.search(r'<section class="failure">(.*?)</section>', each, re.S)[1]
        assert "notebooks/22_gptq-bits%3D9.failed.html" in shown and "ValueError: bits=&lt;9&gt;" in shown
        assert "line = 8\nfail(&#39;&lt;b&gt;&#39;)</pre>" in shown and "line = 1\n" not in shown
        assert " 50%|\nthen</pre>" in shown and " 0%|" not in shown and "never" not in shown
    assert "notebooks/20_grids.html" in read("chapter-20.html")
    assert re.search(r"22_gptq-\S+: failed, its numbers are not shown", page)
    measured = read("chapter-50.html")
    assert "no finished run of the original model" in measured and "benchmark.csv" not in measured
    assert site.main([]) == 1


def test_a_file_that_is_no_notebook_is_named_on_the_page_and_the_others_are_shown(quick):
    whole = {"cells": [code("1", {"output_type": "error"})], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    broken = {"half": b'{"cells": [', "list": b"[1]", "other": b'{"a": 1}', "latin": b'"\xe9"', "empty": b""}
    broken |= {"output <b>": json.dumps(whole).encode(), "newer": b'{"cells": [], "metadata": {}, "nbformat": 99}'}
    report_data.store(few())
    notebook(prose("# Grids"), code("1"), name="20_grids")
    for name, content in broken.items():
        files.write_bytes(files.report() / "notebooks" / f"21_outliers-{name}.ipynb", content)
    page = site.build().read_text()
    assert "7 notebooks failed" in page and "notebooks/20_grids.html" in read("chapter-20.html")
    for name in broken:
        sentence = f"{escape(f'21_outliers-{name}.ipynb')} is no notebook that can be read ("
        assert sentence in page and sentence in read("chapter-20.html")
        assert sentence in read(f"notebooks/21_outliers-{name}.html")
    assert site.main([]) == 0


def test_claims_that_do_not_hold_have_a_list_of_their_own(quick):
    with results.start("22_gptq") as run:
        run.claim("GPTQ < rounding", False, gptq=2.0, rounding=1.5)
        run.claim("this one holds", True)
    page = site.build().read_text()
    assert "Claims that did not hold" in page and "GPTQ &lt; rounding (gptq 2, rounding 1.5)" in page
    assert "GPTQ &lt; rounding (gptq 2, rounding 1.5)" in read("chapter-20.html")
    assert "this one holds" not in page
    with results.start("22_gptq") as run:  # the same configuration again: the newest run of it counts
        run.claim("GPTQ < rounding", True)
    assert "Claims that did not hold" not in site.build().read_text()


def test_a_second_model_has_its_own_table(quick):
    report_data.store(few())
    report_data.store(few(model="other/second-model"))
    site.build()
    page = read("chapter-50.html")
    assert "Results: tiny-model on" in page and "Results: second-model on" in page and "benchmark-2.csv" in page


def test_inputs_are_shown(quick, monkeypatch):
    import lib.sources

    used = [{"kind": "text", "name": "packaged", "split": "test", "origin": "pydoc", "sha256": "f00d" * 16}]
    monkeypatch.setattr(lib.sources, "used", lambda: used)
    report_data.store(few())
    site.build()
    page = read("chapter-60.html")
    assert "f00df00df00d" in page and "pydoc" in page


def test_readme_block_is_replaced_and_the_rest_kept(home):
    report_data.store(few())
    path = home / "README.md"
    path.write_text(f"before\n{BEGIN}\nold numbers\n{END}\nafter\n")
    site.readme(path)
    text = path.read_text()
    assert text.startswith(f"before\n{BEGIN}\n") and text.endswith(f"{END}\nafter\n")
    assert "| GPTQ 4 bits | 28.50 ± 0.40 |" in text and "old numbers" not in text
    assert (files.figures() / "readme.png").read_bytes().startswith(b"\x89PNG")
    site.readme(path)
    assert path.read_text() == text


def test_readme_refuses_missing_marks_and_missing_runs(home):
    path = home / "README.md"
    path.write_text(BEGIN)
    with pytest.raises(ValueError, match="lacks <!-- results:end -->"):
        site.readme(path)
    path.write_text(BEGIN + END)
    with pytest.raises(ValueError, match="no finished run of 50_benchmark"):
        site.readme(path)
    assert path.read_text() == BEGIN + END


def test_main_writes_the_readme(quick, home, monkeypatch):
    report_data.store(few())
    monkeypatch.setattr(files, "ROOT", home)
    (home / "README.md").write_text(BEGIN + END)
    assert site.main(["--readme"]) == 0
    assert "RTN 4 bits" in (home / "README.md").read_text()


def test_notebook_page_needs_no_network_and_keeps_what_matters():
    bar = {"output_type": "stream", "name": "stderr", "text": ["\r 0%|", "\r 50%|", "\r 100%|\n"]}
    printed = {"output_type": "stream", "name": "stdout", "text": ["a    1\nb   22\n"]}
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
    formula = r"It is $\lVert W x \rVert_2$, `$not this$`, \$5, $a < b$ and $\frac{$." + "\n\n$$ a = \\frac{1}{2} $$"
    notebook(prose("# Title <1>\n" + formula), code("x = 1", bar, widget, table, printed))
    (page,) = notebooks.convert(files.report() / "notebooks")
    text, found = page.path.read_text(), Structure(page.path)
    assert page.title == "Title <1>" and not page.failed and page.error == ""
    assert "Title &lt;1&gt;</title>" in text and not found.scripts
    assert all(address.startswith(("data:", "#", "../")) for address in found.addresses)
    assert "<pre class='columns'>a    1\nb   22" in text and text.count("class='columns'") == 1
    assert "100%|" in text and "50%|" not in text and "5/5 blocks" in text and "<b>\nbold</b>" in text
    assert text.count("<math") == 3 and 'display="block"' in text and r"<code>\frac{</code>" in text
    assert "$not this$" in text and "$5" in found.text and "<mo>&lt;</mo>" in text


def test_a_page_that_somebody_put_there_is_neither_deleted_nor_written_over(quick):
    notebook(prose("# One"))
    for name in ("index.html", "chapter-20.html", "notebooks/00_start_here.html"):
        files.write_text(files.report() / name, "somebody's own page")
        with pytest.raises(ValueError, match=f"{name} is no page of this report"):
            site.build()
        assert read(name) == "somebody's own page"
        (files.report() / name).unlink()
    site.build()


def test_conversion_is_skipped_while_nothing_changed_and_stale_pages_go(monkeypatch):
    folder = files.report() / "notebooks"
    notebook(prose("# One"))
    (folder / ".half.part.ipynb").write_text("{")
    pages.write(folder / "gone.html", "notebook", title="x", chapter=chapters.of("x"), body="")
    (folder / "older.html").write_text(
        "<body class='notebook'><p class='back'><a href='../index.html'>← Report</a></p>"
    )
    (folder / "mine.html").write_text("somebody's own page")
    (page,) = notebooks.convert(folder)
    assert not (folder / "gone.html").exists() and not (folder / "older.html").exists()
    assert (folder / "mine.html").exists()
    page.path.write_text(kept := page.path.read_text() + "kept")
    os.utime(page.path, (2e9, 2e9))
    notebooks.convert(folder)
    assert page.path.read_text() == kept
    os.utime(folder / "00_start_here.ipynb", (2.1e9, 2.1e9))
    notebooks.convert(folder)
    assert "One" in page.path.read_text()


def test_the_ladder_is_ranked_on_the_page_and_missed_where_it_is_not_on_record(quick):
    site.build()
    page = read("chapter-20.html")
    assert "Methods by bit width" in page and "no finished run of 29_best_recipe yet" in page
    with results.start("29_best_recipe", dict(model="tiny", text="packaged", windows=4, bits=3)) as run:
        for rung, value in {"rtn": 0.9, "recipe": 0.2, "gptq": 0.4}.items():
            run.record("kl_divergence", Score(value, 0.01, 4, "nats", False), rung=rung)
    site.build()
    page = read("chapter-20.html")
    places = re.findall(r"<th >3</th>\s*<td >(\d)</td>\s*<td >(\w+)</td>", page)
    assert places == [("1", "recipe"), ("2", "gptq"), ("3", "rtn")] and "no finished run of 29" not in page
