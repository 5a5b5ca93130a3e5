"""Rows of the data sets that tasks read: from `$THIMBLE_DATA`, else from the Hub, or packaged; checked line by line."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from lib import files
from lib.files import data, place
from lib.sources import file_formats, hub, note, packaged_tasks
from lib.sources.benchmark_schema import Benchmark, RequiredFields
from lib.sources.benchmarks import BENCHMARKS


@dataclass(frozen=True)
class Rows:
    """The rows of one split. Each has `id` (unique) and `group`; `sha256` is that of all rows as JSON.

    places: id -> "FILE line N", for messages.
    """

    name: str
    split: str
    rows: list[dict] = field(repr=False)
    origin: str
    sha256: str
    licence: str
    citation: str
    places: dict[str, str] = field(repr=False)


def load(name: str, splits: tuple[str, ...] | str = "test") -> Rows:
    """The rows of a data set: the first of `splits` that lies in `$THIMBLE_DATA`, else the first, from the Hub.

    What was used is printed and noted. Raises `ValueError` for an unknown data set or split and for a malformed line
    (naming file and line), `FileNotFoundError` where the data can be had nowhere (saying what to set).
    """
    splits = (splits,) if isinstance(splits, str) else tuple(splits)
    licence, citation, found, origin, places = _packaged(name, splits) or _published(name, splits)
    split, rows = found
    rows = _identified(rows, name, split)
    text = "\n".join(json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    note(kind="task", name=name, split=split, origin=origin, sha256=sha256)
    print(f"task data {name}/{split}: {origin}; {len(rows)} rows, sha256 {sha256[:8]}")
    places = {row["id"]: where for row, where in zip(rows, places, strict=True)}
    return Rows(name, split, rows, origin, sha256, licence, citation, places)


def names() -> set[str]:
    """All data sets: published and packaged."""
    return {*BENCHMARKS, *packaged_tasks.DATA}


def lines(path: Path) -> list[tuple[str, dict]]:
    """("FILE line N", object) of a JSONL file, as `file_formats.objects` reads it."""
    return list(file_formats.objects(path))


def local(name: str, splits: tuple[str, ...]) -> tuple[str, list[Path]] | None:
    """The first of `splits` of a published data set that lies in `$THIMBLE_DATA` whole, and its files."""
    for split in splits if data() else ():
        paths = [data() / path for path in BENCHMARKS[name].files.get(split, ())]
        if paths and all(path.is_file() for path in paths):
            return split, paths
    return None


def convert(line, entries: list[tuple[str, dict]], name: str, needs: RequiredFields) -> list[dict]:
    """Apply `line` to each row; a row that lacks what its data set needs raises `ValueError` with its place."""
    rows = []
    for where, row in entries:
        try:
            made = line(row)
            needs.check(made)
        except FAULTS as error:
            raise malformed(where, name, error, row) from None
        rows.append(made)
    return rows


FAULTS = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # what reading a malformed row raises


def malformed(where: str, name: str, error: Exception, row: dict) -> ValueError:
    """The error for a malformed row of the data set `name`, with its place and the reason."""
    reason = f"no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
    fields = ", ".join(row) or "none"
    return ValueError(f"{where} is no sample of {name} ({reason}); it has the fields {fields}; mend or drop it.")


def _packaged(name, splits):
    if Path(name).suffix == ".jsonl":
        return _own(Path(name), splits)
    if name not in packaged_tasks.DATA:
        return None
    rows, origin = packaged_tasks.DATA[name]()
    return "Apache-2.0", "Thimble", (splits[0], rows), origin, [f"{name} row {number}" for number in range(len(rows))]


def _own(path: Path, splits):
    """The rows of a JSONL file of a user-defined task, unchanged."""
    if not path.is_file():
        raise FileNotFoundError(f"{place(path)} is no file; a task of one's own reads its rows there; put them there.")
    entries = lines(path)
    rows = [row for _, row in entries]
    return "its owner's", "none", (splits[0], rows), place(path), [where for where, _ in entries]


def _published(name, splits):
    if name not in BENCHMARKS:
        raise ValueError(f"data set {name!r} is unknown; {files.choices(name, names())}")
    benchmark = BENCHMARKS[name]
    known = {*benchmark.files, *benchmark.splits}
    for split in splits:
        if split not in known:
            raise ValueError(f"split={split!r} of {name} is unknown; {files.choices(split, known)}")
    if here := local(name, splits):
        split, paths = here
        entries = [entry for path in paths for entry in lines(path)]
        found = split, convert(benchmark.line, entries, name, benchmark.needs)
        origin = place(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")
        return benchmark.licence, benchmark.citation, found, origin, [where for where, _ in entries]
    rows, origin, places = _from_hub(name, benchmark, splits)
    return benchmark.licence, benchmark.citation, (splits[0], rows), origin, places


def _from_hub(name, benchmark: Benchmark, splits):
    wanted = ", ".join(benchmark.files[splits[0]])
    looked = f" in THIMBLE_DATA={data()}" if data() else " (THIMBLE_DATA is not set)"
    remedy = f"set THIMBLE_DATA to a folder with {wanted}"
    if benchmark.origin:
        remedy += f" (made from github.com/{benchmark.origin})"
    if benchmark.hub is None:
        raise FileNotFoundError(
            f"the data of {name}/{splits[0]} are not there{looked}, and no copy on the Hub is known; {remedy}."
        )
    try:
        return _read_hub(name, benchmark, splits[0])
    except ConnectionError as error:
        raise FileNotFoundError(
            f"the data of {name}/{splits[0]} are not there{looked}, and the Hugging Face Hub did not give "
            f"{benchmark.hub} ({error}); {remedy}, connect to the network, or take a task whose name begins with "
            "'packaged_', which needs no data."
        ) from error


def _read_hub(name, benchmark, split):
    from datasets import load_dataset  # loads slowly, only where the Hub is asked
    from huggingface_hub.errors import HTTPError  # as above

    commit = benchmark.revision or hub.revision(benchmark.hub)
    entries = []
    try:
        for config in benchmark.configs:
            part = load_dataset(benchmark.hub, config, split=benchmark.splits.get(split, split), revision=commit)
            entries += [
                (f"{benchmark.hub} {config or ''} row {number}", {**row, "config": config})
                for number, row in enumerate(part)
            ]
    except (OSError, HTTPError, ImportError, ValueError, RuntimeError) as error:
        raise ConnectionError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
    rows = convert(benchmark.hub_line or benchmark.line, entries, name, benchmark.needs)
    origin = f"Hub {benchmark.hub} {split} at {commit[:12] if commit else 'an unknown commit (its local cache)'}"
    if benchmark.revision is None:
        origin += ", NOT PINNED: the newest there now, which may differ from what others evaluated"
    return rows, origin, [where for where, _ in entries]


def _identified(rows, name, split):
    """The rows with a unique `id` each (its own, else group and position in it) and a `group` (else the id)."""
    if not rows:
        raise ValueError(f"{name}/{split} has no rows; one or more are needed; copy the file again.")
    positions, found, seen = {}, [], set()
    for row in rows:
        group = row.get("group")
        position = positions[group] = positions.get(group, -1) + 1
        identity = str(row.get("id", position if group is None else f"{group}/{position}"))
        if identity in seen:
            raise ValueError(f"{name}/{split} has two rows with id {identity!r}; ids are unique; drop one of them.")
        seen.add(identity)
        found.append({**row, "id": identity, "group": identity if group is None else str(group), "position": position})
    return found
