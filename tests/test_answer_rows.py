"""Masks of ten chat templates against masks made by hand, first and end tokens once, cuts, and what is refused."""

import pytest
from transformers import AutoTokenizer

from lib.sources import models
from lib.sources.conversations import Conversation, Turn
from lib.trainers import answer_rows
from lib.trainers.minibatch import IGNORED
from tests import tiny

TURNS = (Turn("user", "Hi"), Turn("assistant", "Hello é!"), Turn("user", "Bye"), Turn("assistant", "See you."))
SYSTEM = (Turn("system", "Be kind."), *TURNS)
EACH = "{% for m in messages %}"

# name -> (template, special tokens, turns, the same text by hand: what is learned stands between ⟦ and ⟧)
TEMPLATES = {
    "chatml": (
        EACH + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        ["<|im_start|>", "<|im_end|>"], SYSTEM,
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "⟦Hello é!<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦See you.<|im_end|>⟧\n",
    ),
    "llama 2": (
        EACH + "{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>"], TURNS, "<s>[INST] Hi [/INST]⟦ Hello é! </s>⟧<s>[INST] Bye [/INST]⟦ See you. </s>⟧",
    ),
    "llama 3": (
        "{{ bos_token }}" + EACH + "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], SYSTEM,
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦Hello é!<|eot_id|>⟧<|start_header_id|>user"
        "<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n⟦See you.<|eot_id|>⟧",
    ),
    "gemma": (
        "{{ bos_token }}" + EACH + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ["<s>", "<start_of_turn>", "<end_of_turn>"], TURNS,
        "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n⟦Hello é!<end_of_turn>⟧\n<start_of_turn>user\n"
        "Bye<end_of_turn>\n<start_of_turn>model\n⟦See you.<end_of_turn>⟧\n",
    ),
    "mistral": (
        "{{ bos_token }}" + EACH + "{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        ["<s>", "</s>", "[INST]", "[/INST]"], TURNS,
        "<s>[INST] Hi[/INST]⟦ Hello é!</s>⟧[INST] Bye[/INST]⟦ See you.</s>⟧",
    ),
    "phi 3": (
        EACH + "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ["</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], SYSTEM[:3],
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello é!<|end|>\n</s>⟧",
    ),
    "zephyr": (
        EACH + "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ["</s>"], SYSTEM,
        "<|system|>\nBe kind.</s>\n<|user|>\nHi</s>\n<|assistant|>\n⟦Hello é!</s>⟧\n<|user|>\nBye</s>\n<|assistant|>\n"
        "⟦See you.</s>⟧\n",
    ),
    "vicuna": (
        EACH + "{% if m.role == 'user' %}USER: {{ m.content }} {% else %}ASSISTANT: {{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        ["</s>"], TURNS, "USER: Hi ASSISTANT:⟦ Hello é!</s>⟧USER: Bye ASSISTANT:⟦ See you.</s>⟧",
    ),
    "marked": (
        EACH + "<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        ["<|end|>"], TURNS,
        "<|user|>Hi<|end|><|assistant|>⟦Hello é!<|end|>⟧<|user|>Bye<|end|><|assistant|>⟦See you.<|end|>⟧",
    ),
    "without an end": (
        EACH + "{% if m.role == 'user' %}Q: {{ m.content }}\nA:{% else %} {{ m.content }}{% endif %}{% endfor %}",
        ["</s>"], TURNS[:2], "Q: Hi\nA:⟦ Hello é!</s>⟧",  # the tokenizer's end token is added: the model must stop
    ),
}  # fmt: skip


def tokenizer_of(name):
    template, special, *_ = TEMPLATES[name]
    made = tiny.tokenizer()
    ends = [token for token in ("<s>", "</s>") if token in special]
    made.add_special_tokens({"additional_special_tokens": [token for token in special if token not in ends]})
    made.add_special_tokens(
        {key: token for key, token in (("bos_token", "<s>"), ("eos_token", "</s>")) if token in ends}
    )
    made.chat_template = template
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_only_what_the_assistant_writes_is_learned(name):
    *_, turns, by_hand = TEMPLATES[name]
    tokenizer = tokenizer_of(name)
    ids, wanted = [], []
    for place, piece in enumerate(by_hand.replace("⟧", "⟦").split("⟦")):
        tokens = tokenizer(piece, add_special_tokens=False).input_ids
        ids += tokens
        wanted += tokens if place % 2 else [IGNORED] * len(tokens)
    found = answer_rows.rows([Conversation(turns, "a row")], tokenizer, length=1000)
    row = found[0]
    assert row["input_ids"].tolist() == ids and row["labels"].tolist() == wanted
    assert found.counts["ended"] == (name == "without an end")
    last = answer_rows.rows([Conversation(turns, "a row")], tokenizer, length=1000, answers="last")[0]["labels"]
    learned = [place for place, label in enumerate(row["labels"].tolist()) if label != IGNORED]
    kept = [place for place, label in enumerate(last.tolist()) if label != IGNORED]
    assert kept and kept == learned[-len(kept) :]
    assert (kept == learned) == (sum(turn.role == "assistant" for turn in turns) == 1)
    if name == "marked":
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        own = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
        assert own["assistant_masks"] == [int(label != IGNORED) for label in row["labels"].tolist()]


def test_the_first_token_stands_once_whether_template_or_tokenizer_writes_it():
    from tokenizers.processors import TemplateProcessing

    for name in ("llama 3", "chatml"):
        tokenizer = tokenizer_of(name)
        first = tokenizer.bos_token
        post = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, tokenizer.bos_token_id)])
        tokenizer.backend_tokenizer.post_processor = post
        ids = answer_rows.rows([Conversation(TURNS, "a row")], tokenizer, length=1000)[0]["input_ids"].tolist()
        assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1


def test_long_conversations_are_cut_at_the_right_and_dropped_without_an_answer(capsys):
    tokenizer = tokenizer_of("chatml")
    long = Conversation((Turn("user", "x" * 200), Turn("assistant", "y")), "row 2")
    found = answer_rows.rows([Conversation(TURNS, "row 1"), long], tokenizer, length=50)
    assert len(found) == 1 and found.where == ("row 1",) and len(found[0]["input_ids"]) == 50
    assert found.counts == {"ended": 0, "cut": 2, "dropped": 1}
    assert "2 cut, 1 dropped" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of 1 conversations has an answer within 50 tokens"):
        answer_rows.rows([long], tokenizer, length=50)


def test_a_template_that_rewrites_earlier_answers_is_refused_but_for_the_last():
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        EACH + "<|im_start|>{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ValueError, match=r'row 7: the chat template writes answer 1 otherwise.*answers="last"'):
        answer_rows.rows([Conversation(TURNS, "row 7")], tokenizer, length=200)
    labels = answer_rows.rows([Conversation(TURNS, "row 7")], tokenizer, length=200, answers="last")[0]["labels"]
    assert tokenizer.decode(labels[labels != IGNORED]) == "<think></think>See you.<|im_end|>"


def test_what_no_row_can_be_made_of_is_refused():
    tokenizer = tokenizer_of("llama 2")
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(ValueError, match=r"row 3: .* does not take turns of system, user.*no system"):
        answer_rows.rows([Conversation(SYSTEM, "row 3")], tokenizer, length=9)
    with pytest.raises(ValueError, match="row 4 has no answer"):
        answer_rows.rows([Conversation(TURNS[:1], "row 4")], tokenizer_of("chatml"), length=9)
    for change in (dict(length=1), dict(length=9, answers="some")):
        with pytest.raises(ValueError, match="are allowed"):
            answer_rows.rows([Conversation(TURNS, "a row")], tokenizer, **change)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        answer_rows.rows([Conversation(TURNS, "a row")], tokenizer, length=9)


def test_the_packaged_model_learns_its_answers_and_their_end():
    tokenizer = AutoTokenizer.from_pretrained(models.find("smollm2-135m-instruct")[0])
    row = answer_rows.rows([Conversation(TURNS, "a row")], tokenizer, length=500)[0]
    learned = tokenizer.decode(row["labels"][row["labels"] != IGNORED])
    assert learned == "Hello é!<|im_end|>See you.<|im_end|>"
