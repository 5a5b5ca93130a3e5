"""The form of OpenAI's completions: texts with the log-probabilities of their tokens, the prompt's too where echoed."""

import dataclasses
from collections.abc import AsyncIterator

from lib.decoding.scores import Place
from lib.decoding.text_pieces import Cut, Pieces
from lib.serving import openai_parameters
from lib.serving.answers import Answer, Ask, Token
from lib.serving.artifacts import Artifact
from lib.serving.limits import Limits
from lib.serving.problems import invalid

REASONS = {"length": "length", "eos": "stop", "stop": "stop"}
LOWEST = -9999.0  # a log-probability that is minus infinity, which JSON lacks


class Form:
    """What completions and chats have in common: their heads, their chunks and the count of tokens."""

    KIND, CHUNK = "", ""
    _hidden = False  # whether the tokens that came are not shown

    def __init__(self, given: dict, artifact: Artifact, name: str, created: int):
        self.given, self.artifact, self.name, self.created = given, artifact, name, created

    def head(self, kind: str) -> dict:
        """The beginning of a response or of a chunk."""
        return {
            "id": self.name, "object": kind, "created": self.created, "model": self.artifact.name,
            "system_fingerprint": self.artifact.sha256[:16] or "thimble",
        }  # fmt: skip

    def chunk(self, choice: dict | None, **more) -> dict:
        """A chunk of a stream; with usage asked for, all but the last have it as null."""
        found = self.head(self.CHUNK) | {"choices": [] if choice is None else [choice]} | more
        return found if more or not self.given["usage"] else found | {"usage": None}

    def usage_chunk(self, answers: list[Answer]) -> dict:
        """The last chunk of a stream."""
        return self.chunk(None, usage=usage(answers))

    async def told(self, place: int, answer: Answer) -> AsyncIterator[dict]:
        """Chunks of one answer, each with the count of its tokens so far where that was asked for."""
        async for chunk in self.chunks(place, answer):
            yield chunk | {"usage": usage([answer], self._hidden)} if self.given["running_usage"] else chunk

    def best(self, answers: list[Answer]) -> list[Answer]:
        """The answers that are given: of `best_of` the likeliest `n` to each prompt."""
        return answers


class Completion(Form):
    """One response of /v1/completions."""

    TABLE, KIND, CHUNK, PREFIX = openai_parameters.COMPLETIONS, "text_completion", "text_completion", "cmpl"

    @staticmethod
    def asks(given: dict, artifact: Artifact, limits: Limits) -> list[Ask]:
        """What is asked of the loop: `best_of` answers to each prompt, one prompt after the other."""
        many = given["best_of"] or given["n"]
        if many < given["n"]:
            raise invalid("`best_of` must be greater than or equal to `n`.", "best_of")
        if many > given["n"] and given["stream"]:
            raise invalid("`best_of` is not supported when streaming.", "best_of")
        wanted = given["logprobs"] is not None
        # without new tokens the prompt is read all the same; the one that comes is not shown
        new_tokens = openai_parameters.NEW_TOKENS if given["max_tokens"] is None else given["max_tokens"]
        if new_tokens == 0 and not given["echo"]:
            raise invalid("`max_tokens` must be >= 1, or `echo` true.", "max_tokens")
        asks = []
        for prompt in openai_parameters.prompts(given["prompt"], artifact, limits):
            one = openai_parameters.ask(
                given, prompt, artifact, limits, top=given["logprobs"] or 0, scored=wanted or many > given["n"],
                prompt_scores=wanted and given["echo"], new_tokens=max(new_tokens, 1),
            )  # fmt: skip
            asks += [seeded(one, place) for place in range(many)]
        return asks

    def best(self, answers: list[Answer]) -> list[Answer]:
        """Of `best_of` answers to each prompt the likeliest `n`, in falling order."""
        many, count = self.given["best_of"] or self.given["n"], self.given["n"]
        if many == count:
            return answers
        groups = [answers[start : start + many] for start in range(0, len(answers), many)]
        return [each for group in groups for each in sorted(group, key=lambda answer: -answer.logprob)[:count]]

    def whole(self, answers: list[Answer]) -> dict:
        """The response."""
        choices = [self._choice(place, each) for place, each in enumerate(answers)]
        return self.head(self.KIND) | {"choices": choices, "usage": usage(answers, hidden=self._hidden)}

    @property
    def _hidden(self) -> bool:
        """Whether the one token that came is not shown, since none was asked for."""
        return self.given["max_tokens"] == 0

    def _choice(self, place: int, answer: Answer) -> dict:
        prompt = self._prompt_tokens(answer) if self.given["echo"] else []
        text = "".join(each.text for each in prompt)
        tokens = [*prompt, *([] if self._hidden else answer.told)]
        shown = text if self._hidden else text + answer.generation.text
        told = None if self.given["logprobs"] is None else self._logprobs(tokens)
        return {"index": place, "text": shown, "logprobs": told, "finish_reason": REASONS[answer.generation.reason]}

    async def chunks(self, place: int, answer: Answer) -> AsyncIterator[dict]:
        """Chunks of one answer."""
        offset, begun = 0, self._prompt_tokens(answer) if self.given["echo"] else []
        cut, told = Cut(answer.request.watch.stops), []
        plain = Pieces(self.artifact.tokenizer)
        async for token in answer.tokens():
            if begun:  # its log-probabilities stand once it is read
                begun = self._prompt_tokens(answer)
                told, text = begun, "".join(each.text for each in begun)
                yield self._chunk(place, text, told, 0)
                offset, begun, told = len(text), [], []
            if self._hidden:
                continue
            shown, told = cut.add(plain.add(token.id)), [*told, token]
            if shown:
                yield self._chunk(place, shown, told, offset)
                offset, told = offset + sum(len(each.text) for each in told), []
        rest = "" if self._hidden else cut.rest(answer.generation.text)
        told = [*told[:-1], answer.told[-1]] if told else told
        yield self._chunk(place, rest, told, offset, REASONS[answer.generation.reason])

    def _chunk(self, place: int, text: str, told: list[Token], offset: int, reason: str | None = None) -> dict:
        logprobs = None if self.given["logprobs"] is None else self._logprobs(told, offset)
        return self.chunk({"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason})

    def _prompt_tokens(self, answer: Answer) -> list[Token]:
        """The tokens of the prompt; the first has no log-probability."""
        pieces, scores = Pieces(self.artifact.tokenizer, special=True), answer.scores
        places = [None, *scores.prompt] if scores is not None and scores.wants_prompt else []
        found = [
            Token(token, pieces.add(token), places[n] if n < len(places) else None, token in self.artifact.special)
            for n, token in enumerate(answer.ask.prompt)
        ]
        found[-1] = dataclasses.replace(found[-1], text=found[-1].text + pieces.rest())
        return found

    def _logprobs(self, tokens: list[Token], offset: int = 0) -> dict:
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        return {
            "tokens": [each.text for each in tokens],
            "token_logprobs": [None if each.place is None else finite(each.place.logprob) for each in tokens],
            "top_logprobs": [self._top(each.place) for each in tokens],
            "text_offset": offsets,
        }

    def _top(self, place: Place | None) -> dict[str, float] | None:
        """The likeliest tokens by their texts; of two with one text the likelier one."""
        if place is None or not self.given["logprobs"]:
            return None
        found: dict[str, float] = {}
        for token, logprob in place.top:
            found.setdefault(self.artifact.tokenizer.decode([token]), finite(logprob))
        return found


def usage(answers: list[Answer], hidden: bool = False) -> dict:
    """The count of tokens; answers to one prompt count it once."""
    prompts = sum(len(ask.prompt) for ask in {id(each.ask.prompt): each.ask for each in answers}.values())
    written = 0 if hidden else sum(len(each.told) for each in answers)
    return {"prompt_tokens": prompts, "completion_tokens": written, "total_tokens": prompts + written}


def finite(value: float) -> float:
    """A number that JSON has."""
    return max(value, LOWEST)


def seeded(ask: Ask, place: int) -> Ask:
    """The same with a seed of its own, so that several answers to one prompt differ."""
    return ask if ask.seed is None else dataclasses.replace(ask, seed=(ask.seed + place) % 2**64)
