"""One question, one answer: the chat template applied, the new tokens alone returned."""

import torch
from torch import nn


@torch.no_grad()
def answer(model: nn.Module, prompt: str, *, new_tokens: int = 60) -> str:
    """Greedy answer of `model` (with its `model.tokenizer`) to `prompt`, at most `new_tokens` tokens.

    The prompt goes through the tokenizer's chat template; without one it is continued as plain text.
    """
    tokenizer = model.tokenizer
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
        inputs = tokenizer.apply_chat_template(chat, **options)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
