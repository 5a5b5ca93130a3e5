"""Where models and texts come from, and the list of what this process has loaded."""

_used: list[dict] = []


def note(*, kind: str, name: str, origin: str, sha256: str, split: str | None = None) -> bool:
    """Add what was loaded to `used()`, and say whether it was new; loading the same thing again adds nothing."""
    entry = {"kind": kind, "name": name, "split": split, "origin": origin, "sha256": sha256}
    if entry in _used:
        return False
    _used.append(entry)
    return True


def used() -> list[dict]:
    """What this process has loaded, in order: dicts of kind ("model", "text", ...), name, split, origin and sha256."""
    return [dict(entry) for entry in _used]
