"""Log-likelihoods over the network where servers show tokens in their own ways: a first token that is no text,
characters of several tokens, spaces that get lost, offsets that count from elsewhere. The local engine is the truth."""

from itertools import accumulate

import pytest

from lib.evaluation.endpoint import Endpoint, EndpointError
from lib.evaluation.local import Local
from lib.tasks.task import Likelihood
from tests import tiny
from tests.test_endpoint import Served, server

ASKED = [
    Likelihood("Question: alpha beta?\nAnswer:", " gamma delta"),
    Likelihood("Question:\n", "x"),
    Likelihood("问题：天空是什么颜色？答案", " A"),
    Likelihood("The sky is", " 蓝色"),
    Likelihood("天空", "是 blue, 海 too"),
]
BEGIN = "<|begin_of_text|>"  # 17 characters, Llama-3's


def begun():
    """The tiny Llama with a tokenizer that puts a first token before every text; a byte is a token."""
    from tokenizers.processors import TemplateProcessing

    model = tiny.llama()
    first = model.tokenizer.bos_token
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, 0)]
    )
    assert model.tokenizer("ab").input_ids == [0, 97, 98]
    return model


def pieces(ids, fragment, space):
    """What a server writes for each token: a fragment of a character as `fragment`, or (None) nothing until the token
    that completes the character, which then has all of it."""
    found, pending = [], b""
    for token in ids:
        pending += bytes([token])
        try:
            whole = pending.decode()
        except UnicodeDecodeError:
            found.append(fragment or "")
            continue
        found.append(fragment if fragment is not None and len(pending) > 1 else space if whole == " " else whole)
        pending = b""
    return found


def cumulative(first, texts, ids):
    return [0, *accumulate(map(len, [first, *texts]))]


def none(first, texts, ids):
    return [-1] * (len(ids) + 2)


def whole(first, texts, ids):
    """llama-cpp-python's: the whole characters that have come before."""
    return [0, *(len(bytes(ids[:place]).decode(errors="ignore")) for place in range(len(ids) + 1))]


STYLES = {  # the first token's text, how fragments and spaces are written, where tokens and the end are said to begin
    "vLLM, Llama-2": ("<s>", (None, " "), cumulative),
    "vLLM, Llama-3": (BEGIN, (None, " "), cumulative),
    "vLLM, spaces lost": ("<s>", (None, ""), cumulative),
    "SGLang": ("<s>", (None, " "), none),
    "vLLM before fragments were joined": ("<s>", ("\ufffd", " "), cumulative),
    "llama-cpp-python": ("", ("", " "), whole),
}
WITHOUT_FRAGMENTS = ("vLLM before fragments were joined", "llama-cpp-python")


class Rendered(Served):
    """The tiny model behind a server that shows tokens in one of `STYLES`."""

    def __init__(self, style, knows="echo"):
        super().__init__(knows)
        self.model, self.style = begun(), STYLES[style]

    def logprobs(self, prompt):
        (first, written, offsets), ids = self.style, self.values(prompt)[0][1:]
        texts = pieces(ids, *written)
        return super().logprobs(prompt) | {"tokens": [first, *texts, "+"], "text_offset": offsets(first, texts, ids)}

    def prompt_logprobs(self, prompt):
        entries = super().prompt_logprobs(prompt)
        for entry, text in zip(entries[1:], pieces(self.values(prompt)[0][1:], *self.style[1])):
            next(iter(entry.values()))["decoded_token"] = text
        return entries


@pytest.mark.parametrize(
    ("style", "knows"),
    [(style, "echo") for style in STYLES]
    + [
        ("vLLM, Llama-2", "prompt_logprobs"),
        ("vLLM, spaces lost", "prompt_logprobs"),
        ("vLLM before fragments were joined", "prompt_logprobs"),
    ],
)
def test_likelihoods_are_those_of_the_local_engine(style, knows):
    served = Rendered(style, knows)
    asked = ASKED[:3] if style in WITHOUT_FRAGMENTS else ASKED
    with server(served) as (url, _):
        found = Endpoint(url, "tiny").loglikelihoods(asked)
    for one, other in zip(found, Local(served.model).loglikelihoods(asked)):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert (one.greedy, one.tokens) == (other.greedy, other.tokens)


@pytest.mark.parametrize("knows", ["echo", "prompt_logprobs"])
@pytest.mark.parametrize("asked", ASKED[3:])
def test_tokens_that_do_not_join_to_the_continuation_are_refused(asked, knows):
    with server(Rendered(WITHOUT_FRAGMENTS[0], knows)) as (url, _):
        engine = Endpoint(url, "tiny", at_once=1)
        engine.loglikelihoods(ASKED[:1])
        with pytest.raises(EndpointError, match=r"texts of the last tokens .* do not join to .*another server"):
            engine.loglikelihoods([asked])


def test_a_continuation_whose_first_token_has_no_log_probability_is_refused():
    with server(Served()) as (url, _), pytest.raises(EndpointError, match="do not join to 'alpha'"):
        Endpoint(url, "tiny").loglikelihoods([Likelihood("", "alpha")])
