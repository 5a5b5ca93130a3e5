"""Parts of a page that are written by a command: between `<!-- name:begin -->` and `<!-- name:end -->`."""


def marks(name: str) -> tuple[str, str]:
    """What stands before and behind the part called `name`."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def replaced(text: str, name: str, block: str, page: str = "the page") -> str:
    """`text` with `block` between the two marks of `name`; ValueError where `page` lacks one of them."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page} lacks {end if found else begin}; both marks, in order, are needed; add them.")
    return f"{before}{begin}\n{block}\n{end}{after}"
