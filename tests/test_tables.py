"""The tables, on invented data (see report_data)."""

import io
import math
import shutil
import subprocess

import pandas as pd
import pytest

from lib.report import findings, rows, tables
from tests import report_data


@pytest.fixture(autouse=True)
def no_promises(monkeypatch):
    monkeypatch.setattr(rows, "promised", list)


@pytest.fixture(scope="module")
def table():
    return report_data.benchmark()


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (26.153, 0.412, "26.15 ± 0.41"),
        (506788, 23456, "507,000 ± 23,000"),
        (0.012345, 0.00067, "0.01235 ± 0.00067"),
        (9.96, 0.0996, "9.96 ± 0.10"),
        (9.996, 0.996, "10.0 ± 1.0"),
        (100.0, 12.3, "100 ± 12"),
        (1.0, 3000.0, "0 ± 3,000"),
        (-0.04, 1.2, "0.0 ± 1.2"),
        (26.153, None, "26.15"),
        (26.153, 0.0, "26.15"),
        (49152, math.nan, "49,150"),
        (0.99996, None, "1.000"),
        (0.0, None, "0.000"),
        (math.inf, None, "∞"),
        (-math.inf, 1.0, "-∞"),
        (math.nan, 0.1, "–"),
        (None, None, "–"),
    ],
)
def test_fmt_gives_two_digits_of_the_error(value, stderr, text):
    assert tables.fmt(value, stderr) == text


def test_benchmark_has_a_row_per_configuration_in_order(table):
    frame = tables.benchmark(table.sample(frac=1, random_state=0))
    quantized = [f"{name} {bits} bits" for name in ("RTN", "GPTQ") for bits in (8, 4, 3, 2)]
    assert list(frame.index) == ["Original", *quantized, *(f"Depth -{n} blocks" for n in (2, 4, 8))]
    row = frame.loc["GPTQ 4 bits"]
    assert row["Perplexity"] == "28.50 ± 0.40" and row["MB"] == "116.0" and row["Bits/weight"] == "6.90"
    assert row["Decode tokens/s"] == "16.78 ± 0.20 (0.72×)" and row["Peak memory MB"] == "516.0 ± 3.0"
    assert frame.loc["Original", "Decode tokens/s"].endswith("(1.00×)")


def test_worse_than_the_trivial_baseline_is_marked(table):
    frame = tables.benchmark(table)
    assert frame.loc["RTN 2 bits", "Perplexity"].endswith("†")
    assert frame["Perplexity"].str.endswith("†").sum() == 1
    low = table.assign(value=table["value"].where(table["metric"].ne("top1_agreement"), 0.01))
    assert tables.benchmark(low)["Top-1 agreement %"].str.endswith("†").all()
    assert any("trivial baseline 49,152, n = 24" in note for note in frame.attrs["notes"])


def test_ratio_is_of_one_run_with_propagated_error():
    row = {
        "method": "rtn",
        "decode": 10.0,
        "decode_stderr": 0.3,
        "decode_original": 20.0,
        "decode_original_stderr": 0.8,
    }
    assert tables.ratio(row, "decode") == pytest.approx((0.5, 0.5 * math.hypot(0.03, 0.04)))
    assert all(math.isnan(number) for number in tables.ratio({"method": "rtn", "decode": 10.0}, "decode"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "b"}, "mixes model=some/tiny-model, b"),
        ({"text": "b"}, "mixes text="),
        ({"windows": 8}, "mixes windows="),
        ({"data_hash": "beef"}, "mixes data_hash=cafe, beef"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(table, change, message):
    other = pd.DataFrame(report_data.configuration("rtn", 4, 0, run="other", time="2031-01-01", **change))
    with pytest.raises(ValueError, match=message):
        tables.benchmark(pd.concat([table, other]))
    assert len(tables.benchmark(rows.main(pd.concat([table, other])))) == 12


def test_rows_without_the_original_are_refused_and_no_rows_are_none():
    with pytest.raises(ValueError, match="no finished run of the original"):
        tables.benchmark(report_data.benchmark(without=[("none", 16, 0)]))
    assert tables.benchmark(pd.DataFrame()).empty


def test_notes_tell_of_several_machines_and_of_what_is_missing(table):
    other = table.assign(machine=table["machine"].where(table["method"].ne("rtn"), "another machine"))
    notes = tables.notes(other)
    assert any("2 different values of machine" in note for note in notes)
    again = table[table["run"].eq("run-gptq-3-0")].assign(run="again", status="failed", time="2031-01-01")
    assert "No finished run of: GPTQ 3 bits." in tables.notes(pd.concat([table, again]))


def test_html_and_markdown_read_back_equal(table):
    frame = tables.benchmark(table)
    lines = [line.strip("| ").split(" | ") for line in tables.markdown(frame).splitlines() if line.startswith("|")]
    assert [line[1:] for line in lines[2:]] == frame.to_numpy().tolist() and lines[1][:2] == [":--", "--:"]
    from html.parser import HTMLParser

    cells = []
    parser = HTMLParser()
    parser.handle_data = lambda data: cells.append(data)
    parser.feed(tables.html(frame))
    assert all(value in cells for value in frame.to_numpy().flatten())
    odd = pd.DataFrame({"a|b": ["<b>&"]})
    assert "&lt;b&gt;&amp;" in tables.html(odd) and "a|b" in tables.html(odd)
    assert "<b>" not in tables.html(odd)


def test_csv_holds_full_numbers_with_errors(table):
    back = pd.read_csv(io.StringIO(tables.csv(tables.numbers(table))), index_col="label")
    assert back.loc["RTN 2 bits", "perplexity"] == 506_788
    assert back.loc["GPTQ 4 bits", "perplexity_stderr"] == pytest.approx(0.399)
    assert back.loc["GPTQ 4 bits", "decode_original"] == 23.3


def test_latex_is_booktabs_and_escaped(table, tmp_path):
    source = tables.latex(tables.benchmark(table))
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"28.50 $\pm$ 0.40", r"Top-1 agreement \%", r"$\dagger$"):
        assert part in source
    assert source.count("&") == 13 * 8
    odd = tables.latex(pd.DataFrame({"a_b": ["50% & #1 {x} ~ ^ \\ < $"]}))
    assert r"50\% \& \#1 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} $<$ \$" in odd and r"a\_b" in odd
    if shutil.which("pdflatex"):
        document = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + source + r"\end{document}"
        (tmp_path / "t.tex").write_text(document)
        subprocess.run(["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_text_is_aligned(table):
    lines = tables.text(tables.benchmark(table)).splitlines()[:14]
    assert len({len(line) for line in lines}) == 1


def test_save_writes_three_files(table, tmp_path):
    assert tables.save(table, tmp_path) == {"csv": "benchmark.csv", "md": "benchmark.md", "tex": "benchmark.tex"}
    assert (tmp_path / "benchmark.md").read_text() == tables.markdown(tables.benchmark(table))


def test_findings_are_computed(table):
    found = findings.findings(table)
    assert found[0].startswith(
        "The smallest artifact within 5% of the original's perplexity is GPTQ 8 bits: 170 MB, 63%"
    )
    assert "no difference beyond the 95 % interval" in found[0]
    assert "4 bits: 28.50 ± 0.40 against 33.30 ± 0.47, a difference of -4.80 ± 0.61, outside" in found[2]
    assert found[1].startswith("KL divergence of GPTQ against round-to-nearest. 8 bits: 0.0004294 ± 0.0000048 against")
    assert "2 bits: 0.900 ± 0.010 against 0.900 ± 0.010, no difference beyond the 95 % interval" in found[1]
    assert "GPTQ 2 bits, GPTQ 3 bits, GPTQ 4 bits, GPTQ 8 bits, Original" in found[3]
    assert found[4] == "Perplexity is worse than without any model for: RTN 2 bits."
    assert "0.68 to 1.33" in found[5] and "Faster beyond the 95 % interval: Depth -2 blocks" in found[5]


def test_findings_change_with_the_numbers(table):
    without = table[table["bits"].ne(8)]
    assert findings.findings(without)[0].startswith("No compressed model stays within 5%")
    assert "the closest is GPTQ 4 bits" in findings.findings(without)[0]
    unsure = table.assign(stderr=table["stderr"].where(table["metric"].ne("perplexity")))
    assert "the interval of the difference is unknown" in findings.findings(unsure)[0]
    assert findings.findings(pd.DataFrame()) == []
    assert findings.findings(table[table["method"].ne("none")]) == []
    untimed = table[~table["metric"].isin(["decode", "prefill"])]
    assert not any("decode" in sentence for sentence in findings.findings(untimed))


def test_a_missing_original_is_shown_as_a_gap(table):
    assert "no finished run of the original" in tables.shown(table[table["method"].ne("none")])
    assert tables.shown(table).equals(tables.benchmark(rows.main(table)))
