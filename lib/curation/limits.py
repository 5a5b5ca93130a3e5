"""What filters share: measures of a text, each with limits, and the first that lies outside as the reason."""

from collections.abc import Callable, Iterable, Iterator

from lib import files
from lib.curation.document import Document
from lib.curation.tally import Tally

INF = float("inf")
Limits = dict[str, tuple[float, float]]  # the lowest and the highest value with which a document stays


def merged(published: Limits, given: dict | None) -> Limits:
    """The published limits with some replaced; ValueError for a measure that has none, and for no pair of numbers."""
    for name, pair in (given or {}).items():
        if name not in published:
            raise ValueError(f"limits of {name!r} were given; {files.choices(name, published)}")
        if len(pair) != 2 or not float(pair[0]) <= float(pair[1]):
            raise ValueError(f"limits {pair!r} of {name!r}; the lowest and the highest value are needed; give two.")
    return published | {name: tuple(map(float, pair)) for name, pair in (given or {}).items()}


def fault(measured: dict[str, float], limits: Limits) -> str | None:
    """What is outside of its limits, in words; None where nothing is."""
    for name, value in measured.items():
        low, high = limits[name]
        if value < low:
            return f"{name} below {low:g}"
        if value > high:
            return f"{name} above {high:g}"
    return None


def within(
    documents: Iterable[Document], measures: Callable[[str], dict[str, float]], limits: Limits, tally: Tally
) -> Iterator[Document]:
    """The documents whose `measures` are all within their limits."""
    for document in documents:
        if why := fault(measures(document.text), limits):
            tally.drop(document, why)
        else:
            yield tally.keep(document)
