"""Claims: a sentence, the condition under which it holds, and the numbers behind it.

    run.claim("GPTQ is nearer to the original than rounding", gptq < rounding, gptq=gptq, rounding=rounding)

A claim that does not hold on another model, text or machine is a finding: it is printed, recorded and listed in the
report, and the notebook goes on. It raises an error only with `THIMBLE_CLAIMS=strict` (as in `make test`), at the
committed defaults, and never for numbers that come from a clock.
"""

import ast
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import files


class ClaimError(AssertionError):
    """A claim that must hold at the committed defaults does not."""


@dataclass(frozen=True)
class Claim:
    """A sentence, whether it holds, the numbers behind it, and whether they come from a clock."""

    sentence: str
    holds: bool
    numbers: dict
    clock: bool = False

    def __str__(self):
        shown = ", ".join(f"{name.replace('_', ' ')} {_number(value)}" for name, value in self.numbers.items())
        what = "Holds" if self.holds else "DOES NOT HOLD"
        return f"{what}: {self.sentence}" + (f" ({shown})" if shown else "")

    @property
    def row(self) -> dict:
        """The claim as a row of a record."""
        return asdict(self)


def made(sentence: str, holds, numbers: dict, clock: bool = False) -> Claim:
    """A claim whose parts are plain values: `holds` may be a numpy or torch boolean, numbers Scores.

    Raises TypeError for a condition that is neither true nor false (a Series, a tensor of several).
    """
    try:
        truth = bool(holds)
    except (ValueError, RuntimeError, TypeError):
        raise TypeError(
            f"the condition of {sentence!r} is a {type(holds).__name__}; one truth value is allowed; use all() or any."
        ) from None
    return Claim(sentence, truth, {name: _plain(value) for name, value in numbers.items()}, clock)


def must_hold(notebook: str, parameters: dict) -> bool:
    """Whether a claim of `notebook`, run with `parameters`, raises: under `make test`, at the committed defaults."""
    if os.environ.get("THIMBLE_CLAIMS") != "strict":
        return False
    committed = _committed(notebook)
    return committed is not None and all(parameters.get(name) == value for name, value in committed.items())


def missed(documents: list[dict]) -> list[str]:
    """A line for each claim on record that did not hold: its run, its sentence and its numbers."""
    return [
        f"{document['run']}: {str(Claim(**claim)).removeprefix('DOES NOT HOLD: ')}"
        + " [depends on a clock]" * claim["clock"]
        for document in documents
        for claim in document.get("claims", [])
        if not claim["holds"]
    ]


def _committed(notebook: str) -> dict | None:
    """The defaults of a notebook as last committed, so that editing them fails no test; from the
    file itself where there is no git, None where there is no such notebook."""
    path = files.ROOT / "notebooks" / f"{notebook}.ipynb"
    command = ["git", "--no-optional-locks", "-C", str(path.parent), "show", f"HEAD:./{path.name}"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        text = path.read_text(encoding="utf-8") if path.exists() else None
    return None if text is None else literals(json.loads(text))


def literals(document: dict) -> dict:
    """Names and values in the cells tagged `parameters` of a notebook's JSON, parsed without running them.

    Raises SyntaxError, ValueError or AttributeError where they hold anything but `name = literal`.
    """
    cells = [cell for cell in document["cells"] if "parameters" in cell.get("metadata", {}).get("tags", [])]
    found = {}
    for node in ast.parse("\n".join("".join(cell["source"]) for cell in cells)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id: ast.literal_eval(node.value) for target in targets}
    return found


def notebook_file(name: str) -> Path:
    """Path of the notebook `name`: in the working folder, its `notebooks`, or this repository's.

    Raises FileNotFoundError where it is in none of them.
    """
    places = [Path(), Path("notebooks"), files.ROOT / "notebooks"]
    found = next((place / f"{name}.ipynb" for place in places if (place / f"{name}.ipynb").is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"notebook {name!r} is not in this folder or in {files.ROOT / 'notebooks'}; its own name is needed, to "
            "read which of the variables are parameters; give results.start the name of the file without .ipynb."
        )
    return found


def _plain(value):
    value = getattr(value, "value", value)  # a Score
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
