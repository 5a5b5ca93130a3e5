"""Tiny models with a tokenizer that GGUF files can hold, for tests of what is written and read there."""

from lib.quantizers import rtn
from tests import tiny

VOCABULARY = 264
MERGES = [("t", "h"), ("h", "e"), ("th", "e"), ("Ġ", "a"), ("1", "2")]
SPECIAL = ["<|begin|>", "<|end|>"]
BEGIN, END = 261, 262


def words(rule: str = "smollm", *, begins: bool = False):
    """A byte-level tokenizer of 256 bytes, five merges and two special tokens, which parts texts by llama.cpp's `rule`.

    begins: whether it puts its first token before every text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    from lib.export import gguf_tokenizer

    vocabulary = {symbol: byte for byte, symbol in enumerate(tiny._symbols())}
    vocabulary |= {"".join(pair): 256 + place for place, pair in enumerate(MERGES)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    core.pre_tokenizer = gguf_tokenizer.pre_tokenizer(rule)
    core.model.ignore_merges = rule in gguf_tokenizer.WHOLE_WORDS
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if begins:
        core.post_processor = processors.TemplateProcessing(f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], BEGIN)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    )
    made.chat_template = tiny._TEMPLATE
    return made


def build(family: str = "llama", *, bits: int | None = None, group_size: int = 32, **overrides):
    """A tiny model of `tiny`'s `family` with that tokenizer, its linear layers rounded to `bits` if these are given."""
    model = getattr(tiny, family)(vocab_size=VOCABULARY, bos_token_id=BEGIN, eos_token_id=END, **overrides)
    model.tokenizer = words()
    if bits is not None:
        rtn.quantize_(model, bits=bits, group_size=group_size)
    return model
