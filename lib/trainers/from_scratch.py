"""A language model from nothing: its tokenizer, its data, its training, and what it learned on text it never saw.

    corpus = from_scratch.corpus("quick")
    found  = from_scratch.train("headwise", corpus, seed=0)

Seed k gives every architecture the same rows in the same order, and the same first values of the parts they share.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lib import architectures, files, tokenization
from lib.export import plain
from lib.sources import contamination, models, texts
from lib.trainers import byte_pairs, held_out, loop, next_token, presets, sequence_packing, utilization
from lib.trainers.history import History


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a preset's models are trained on. rows: `PackedSequences`. unseen: token ids [count, length]."""

    preset: presets.Preset
    tokenizer: object
    rows: sequence_packing.PackedSequences
    unseen: Tensor


@dataclass(frozen=True, eq=False)
class Trained:
    """A model, how its training went, and its loss on unseen text: (tokens, bits per byte) every so many tokens."""

    model: nn.Module
    history: History
    losses: list[tuple[int, float]]
    bits_per_byte: list[tuple[int, float]]

    @property
    def tokens_per_second(self) -> float:
        """The median step's."""
        return utilization.tokens_per_second(self.history)


def corpus(preset: str | presets.Preset = "quick", *, text: str | None = None, seed: int = 0) -> Corpus:
    """Tokenizer, rows and unseen rows of a preset. text: another one than the preset's. seed: the tokenizer's.

    The whole text and its tokens are held in memory. Paragraphs of the training text that share 13 words in a row with
    the unseen text are left out. Raises ValueError for text that fills no batch, FileNotFoundError for text that is not
    there.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    name = text or made.text
    seen, unseen = texts.load(name, split="train"), texts.load(name, split="valid")
    seen = contamination.without(seen, unseen)
    if made.vocabulary is None:
        tokenizer = models.load()[1]
    else:
        tokenizer = byte_pairs.train(seen.documents, vocabulary=made.vocabulary, seed=seed)
    end = tokenizer.eos_token_id
    ids = [tokenization.ids(tokenizer, list(part.documents), False) for part in (seen, unseen)]
    rows = sequence_packing.pack(ids[0], made.length, end=end)
    kept = sequence_packing.pack(ids[1], made.length, end=end, block_diagonal=False)[: made.unseen]
    if len(rows) < made.batch:
        raise ValueError(
            f"text {name!r} fills {len(rows)} rows of {made.length} tokens and a batch takes {made.batch}; at least "
            "one batch is needed; give a longer text."
        )
    return Corpus(made, tokenizer, rows, kept)


def train(
    architecture: str,
    corpus: Corpus,
    *,
    seed: int = 0,
    blocks: int | None = None,
    learning_rate: float | None = None,
    tokens: int | None = None,
    folder: Path | str | None = None,
) -> Trained:
    """Train a model of `architecture` on `corpus` as its preset says; saved in `folder`/model where there is one.

    blocks, learning_rate, tokens: other ones than the preset's first. folder: keeps checkpoints and what was measured;
    a killed training resumes there, and on a CPU ends in the same bytes. Errors are `loop.train_`'s and
    `architectures.build`'s, before anything is trained.
    """
    made = corpus.preset
    depth, vocabulary = blocks or made.blocks[0], len(corpus.tokenizer)
    sizes = made.sizes | {"vocab_size": vocabulary, "num_hidden_layers": depth}
    end = corpus.tokenizer.eos_token_id
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = architectures.build(architecture, sizes | ends, seed)
    model.tokenizer = corpus.tokenizer
    byte_pairs.check(model, corpus.tokenizer)
    sequence_packing.check(model)
    if folder is not None:
        plain.check(model, corpus.tokenizer)
        files.check_writable(Path(folder) / "model" / "weights", plain.size(model) + plain.ROOM)
    step = made.batch * made.length
    seen = held_out.HeldOut(model, corpus.unseen, every=made.every, tokens_per_step=step, folder=folder)
    options = {"batch": made.batch, "micro_batch": made.micro_batch, "seed": seed, "recipe": made.recipe}
    options |= {"steps": max(1, (tokens or made.tokens) // step), "learning_rate": learning_rate or made.rates[0]}
    history = loop.train_(model, corpus.rows, next_token.loss, **options, folder=folder, on_step=seen)
    seen.measure(len(history.losses))
    if folder is not None:
        plain.save(model, corpus.tokenizer, Path(folder) / "model")
    return Trained(model, history, seen.curve(), seen.bits_per_byte(corpus.tokenizer))
