"""The tables, on invented data (see report_data)."""

import io
import math
import shutil
import subprocess

import pandas as pd
import pytest
import scipy.stats

from lib.report import findings, selection, tables
from tests import report_data


@pytest.fixture(autouse=True)
def no_promises(monkeypatch):
    monkeypatch.setattr(selection, "promised", list)


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
        (0.2 + 4e-17, 2e-17, "0.2000"),
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
    assert len(tables.benchmark(selection.main(pd.concat([table, other])))) == 12


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
    least, gain, sure, front, worse = findings.findings(table)
    assert least.startswith(
        "By KL divergence from the original (n = 24) the least was lost by GPTQ 8 bits at about 170 MB (0.0004294 ± "
        "0.0000048 against 0.0008588 ± 0.0000095 of RTN 8 bits), GPTQ 4 bits at about 116 MB ("
    )
    assert gain.startswith("The smallest artifact within 5% of the original's perplexity is GPTQ 8 bits: 170 MB, 63%")
    assert "no difference beyond the 95 % interval" in gain and "the fastest, Depth -8 blocks, at 1.330" in gain
    assert sure == (
        "The leads at 170 MB, 116 MB and 103 MB are more than noise (Student's t at 5 %, Holm's correction for 4, "
        "errors taken as independent); at 90 MB no difference was seen."
    )
    assert "GPTQ 2 bits, GPTQ 3 bits, GPTQ 4 bits, GPTQ 8 bits, Original" in front
    assert worse == "Perplexity is worse than without any model for: RTN 2 bits."


def test_findings_change_with_the_numbers(table):
    without = table[table["bits"].ne(8)]
    assert findings.answer(without)[1].startswith("No compressed model stays within 5%")
    assert "the closest is GPTQ 4 bits" in findings.answer(without)[1]
    unsure = table.assign(stderr=table["stderr"].where(table["metric"].ne("perplexity")))
    assert "the interval of the difference is unknown" in findings.answer(unsure)[1]
    assert findings.findings(pd.DataFrame()) == []
    assert findings.findings(table[table["method"].ne("none")]) == []
    untimed = table[~table["metric"].isin(["decode", "prefill"])]
    assert not any("decode" in sentence for sentence in findings.findings(untimed))


def test_a_lead_is_sure_only_where_students_t_says_so_after_holms_correction(table):
    kl = table["metric"].eq("kl_divergence")

    def sure(stderr, n):
        return findings.answer(table.assign(stderr=table["stderr"].where(~kl, stderr), n=table["n"].where(~kl, n)))[2]

    # at 4 bits errors of 0.0085 make t = 3.43: alone that is p = 0.04 at n = 4, of three that are left it is not enough
    t = (0.06097 - 0.01975) / (0.0085 * 2**0.5)
    assert 0.05 / 3 < 2 * scipy.stats.t.sf(t, 3) < 0.05 and "The lead at 103 MB is more than noise" in sure(0.0085, 4)
    assert 2 * scipy.stats.t.sf(t, 23) < 0.05 / 3 and "The leads at 116 MB and 103 MB are more" in sure(0.0085, 24)
    for unknown in (sure(None, 24), sure(0.0085, 1)):
        assert unknown.startswith("No lead is more than noise")
    small = table.assign(value=table["value"].where(table["metric"].ne("artifact_bytes"), table["value"] / 1000))
    assert "The leads at 0.17 MB, 0.116 MB and 0.103 MB are more than noise" in findings.answer(small)[2]
    alone = table[table["method"].isin(["none", "gptq"])]
    assert "No two methods were compared" in findings.answer(alone)[0] and "cannot say" in findings.answer(alone)[2]


def test_a_missing_original_is_shown_as_a_gap(table):
    assert "no finished run of the original" in tables.shown(table[table["method"].ne("none")])
    assert tables.shown(table).equals(tables.benchmark(selection.main(table)))
