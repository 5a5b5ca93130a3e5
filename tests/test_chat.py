"""The answer equals what generate returns for the same tokens."""

import torch

from lib.decoding import chat
from tests import tiny


def test_answer_is_the_greedy_continuation_of_the_templated_prompt():
    model = tiny.llama()
    model.tokenizer = tiny.tokenizer()
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=7, do_sample=False)
    expected = model.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)
    assert chat.answer(model, "Hi", new_tokens=7) == expected
    model.tokenizer.chat_template = None
    assert chat.answer(model, text, new_tokens=7) == expected
