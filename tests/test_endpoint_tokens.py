"""Log-likelihoods over the network where servers show tokens in their own ways: a first token that is no text,
characters of several tokens, spaces that get lost, offsets that count from elsewhere. The local engine is the truth."""

from itertools import accumulate

import pytest

from lib.evaluation import run
from lib.evaluation.endpoint import Endpoint, EndpointError
from lib.evaluation.local import Local
from lib.tasks.task import Generation, Likelihood
from tests import questions, tiny
from tests.test_endpoint import Served, server
from tests.test_tokenization import letters, templated, tokenizer

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
        engine = Endpoint(url, "tiny", concurrency=1)
        engine.loglikelihoods(ASKED[:1])
        with pytest.raises(EndpointError, match=r"texts of the last tokens .* do not join to .*another server"):
            engine.loglikelihoods([asked])


def test_a_continuation_whose_first_token_has_no_log_probability_is_refused():
    with server(Served()) as (url, _), pytest.raises(EndpointError, match="do not join to 'alpha'"):
        Endpoint(url, "tiny").loglikelihoods([Likelihood("", "alpha")])


class Beginning:
    """A server of a model whose tokenizer puts "<s>" before a text, in the ways in which servers do and report it."""

    def __init__(self, kind):
        self.kind, self.read = kind, []

    def __call__(self, path, body):
        adds = self.kind != "adds nothing"
        if "add_special_tokens" in body:
            if self.kind == "refuses the word":
                return 400, {"error": "unknown field"}, {}
            adds = adds and (body["add_special_tokens"] or self.kind == "ignores the word")
        ids = tokenizer()(body["prompt"], add_special_tokens=adds).input_ids
        self.read.append(ids)
        used = {} if self.kind == "counts nothing" else {"usage": {"prompt_tokens": len(ids)}}
        return 200, {"choices": [{"text": "cut \ud83d and whole \ud83d\ude00"}], **used}, {}


KINDS = ("hears the word", "ignores the word", "refuses the word", "adds nothing", "counts nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_templated_prompts_have_their_first_token_once_on_every_server(kind):
    text, served = templated(tokenizer()), Beginning(kind)
    asked = [Generation(text, (), 3), Generation("hi", (), 3), Generation(text, (), 3)]
    with server(served) as (url, _):
        Endpoint(url, "m", concurrency=1).generate(asked)
    begun, bare = [0, 2, *letters("hi"), 3], [0, *letters("hi")]
    assert served.read[-3:] == [begun, bare if kind != "adds nothing" else bare[1:], begun]
    assert len(served.read) <= 6  # it is asked how it counts once


def test_a_first_token_that_is_given_and_prompts_without_one():
    served = Beginning("hears the word")
    with server(served) as (url, bodies):
        Endpoint(url, "m").generate([Generation("plain", (), 3)])
        assert len(bodies) == 1 and "add_special_tokens" not in bodies[0][1]
        Endpoint(url, "m", first="</s>").generate([Generation("</s>hi", (), 3)])
    assert served.read[-1] == [1, *letters("hi")]
    assert Endpoint(url, "m", first="</s>").identity != Endpoint(url, "m").identity


def test_half_an_emoji_from_a_server_is_replaced_and_the_evaluation_ends(tmp_path):
    task = questions.task([Generation(f"say {place}", (), 3) for place in range(3)])
    with server(Beginning("hears the word")) as (url, bodies):
        found = run.evaluate(Endpoint(url, "m"), task, cache=tmp_path)
        assert [row.answers for row in found.rows] == [["cut \ufffd and whole \U0001f600"]] * 3
        assert found.replaced == 3 and found.asked == 3
        again = run.evaluate(Endpoint(url, "m"), task, cache=tmp_path)
        assert again.asked == 0 and again.replaced == 3 and len(bodies) == 3
        with pytest.raises(ValueError, match="a prompt holds half a character"):
            Endpoint(url, "m").generate([Generation("\ud83d", (), 3)])
