"""Text to token ids: a first token is there once, whoever wrote it; and where answers end because of their text."""

import pytest
import torch
from tokenizers import processors

from lib import runtime, tokenization
from lib.decoding import chat
from lib.decoding.generate import generate
from lib.decoding.stops import Stops, Watch
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.runtime import text_generation
from lib.runtime.checkpoint import Tokenizer
from lib.sources import prompts
from lib.tasks.task import Generation
from tests import packed, tabular, tiny

SPECIAL = {"<s>": 0, "</s>": 1, "<|user|>": 2, "<|bot|>": 3}
LETTER = len(SPECIAL)  # the token of byte b is b + LETTER


def tokenizer(before="<s>", *, bos=True):
    """Four special tokens, then a token a byte; `before` is what is put before a text; the template writes "<s>"."""
    from tokenizers import Tokenizer as Core
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = SPECIAL | {symbol: LETTER + byte for byte, symbol in enumerate(tiny._symbols())}
    core = Core(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    names = before.split()
    if names:
        core.post_processor = processors.TemplateProcessing(
            single=[*names, "$A"], special_tokens=[(name, SPECIAL[name]) for name in names]
        )
    named = {"bos_token": "<s>", "eos_token": "</s>"} if bos else {}
    made = PreTrainedTokenizerFast(tokenizer_object=core, additional_special_tokens=["<|user|>", "<|bot|>"], **named)
    made.chat_template = (
        "{% if bos_token is defined and bos_token %}{{ bos_token }}{% else %}<|user|><|bot|>{% endif %}"
        "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|bot|>"
    )
    return made


def letters(text):
    return [byte + LETTER for byte in text.encode()]


@pytest.mark.parametrize("before", ["<s>", "", "<|user|> <|bot|>", "<s> <|user|>"])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_first_token_is_there_once(before, loaded, tmp_path):
    made = tokenizer(before)
    if loaded:
        made.save_pretrained(tmp_path)
        made = Tokenizer(tmp_path)
    first = [SPECIAL[name] for name in before.split()]
    bare, begun = "ab", before.replace(" ", "") + "ab"
    assert tokenization.ids(made, [bare, begun, ""]) == [first + letters("ab"), first + letters("ab"), first]
    assert tokenization.ids(made, [bare, begun], bos=False) == [letters("ab"), first + letters("ab")]
    # a text with some other special token first has not begun
    assert tokenization.ids(made, ["</s>ab"]) == [[*first, 1, *letters("ab")]]


def test_a_tokenizer_without_names_for_its_first_tokens_writes_them_once():
    made = tokenizer("<|user|> <|bot|>", bos=False)
    assert tokenization.ids(made, ["<|user|><|bot|>hi", "hi"]) == [[2, 3, *letters("hi")]] * 2


def templated(made):
    return made.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)


def test_every_way_to_a_prompt_writes_the_first_token_once():
    model = tiny.llama(vocab_size=260)
    model.tokenizer = made = tokenizer()
    text, wanted = templated(made), [0, 2, *letters("hi"), 3]
    assert text.startswith("<s>") and made(text).input_ids == [0, *wanted]  # what a tokenizer makes of it by itself
    assert text_generation._ids(text, made) == wanted
    assert prompts.tokens(["hi"], made)[0].tolist() == wanted
    seen = []
    model.register_forward_pre_hook(
        lambda _, args, options: seen.append(options["input_ids"].tolist()[0]), with_kwargs=True
    )
    said = chat.answer(model, "hi", new_tokens=5)
    assert [token for read in seen for token in read][: len(wanted)] == wanted
    asked = Generation(text, (), 5)
    (found,) = Local(model).generate([asked])
    assert found == said
    weights = runtime.pack_(packed.quantize_(model, dtype=torch.float32))
    whole = runtime.generate(weights, [wanted], new_tokens=5, eos=[1])
    assert runtime.generate(weights, text, new_tokens=5, eos=[1]) == whole
    assert Packed(weights).generate([asked]) == [whole[0].text]


def test_half_a_character_is_refused_with_its_place():
    for call in (
        lambda text: tokenization.ids(tiny.tokenizer(), ["fine", text]),
        lambda text: runtime.generate(runtime.pack_(tiny.llama()), text),
        lambda text: chat.answer(tiny.llama(), text),
        lambda text: Local(tiny.llama()).generate([Generation(text, (), 3)]),
        lambda text: Stops(["fine", text], tiny.tokenizer()),
    ):
        with pytest.raises(ValueError, match=r"half a character, '\\ud83d', at place 4"):
            call("cut \ud83d")
    assert tokenization.ids(tiny.tokenizer(), ["a\0b", "\ufffd", "\U0001f600"])[0] == [97, 0, 98]


STOPPED = {  # tokens that are written, stop strings -> tokens of the answer, reason, text
    "a special token": ([*letters("ok"), 2, *letters("no")], ["<|user|>"], 3, "stop", "ok"),
    "special tokens and letters": ([*letters("ok"), 2, *letters("xyz")], ["|>xy"], 5, "stop", "okxy"),
    "not across a skipped token": ([*letters("a"), 2, *letters("b."), 1], ["zz", "b.c", "ab"], 5, "eos", ""),
    "over several tokens": (letters("one END two"), ["END", "two"], 7, "stop", "one "),
    "the first of several": (letters("one two END"), ["END", "two"], 7, "stop", "one "),
    "a character of several tokens": (letters("a é!"), ["é!"], 5, "stop", "a "),
    "a cut character is none": (letters("a é"), ["\ufffd\ufffd"], 4, "length", "a é"),
    "at once": (letters("x"), ["x"], 1, "stop", ""),
}


@pytest.mark.parametrize("case", STOPPED)
@pytest.mark.parametrize("loaded", [False, True])
def test_one_rule_for_stop_strings(case, loaded, tmp_path):
    tokens, strings, count, reason, text = STOPPED[case]
    made = tokenizer()
    if loaded:
        made.save_pretrained(tmp_path)
        made = Tokenizer(tmp_path)
    watch = Watch(Stops(strings, made), {1}, len(tokens))
    ended = [watch.see(token) for token in tokens[:count]]
    assert ended == [False] * (count - 1) + [True]
    assert (watch.reason, watch.text()) == (reason, text)


@pytest.mark.parametrize("case", STOPPED)
def test_the_harness_and_the_loops_stop_there_too(case):
    from transformers.generation import StoppingCriteriaList

    utils = pytest.importorskip("lm_eval.models.utils_hf")
    finished = pytest.importorskip("lm_eval.models.utils")
    tokens, strings, count, reason, text = STOPPED[case]
    made, prompt = tokenizer(), [70, 80]
    criteria: StoppingCriteriaList = utils.stop_sequences_criteria(made, strings, len(prompt), 1)
    stopped = [bool(criteria(torch.tensor([prompt + tokens[:n]]), None)) for n in range(1, count + 1)]
    assert stopped == [False] * (count - 1) + [reason == "stop"]
    whole = made.decode(tokens[:count], skip_special_tokens=True)
    assert finished.postprocess_generated_text(whole, strings, None) == text
    table = tabular.TabularSession(260, seed=3)
    for before, last, following in zip([*prompt, *tokens], [prompt[1], *tokens], tokens):
        table.logits[before, last, following] = 50
    options = {"new_tokens": len(tokens), "eos": 1, "stop": strings, "tokenizer": made}
    for drafter in (None, tabular.Fixed(prompt + tokens, length=9, vocabulary=260)):
        found = generate(table, torch.tensor(prompt), drafter=drafter, **options)
        assert (found.token_ids, found.reason, found.text) == (tokens[:count], reason, text)


def test_empty_stop_strings():
    with pytest.raises(ValueError, match="1 character or more"):
        Stops(["a", ""], tokenizer())
    model = tiny.llama()
    assert Local(model).generate([Generation("x", ("",), 5)]) == Local(model).generate([Generation("x", (), 5)])
