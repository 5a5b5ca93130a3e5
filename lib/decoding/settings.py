"""Generation settings of a checkpoint that change logits, applied as transformers' `generate` applies them.

A generation_config may penalise repetition, forbid n-grams or words, set a minimum length, favour sequences, and more;
each of these changes even greedy text. They are applied by transformers' own processors, made by its own
`_get_logits_processor`, so that the texts are equal. Temperature, top-k and the like affect sampling only, and the
caller sets them (`sampling.Sampling`). Needs torch only where a checkpoint has such settings.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

from lib.checkpoints import stored
from lib.decoding import ends

NEUTRAL = {  # settings that change logits, and the neutral value besides None
    "sequence_bias": None,
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "watermarking_config": None,
    "stop_strings": [],
}
_ONE = (None, 1)
OTHER = {  # searches that do not choose one token after the other, and the values that switch them off
    "num_beams": _ONE,
    "num_beam_groups": _ONE,
    "num_return_sequences": _ONE,
    "penalty_alpha": (None, 0),
    "guidance_scale": _ONE,
    "dola_layers": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "token_healing": (None, False),
    "max_time": (None,),
}


class Settings:
    """The settings `values` (those of `NEUTRAL` that change something).

    named: the end token ids; vocabulary: the model's number of tokens. Raises ValueError for settings that need another
    search (beams, contrastive search, guidance, ...).
    """

    def __init__(self, values: dict, named: tuple[int, ...] = (), vocabulary: int = 0):
        self.ends, self.vocabulary = tuple(named), vocabulary
        self.values = {key: _plain(values[key]) for key, none in NEUTRAL.items() if values.get(key) not in (None, none)}
        other = {key: values[key] for key, none in OTHER.items() if values.get(key) not in none}
        if values.get("top_k") in (0, 1):  # contrastive search among one token is greedy
            other.pop("penalty_alpha", None)
        if "ngram_len" in self.values.get("watermarking_config", ()):
            other["watermarking_config"] = "SynthID"
        if other:
            said = ", ".join(f"{key}={value!r}" for key, value in other.items())
            raise ValueError(
                f"the checkpoint's generation_config asks for {said}; a search that takes one token after the other, "
                "without a second model or a clock, is allowed; set these to None in model.generation_config, or give "
                "plain=True to leave all of its settings out."
            )

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def stop_strings(self) -> list[str]:
        """The checkpoint's own stop strings."""
        found = self.values.get("stop_strings", [])
        return [found] if isinstance(found, str) else list(found)

    def ending(self, named) -> "Settings":
        """These settings for answers that end at other tokens, `named` (a token id, or several), as the caller asks.

        A least length forbids those, and no others: `generate(eos_token_id=...)` of transformers does so.
        """
        made = copy.copy(self)
        made.ends = tuple(sorted(ends.ids(named)))
        return made

    def processors(self, prompt: list[int], new_tokens: int, **changed) -> list:
        """transformers' logits processors for one answer to `prompt` of at most `new_tokens` tokens.

        changed: settings that the caller gives in place of the checkpoint's.
        """
        values = {key: value for key, value in (self.values | changed).items() if key != "stop_strings"}
        values = {key: value for key, value in values.items() if value not in (None, NEUTRAL[key])}
        return _processors(values, self, prompt, new_tokens) if values else []


PLAIN = Settings({})


def of(source, plain: bool = False) -> Settings:
    """The settings that `source` brings: a model of transformers, the `Weights` of `runtime.load`, or a session.

    plain: none, whatever the checkpoint has. Raises ValueError for settings that need another search.
    """
    if plain:
        return PLAIN
    for name in ("model", "weights"):  # a session's, of transformers or of the packed engine
        inside = getattr(source, name, None)
        source = inside if hasattr(inside, "generation_config") else source
    found = getattr(source, "generation_config", None)
    if found is None:
        return PLAIN
    values = found if isinstance(found, dict) else vars(found)
    return Settings(values, ends.ids(values.get("eos_token_id")), _vocabulary(source))


def _vocabulary(source) -> int:
    config = getattr(source, "config", None)
    return source.vocabulary if config is None else config.get_text_config().vocab_size


def of_folder(folder: Path | str) -> dict:
    """The generation settings of the checkpoint in `folder`, from the file from which transformers takes them."""
    return stored.settings(folder)


def _plain(value):
    """A setting as it is stored in JSON."""
    if isinstance(value, dict) and any(isinstance(key, tuple) for key in value):  # sequences of `sequence_bias`
        return [[list(key), bias] for key, bias in value.items()]
    return value.to_dict() if hasattr(value, "to_dict") else value


def _processors(values: dict, of: Settings, prompt: list[int], new_tokens: int) -> list:
    import torch  # folders without such settings generate without torch
    from transformers import GenerationConfig, GenerationMixin  # loads torch

    text = SimpleNamespace(vocab_size=of.vocabulary)
    maker = GenerationMixin()
    maker.config = SimpleNamespace(is_encoder_decoder=False, get_text_config=lambda: text)
    config = GenerationConfig(**values, eos_token_id=list(of.ends) or None, do_sample=False, max_new_tokens=new_tokens)
    maker._prepare_special_tokens(config, True, device="cpu", batch_size=1)
    config.max_length = len(prompt) + new_tokens
    if config.min_new_tokens is not None:  # it outranks min_length, as in `_prepare_generated_length`
        config.min_length = config.min_new_tokens + len(prompt)
    given = torch.tensor([prompt])
    return list(maker._get_logits_processor(config, len(prompt), encoder_input_ids=given, device="cpu"))
