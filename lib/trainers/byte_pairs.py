"""A tokenizer of a small model's own: byte-level byte-pair encoding, trained on the training text.

A large vocabulary costs a small model most of its weights and time: 49,152 tokens of width 128 are 6.3 M weights
beside blocks of 0.2 M. Perplexities of models with different tokenizers say nothing about each other; bits per byte do.
Source: Sennrich et al., arXiv 1508.07909, on bytes as in GPT-2; trained by the `tokenizers` library.
"""

import random
from collections.abc import Iterable, Iterator

import tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from lib import tokenization
from lib.sources import streams

END = "<|endoftext|>"  # between documents: the end of one and the beginning of the next
BYTES = 256
CHARACTERS = 20_000_000  # of text that is used; more changes little
TRAINERS = {"BPE": "BpeTrainer", "Unigram": "UnigramTrainer", "WordPiece": "WordPieceTrainer"}
SPARE = 128  # a model's embedding may have that many rows more than the tokenizer, to reach a round number


def train(documents: Iterable[str], *, vocabulary: int = 4096, characters: int = CHARACTERS, seed: int = 0):
    """A `PreTrainedTokenizerFast` of `vocabulary` tokens: the 256 bytes, `END`, and the merges that save most.

    characters: how much text is used; of a longer text, documents (of streamed ones, pieces) are drawn by `seed`. The
    same documents and seed give the same tokenizer. Save it beside the model, as `model.tokenizer`.
    Raises ValueError for a vocabulary that holds no bytes, and for text too short to fill it.
    """
    core = tokenizers.Tokenizer(tokenizers.models.BPE())
    core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    core.decoder = tokenizers.decoders.ByteLevel()
    check_size(vocabulary)
    return fit(core, vocabulary, drawn(documents, characters, seed))


def check_size(vocabulary: int, special: int = 1) -> None:
    """Raise ValueError for a vocabulary that doesn't hold all bytes and `special` tokens."""
    if isinstance(vocabulary, bool) or not isinstance(vocabulary, int) or vocabulary < BYTES + special:
        raise ValueError(
            f"vocabulary={vocabulary!r}; the {BYTES} bytes and {END} are in every one, so whole numbers from "
            f"{BYTES + special} are allowed; 2048 to 8192 are usual for small models."
        )


def fit(core: tokenizers.Tokenizer, vocabulary: int, chosen: Iterable[str], special: Iterable[str] = (END,), **options):
    """Train `core`, whose rules stand but for its model's entries, on texts; a `PreTrainedTokenizerFast`.

    special: tokens that no text is split into, `END` first. options: of the trainer of its model. Raises ValueError for
    text too short for `vocabulary` tokens.
    """
    chosen = list(chosen)
    kind = type(core.model).__name__
    trainer = getattr(tokenizers.trainers, TRAINERS[kind])(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        **options,
    )
    core.train_from_iterator(chosen, trainer)
    if core.get_vocab_size() < vocabulary:
        raise ValueError(
            f"vocabulary={vocabulary} from text of {sum(map(len, chosen)):,} characters, which gives "
            f"{core.get_vocab_size()}; give more text, or a vocabulary of at most that."
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END)


def check(model: nn.Module, tokenizer) -> None:
    """Raise ValueError where the table of `model` does not fit the tokens of `tokenizer`."""
    rows, tokens = model.get_input_embeddings().num_embeddings, len(tokenizer)
    if not tokens <= rows < tokens + SPARE:
        raise ValueError(
            f"vocab_size={rows} of the model for a tokenizer of {tokens} tokens; {tokens} to {tokens + SPARE - 1} are "
            f"allowed; build the model with vocab_size={tokens}, or train a tokenizer of that size."
        )


def drawn(documents: Iterable[str], characters: int, seed: int) -> Iterator[str]:
    """The documents; of longer ones than `characters` in all, pieces drawn by `seed` until there are so many."""
    documents = documents if isinstance(documents, streams.Documents) else list(documents)
    total = sum(len(piece) for document in streams.in_pieces(documents) for piece in document)
    chance, left, generator = characters / max(1, total), characters, random.Random(seed)
    blank = True
    for document in streams.in_pieces(documents):
        for piece in document:
            if left > 0 and (chance >= 1 or blank or generator.random() < chance):
                yield tokenization.check(piece[:left], "a document")
                left, blank = left - len(piece), blank and not piece.strip()
    if blank:
        raise ValueError("no text was given; documents with words are needed; give some.")
