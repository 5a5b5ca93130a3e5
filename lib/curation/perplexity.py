"""How surprising a small model finds a document, in bits per byte.

CCNet (arXiv 1911.00359) sorted the web by the perplexity of a model of Wikipedia. What the model was trained on is
unsurprising to it, and so is a menu that repeats: low isn't good by itself. Languages differ in bytes a character, so a
limit is for one language.
"""

from collections.abc import Iterable, Iterator

from lib.curation.document import Document
from lib.curation.tally import Tally

CHARACTERS = 4000  # of each document that are read


def stage(
    documents: Iterable[Document],
    *,
    model,
    tally: Tally | None = None,
    characters: int = CHARACTERS,
    length: int = 512,
    most: float | None = None,
) -> Iterator[Document]:
    """The documents with `metadata["bits_per_byte"]`, without those above `most`.

    model: a model with its tokenizer, or a name that `sources.models.load` knows. length: tokens of a window.
    """
    from lib.metrics import bits_per_byte  # torch, for this stage alone
    from lib.sources import models  # torch, for this stage alone

    tally = tally or Tally("perplexity")
    if isinstance(model, str):
        model, _ = models.load(model)
    for document in documents:
        found = None
        if document.text.strip():
            found = bits_per_byte.measure(model, [document.text], length=length, characters=characters).value
        if most is not None and (found is None or found > most):
            tally.drop(document, f"more than {most:g} bits per byte")
        else:
            yield tally.keep(document.having(bits_per_byte=found))
