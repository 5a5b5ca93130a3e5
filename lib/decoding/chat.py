"""Chat: applies the chat template to one question and returns the new text alone."""

import torch
from torch import nn

from lib import tokenization
from lib.decoding import ends
from lib.decoding.generate import generate
from lib.decoding.sessions import ModelSession


def answer(model: nn.Module, prompt: str, *, new_tokens: int = 60, plain: bool = False) -> str:
    """Greedy answer of `model` (with its `model.tokenizer`) to `prompt`, at most `new_tokens` tokens.

    The prompt goes through the tokenizer's chat template; without one it is continued as plain text. plain: leave out
    what the checkpoint's generation settings do to logits. Raises ValueError for a prompt that holds half a character
    (a lone surrogate), which no tokenizer reads.
    """
    tokenizer, text = model.tokenizer, tokenization.check(prompt)
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    (ids,) = tokenization.ids(tokenizer, [text])
    found = generate(
        ModelSession(model), torch.tensor(ids), new_tokens=new_tokens, eos=ends.of_model(model), tokenizer=tokenizer,
        plain=plain,
    )  # fmt: skip
    return found.text
