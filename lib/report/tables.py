"""The results as tables: numbers with their standard errors, written as HTML, Markdown, CSV, LaTeX or plain text."""

import math
from html import escape

import pandas as pd

from lib import files
from lib.report import selection

WORSE = "†"  # marks a value worse than the trivial baseline
# column title -> (metric, factor that turns its unit into the column's)
PLAIN = {
    "Perplexity": ("perplexity", 1),
    "KL divergence": ("kl_divergence", 1),
    "Top-1 agreement %": ("top1_agreement", 100),
    "MB": ("artifact_bytes", 1e-6),
    "Bits/weight": ("bits_per_weight", 1),
    "Peak memory MB": ("peak_memory", 1e-6),
}
COUNTED = {"artifact_bytes": 1, "bits_per_weight": 2, "peak_memory": 0}  # decimals of what has no error
SPEEDS = {"Prefill tokens/s": "prefill", "Decode tokens/s": "decode"}


def fmt(value: float | None, stderr: float | None = None) -> str:
    """A number as it may be read: two significant digits of its standard error, and no digits beyond them.

    `fmt(26.153, 0.412)` is `26.15 ± 0.41`, `fmt(506788, 23456)` is `507,000 ± 23,000`; without an error,
    four significant digits; `–` for no value.
    """
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    # the mean of equal numbers, 0.2 say, may differ from them in its last bit: that is no error
    if stderr is None or not math.isfinite(stderr) or stderr <= 1e-12 * abs(value):
        return _fixed(value, 3 - _magnitude(value, 4))
    digits = 1 - _magnitude(stderr, 2)
    return f"{_fixed(value, digits)} ± {_fixed(stderr, digits)}"


def _magnitude(number: float, significant: int) -> int:
    """Decimal exponent of a number once it is rounded to so many significant digits (0.0996 is 0.10: -1)."""
    return int(f"{abs(number):.{significant - 1}e}".rpartition("e")[2]) if number else 0


def _fixed(number: float, digits: int) -> str:
    """`number` with so many decimals, rounded left of the point when they are negative."""
    return f"{round(number, digits) + 0.0:,.{max(digits, 0)}f}"


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Full numbers behind `benchmark`, one row per configuration: columns as in `selection.wide`."""
    check(table)
    return selection.wide(table)


def check(table: pd.DataFrame) -> None:
    """Refuse a table whose rows can't be compared: several models, texts or windows, or no original among them.

    Raises ValueError naming what is mixed or missing, and what to do.
    """
    chosen = selection.benchmarks(table)
    for column in selection.SETTING:
        values = chosen[column].dropna().unique()
        if len(values) > 1:
            raise ValueError(
                f"the table mixes {column}={', '.join(map(str, values))}; rows of one table share it; "
                f"keep one, e.g. table[table.{column} == {values[0]!r}], or take selection.main(table)."
            )
    now = selection.current(chosen)
    if len(now) and not now["method"].eq("none").any():
        raise ValueError(
            "the table has no finished run of the original model; every row is read against it; "
            "run 50_benchmark with method='none' on the same model and text."
        )


def benchmark(table: pd.DataFrame) -> pd.DataFrame:
    """One row per configuration, each value with its standard error; what they mean is in `.attrs["notes"]`.

    Speeds carry their ratio to the original timed in the same run. A value worse than its trivial baseline
    ends in `†`. Raises ValueError when the rows can't be compared (see `check`); an empty table gives no rows.
    """
    data = numbers(table)
    frame = pd.DataFrame(index=pd.Index(data.index, name="Configuration"))
    for column, (metric, factor) in PLAIN.items():
        frame[column] = [_cell(row, metric, factor) for row in data.to_dict("records")]
    for column, metric in SPEEDS.items():
        frame[column] = [_speed(row, metric) for row in data.to_dict("records")]
    frame.attrs["title"] = selection.title(table)
    frame.attrs["notes"] = notes(table)
    return frame


def shown(table: pd.DataFrame) -> pd.DataFrame | str:
    """`benchmark` of the main comparison, or the sentence that says what is missing for it."""
    try:
        return benchmark(selection.main(table))
    except ValueError as gap:
        return str(gap)


def _cell(row: dict, metric: str, factor: float) -> str:
    value, stderr = row.get(metric, math.nan), row.get(f"{metric}_stderr", math.nan)
    if metric in COUNTED and math.isfinite(value) and not stderr > 0:
        return f"{value * factor:,.{COUNTED[metric]}f}"
    return fmt(value * factor, stderr * factor) + WORSE * worse(row, metric)


def worse(row: dict, metric: str) -> bool:
    """Whether a value is worse than the baseline that needs no model; False where there is no baseline."""
    value, baseline = row.get(metric, math.nan), row.get(f"{metric}_baseline", math.nan)
    return bool(value < baseline if row.get(f"{metric}_better") is True else value > baseline)


def ratio(row: dict, metric: str) -> tuple[float, float]:
    """Speed as a multiple of the original's in the same run, with its standard error (errors taken as independent).

    The original's own row is 1 by definition; (nan, nan) where the original was not timed in that run.
    """
    if row["method"] == "none":
        return 1.0, math.nan
    value, original = row.get(metric, math.nan), row.get(f"{metric}_original", math.nan)
    errors = [row.get(f"{metric}_stderr", math.nan) / value, row.get(f"{metric}_original_stderr", math.nan) / original]
    return value / original, value / original * math.hypot(*errors)


def _speed(row: dict, metric: str) -> str:
    multiple, _ = ratio(row, metric)
    speed = _cell(row, metric, 1)
    return speed if math.isnan(multiple) else f"{speed} ({multiple:.2f}×)"


def notes(table: pd.DataFrame) -> list[str]:
    """Footnotes of `benchmark`: what ± is, how many samples, the trivial baselines, what is missing."""
    data = selection.wide(table)
    lines = ["± is one standard error; × is the speed relative to the original timed, interleaved, in the same run."]
    against = []
    for title, (metric, factor) in PLAIN.items():
        counts = sorted(data.get(f"{metric}_n", pd.Series(dtype=float)).dropna().unique())
        baselines = sorted(data.get(f"{metric}_baseline", pd.Series(dtype=float)).dropna().unique())
        if baselines:
            shown = ", ".join(f"{each * factor:,.6g}" for each in baselines)
            size = f", n = {', '.join(f'{each:,.0f}' for each in counts)}" if counts else ""
            against.append(f"{title}: trivial baseline {shown}{size}")
        elif metric in ("perplexity", "kl_divergence", "top1_agreement") and counts:
            lines.append(f"{title}: n = {', '.join(f'{each:,.0f}' for each in counts)}.")
    if against:
        lines.append(f"{'; '.join(against)}; {WORSE} marks a value worse than that.")
    last = selection.current(selection.main(table)).drop_duplicates("run")
    for column, advice in [("machine", "compare speeds by their ×"), ("commit", "the code may differ")]:
        if last[column].nunique() > 1:
            lines.append(f"The runs come from {last[column].nunique()} different values of {column}: {advice}.")
    return lines + selection.absent(table)


def html(frame: pd.DataFrame, kind: str = "numbers") -> str:
    """The frame as an HTML table in a box of its own to scroll in, everything escaped, with its notes under it.

    kind: "numbers" (aligned right but for the first column, which heads the rows) or "text" (left, lines wrap).
    """
    body = _whole(frame).astype(str)  # of a single column, the numbers of the rows head them
    if len(body.columns) > 1:
        body = body.set_index(body.columns[0]).rename_axis(index=None, columns=escape(str(body.columns[0])))
    styler = body.style.format(escape="html").format_index(escape="html").format_index(escape="html", axis="columns")
    under = "".join(f"<p class='note'>{escape(note)}</p>" for note in frame.attrs.get("notes", []))
    return f"<div class='wide {kind}' tabindex='0'>{styler.to_html(exclude_styles=True)}</div>{under}"


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with an index that has a name as its first column."""
    return frame.reset_index() if frame.index.name else frame


def markdown(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table with its notes under it; numbers aligned right."""
    body = _whole(frame)
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in body.itertuples(index=False)]
    lines = [list(map(str, body.columns)), [":--", *["--:"] * (len(body.columns) - 1)], *cells]
    under = "".join(f"\n{note}\n" for note in frame.attrs.get("notes", []))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n" + under


def csv(frame: pd.DataFrame) -> str:
    """The frame as CSV; give it `numbers(table)` for full numbers with their errors in columns of their own."""
    return frame.to_csv(lineterminator="\n")


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
LATEX |= {each: f"\\{each}" for each in "&%$#_{}"}
LATEX |= {"±": r"$\pm$", "×": r"$\times$", "†": r"$\dagger$", "–": "--", "∞": r"$\infty$", "−": "$-$"}


def latex(frame: pd.DataFrame) -> str:
    """The frame as a LaTeX table for the booktabs package, every special character escaped, notes under it."""

    def line(cells) -> str:
        return " & ".join("".join(LATEX.get(sign, sign) for sign in str(cell)) for cell in cells) + r" \\"

    body = _whole(frame)
    lines = [r"% \usepackage{booktabs}", r"\begin{tabular}{l" + "r" * (len(body.columns) - 1) + "}", r"\toprule"]
    lines += [line(body.columns), r"\midrule", *map(line, body.itertuples(index=False)), r"\bottomrule"]
    lines += [r"\end{tabular}", *(r"\par\footnotesize " + line([note])[:-3] for note in frame.attrs.get("notes", []))]
    return "\n".join(lines) + "\n"


def text(frame: pd.DataFrame) -> str:
    """The frame for a console, with its notes under it."""
    return "\n".join([frame.to_string(), *frame.attrs.get("notes", [])]) + "\n"


def save(table: pd.DataFrame, folder, name: str = "benchmark") -> dict[str, str]:
    """Write the benchmark as CSV (full numbers), Markdown and LaTeX into `folder`; returns kind -> file name."""
    frame = benchmark(table)
    contents = {"csv": csv(numbers(table)), "md": markdown(frame), "tex": latex(frame)}
    return {kind: files.write_text(folder / f"{name}.{kind}", content).name for kind, content in contents.items()}
