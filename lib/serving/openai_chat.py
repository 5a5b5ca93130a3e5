"""The form of OpenAI's chat completions."""

from collections.abc import AsyncIterator

from lib.decoding.text_pieces import Cut, Pieces
from lib.serving import openai_parameters
from lib.serving.answers import Answer, Ask, Token
from lib.serving.artifacts import Artifact
from lib.serving.limits import Limits
from lib.serving.openai_completions import REASONS, Form, finite, seeded, usage
from lib.serving.problems import invalid


class Chat(Form):
    """One response of /v1/chat/completions."""

    TABLE, KIND, CHUNK, PREFIX = openai_parameters.CHAT, "chat.completion", "chat.completion.chunk", "chatcmpl"

    @staticmethod
    def asks(given: dict, artifact: Artifact, limits: Limits) -> list[Ask]:
        """What is asked of the loop: `n` answers."""
        if given["top_logprobs"] is not None and not given["logprobs"]:
            raise invalid("`top_logprobs` is only allowed when `logprobs` is true.", "top_logprobs")
        most = given["max_completion_tokens"] or given["max_tokens"]
        if given["max_tokens"] == 0:
            raise invalid("`max_tokens` must be >= 1.", "max_tokens")
        one = openai_parameters.ask(
            given, openai_parameters.chat(given["messages"], artifact), artifact, limits,
            top=given["top_logprobs"] or 0, scored=given["logprobs"], new_tokens=most,
        )  # fmt: skip
        return [seeded(one, place) for place in range(given["n"])]

    def whole(self, answers: list[Answer]) -> dict:
        """The response."""
        choices = [
            {
                "index": place,
                "message": {"role": "assistant", "content": each.generation.text},
                "logprobs": self._logprobs(each.told),
                "finish_reason": REASONS[each.generation.reason],
            }
            for place, each in enumerate(answers)
        ]
        return self.head(self.KIND) | {"choices": choices, "usage": usage(answers)}

    async def chunks(self, place: int, answer: Answer) -> AsyncIterator[dict]:
        """Chunks of one answer; each has the role and, as one client needs, `tool_calls`."""
        cut, plain, told = Cut(answer.request.watch.stops), Pieces(self.artifact.tokenizer), []
        yield self._chunk(place, "", None)
        async for token in answer.tokens():
            told.append(token)
            shown = cut.add(plain.add(token.id))
            if shown:
                yield self._chunk(place, shown, self._logprobs(told))
                told = []
        rest = cut.rest(answer.generation.text)
        told = [*told[:-1], answer.told[-1]] if told else told
        if rest or told:
            yield self._chunk(place, rest, self._logprobs(told))
        yield self._chunk(place, None, None, REASONS[answer.generation.reason])

    def _chunk(self, place: int, text: str | None, logprobs, reason: str | None = None) -> dict:
        delta = {"role": "assistant", "content": text, "tool_calls": None}
        if reason is not None:
            delta["content"] = ""
        return self.chunk({"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason})

    def _logprobs(self, tokens: list[Token]) -> dict | None:
        if not self.given["logprobs"]:
            return None
        return {"content": [self._one(each) for each in tokens], "refusal": None}

    def _one(self, token: Token) -> dict:
        top = [_written(self.artifact.tokenizer.decode([each]), value) for each, value in token.place.top]
        return _written(token.text, token.place.logprob) | {"top_logprobs": top}


def _written(text: str, logprob: float) -> dict:
    return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode("utf-8", "replace"))}
