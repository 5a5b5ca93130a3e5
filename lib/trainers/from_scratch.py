"""A language model from nothing: its tokenizer, its data, its training, and what it learned on text it never saw.

    corpus = from_scratch.corpus("quick")
    found  = from_scratch.train("headwise", corpus, seed=0)

Seed k gives every architecture the same rows in the same order, and the same first values of the parts they share.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from lib import architectures, files
from lib.export import plain
from lib.sources import chunks, contamination, models, texts, token_file, token_windows
from lib.trainers import byte_pairs, held_out, loop, next_token, presets, processes, sequence_packing, utilization
from lib.trainers.history import History

_CHARACTERS = 5  # of a token, with some to spare: how much of a data set of the Hub is read


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a preset's models are trained on.

    rows: `PackedSequences`, or windows where documents may see each other. unseen: token ids [count, length].
    """

    preset: presets.Preset
    tokenizer: object
    rows: sequence_packing.PackedSequences | token_windows.Rows
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


def corpus(
    preset: str | presets.Preset = "quick", *, text: str | None = None, seed: int = 0, block_diagonal: bool = True
) -> Corpus:
    """Tokenizer, rows and unseen rows of a preset. text: another one than the preset's. seed: the tokenizer's.

    The tokens lie in a file that is mapped into memory, of which rows are read as training asks for them; a text of
    more than some megabytes stays in its files too (`texts.load`). Of a data set of the Hub as much is streamed as the
    preset trains on. Paragraphs of the training text that share 13 words in a row with the unseen text are left out.
    block_diagonal: whether tokens attend to their own document only. Raises ValueError for text that fills no batch,
    FileNotFoundError for text that is not there.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    name = text or made.text
    seen, unseen = (texts.load(name, split, characters=much) for split, much in characters(made).items())
    seen = contamination.without(seen, unseen)
    if made.vocabulary is None:
        tokenizer = models.load()[1]
    else:
        tokenizer = byte_pairs.train(seen.documents, vocabulary=made.vocabulary, seed=seed)
    end = tokenizer.eos_token_id
    stream = token_file.of_documents(seen, tokenizer, end)
    if len(stream) < made.batch * made.length:
        raise ValueError(
            f"text {name!r} fills {len(stream) // made.length} rows of {made.length} tokens and a batch takes "
            f"{made.batch}; at least one batch is needed; give a longer text."
        )
    rows = sequence_packing.PackedSequences(stream, made.length, end=end)
    if not block_diagonal:
        places = range(0, len(rows) * made.length, made.length)
        rows = token_windows.Rows(stream, [], made.length, places, len(tokenizer))
    kept = sequence_packing.PackedSequences(_first(unseen, tokenizer, made), made.length, end=end).ids
    return Corpus(made, tokenizer, rows, kept)


def characters(preset: presets.Preset) -> dict[str, int]:
    """How much of a data set of the Hub a preset reads, split by split."""
    return {"train": _CHARACTERS * preset.tokens, "valid": _CHARACTERS * 2 * preset.unseen * preset.length}


def _first(unseen: texts.Text, tokenizer, preset: presets.Preset) -> np.ndarray:
    """The first tokens of a text, as many as the unseen rows take, or as there are."""
    found, needed = [np.empty(0, np.int64)], preset.unseen * preset.length
    for some, _ in chunks.of_documents(tokenizer, unseen.documents, tokenizer.eos_token_id):
        found.append(some[:needed])
        needed -= len(found[-1])
        if not needed:
            break
    return np.concatenate(found)


def train(
    architecture: str,
    corpus: Corpus,
    *,
    seed: int = 0,
    blocks: int | None = None,
    learning_rate: float | None = None,
    tokens: int | None = None,
    folder: Path | str | None = None,
    watch: Callable[[nn.Module, int, float], None] | None = None,
) -> Trained:
    """Train a model of `architecture` on `corpus` as its preset says; saved in `folder`/model where there is one.

    blocks, learning_rate, tokens: other ones than the preset's first. folder: keeps checkpoints and what was measured;
    a killed training resumes there, and on a CPU ends in the same bytes. watch: called after each step with the model,
    the step's number, from 1, and its loss. It trains on a GPU where there is one; of the processes that `accelerate
    launch` starts the first one saves. Errors are `loop.train_`'s and `architectures.build`'s, before anything is
    trained.
    """
    made = corpus.preset
    model = _model(architecture, corpus, blocks or made.blocks[0], seed)
    if folder is not None:
        plain.check(model, corpus.tokenizer)
        files.check_writable(Path(folder) / "model" / "weights", plain.size(model) + plain.ROOM)
    step = made.batch * made.length
    seen = held_out.HeldOut(model, corpus.unseen, every=made.every, tokens_per_step=step, folder=folder)
    options = {"batch": made.batch, "micro_batch": made.micro_batch, "seed": seed, "recipe": made.recipe}
    options |= {"steps": max(1, (tokens or made.tokens) // step), "learning_rate": learning_rate or made.rates[0]}

    def after(step: int, loss: float) -> None:
        seen(step, loss)
        if watch:
            watch(model, step, loss)

    history = loop.train_(model, corpus.rows, next_token.loss, **options, folder=folder, on_step=after)
    if made.recipe.compile:
        print(f"torch.compile: the first step took {utilization.start_up(history):.1f} s longer than the median one")
    seen.measure(len(history.losses))
    if folder is not None and processes.first():
        plain.save(model, corpus.tokenizer, Path(folder) / "model")
    return Trained(model, history, seen.curve(), seen.bits_per_byte(corpus.tokenizer))


def _model(architecture: str, corpus: Corpus, blocks: int, seed: int) -> nn.Module:
    """A model that begins, checked against tokenizer and rows of `corpus`."""
    sizes = corpus.preset.sizes | {"vocab_size": len(corpus.tokenizer), "num_hidden_layers": blocks}
    end = corpus.tokenizer.eos_token_id
    ends = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    model = architectures.build(architecture, sizes | ends, seed)
    model.tokenizer = corpus.tokenizer
    byte_pairs.check(model, corpus.tokenizer)
    if isinstance(corpus.rows, sequence_packing.PackedSequences):
        sequence_packing.check(model)
    return model.to(models.device_of())
