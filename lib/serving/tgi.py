"""The routes of text-generation-inference: /, /generate, /generate_stream, /tokenize, /info, /health.

Its clients know the log-probabilities of tokens as the model's own: before temperature and penalties.
"""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from lib import machine, timing
from lib.serving import problems, tgi_parameters
from lib.serving.answers import Answer, Token
from lib.serving.artifacts import Artifact
from lib.serving.exchange import Events, Json, read_json, while_connected
from lib.serving.hall import Hall
from lib.serving.metrics import Metrics
from lib.serving.problems import Problem

REASONS = {"length": "length", "eos": "eos_token", "stop": "stop_sequence"}


class TextGeneration:
    """The routes over the models of a `Hall`; a request may name one by `?model=`, which the original has not."""

    def __init__(self, hall: Hall, metrics: Metrics):
        self.hall, self.metrics = hall, metrics

    async def root(self, request: Request) -> Response:
        """POST /: as /generate with a list of one answer, or as /generate_stream."""
        given = tgi_parameters.ROOT.read(await read_json(request, self.hall.limits))
        if given["stream"]:
            return await self._stream(request, given)
        return await self._whole(request, given, listed=True)

    async def generate(self, request: Request) -> Response:
        """POST /generate: the whole answer."""
        given = tgi_parameters.GENERATE.read(await read_json(request, self.hall.limits))
        return await self._whole(request, given)

    async def generate_stream(self, request: Request) -> Response:
        """POST /generate_stream: an event a token."""
        given = tgi_parameters.GENERATE.read(await read_json(request, self.hall.limits))
        return await self._stream(request, given)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: ids and texts of tokens, with their places in the text."""
        given = tgi_parameters.TOKENIZE.read(await read_json(request, self.hall.limits))
        artifact = await self.hall.artifact(request.query_params.get("model"))
        return Json(await asyncio.to_thread(tokens_of, artifact, given["inputs"], given["add_special_tokens"]))

    async def info(self, request: Request) -> Response:
        """GET /info: the model and the limits."""
        artifact, limits = await self.hall.artifact(request.query_params.get("model")), self.hall.limits
        said = machine.commit()["commit"]
        return Json(
            {
                "model_id": artifact.name, "model_sha": artifact.sha256 or None, "model_dtype": artifact.dtype,
                "model_device_type": "cpu", "model_pipeline_tag": "text-generation",
                "max_concurrent_requests": limits.slots + limits.queue, "max_best_of": limits.sequences,
                "max_stop_sequences": limits.stops, "max_input_tokens": artifact.longest_prompt,
                "max_total_tokens": artifact.limit, "max_input_length": artifact.longest_prompt,
                "validation_workers": 1, "max_client_batch_size": limits.sequences, "router": "thimble",
                "version": "3.3.6", "sha": said, "docker_label": None,
            }
        )  # fmt: skip

    async def health(self, request: Request) -> Response:
        """GET /health and /ping: 200 while the thread that generates lives and the server is not stopping."""
        if self.hall.stopping or not self.hall.engine.alive:
            return Json({"error": "unhealthy", "error_type": "healthcheck"}, 503)
        return Response()

    async def _asked(self, request: Request, given: dict, *, stream: bool):
        begun, artifact = timing.clock(), await self.hall.artifact(request.query_params.get("model"))
        how, ask = await asyncio.to_thread(tgi_parameters.read, given, artifact, self.hall.limits, stream=stream)
        self.metrics.validated(timing.clock() - begun, ask)
        return how, self.hall.ask(artifact, [ask] * how["best_of"]), begun

    async def _whole(self, request: Request, given: dict, *, listed: bool = False) -> Response:
        how, answers, begun = await self._asked(request, given, stream=False)
        try:
            await while_connected(request, asyncio.gather(*(each.whole() for each in answers)))
        finally:
            self.hall.leave(answers)
            self.metrics.ended(answers, begun)
        answers.sort(key=lambda each: -each.logprob if how["best_of"] > 1 else 0)
        best = answers[0]
        found = {"generated_text": text(best, given, how)}
        if how["details"] or how["decoder_input_details"]:
            found["details"] = details(best, how)
            if len(answers) > 1:
                rest = [{"generated_text": text(each, given, how), **details(each, how)} for each in answers[1:]]
                found["details"]["best_of_sequences"] = rest
        return Json([found] if listed else found, headers=times(answers, given, begun))

    async def _stream(self, request: Request, given: dict) -> Response:
        how, answers, begun = await self._asked(request, given, stream=True)
        (answer,) = answers
        return Events(
            self._events(answer, given, how, begun),
            {"x-compute-type": compute(answer.artifact), "x-compute-characters": str(len(given["inputs"]))},
        )

    async def _events(self, answer: Answer, given: dict, how: dict, begun: float) -> AsyncIterator[dict]:
        """An event a token; the last one, which is known only when the answer has ended, has the text and details."""
        last = None
        try:
            async for token in answer.tokens():
                if last is not None:
                    yield last
                last = {"index": len(answer.told), "token": written(token)}
                last |= {"top_tokens": top(answer, token)} if how["top_n_tokens"] else {}
                last |= {"generated_text": None, "details": None}
            if last is not None:
                last["token"] = written(answer.told[-1])
                ended = {"finish_reason": REASONS[answer.generation.reason], "generated_tokens": len(answer.told)}
                ended |= {"seed": answer.seed, "input_length": len(answer.ask.prompt)}
                yield last | {"generated_text": text(answer, given, how), "details": ended}
        except Problem as problem:
            self.metrics.failed(problem.kind)
            yield problems.body(problem, openai=False)
        finally:
            self.hall.leave([answer])
            self.metrics.ended([answer], begun)


def written(token: Token) -> dict:
    """A token as the original writes it."""
    return {"id": token.id, "text": token.text, "logprob": token.place.logprob, "special": token.special}


def top(answer: Answer, token: Token) -> list[dict]:
    """The likeliest tokens in the place of one."""
    return [_one(answer.artifact, each, logprob) for each, logprob in token.place.top]


def _one(artifact: Artifact, token: int, logprob: float | None) -> dict:
    shown = artifact.tokenizer.decode([token], skip_special_tokens=False)
    return {"id": token, "text": shown, "logprob": logprob, "special": token in artifact.special}


def text(answer: Answer, given: dict, how: dict) -> str:
    """The text of all tokens without special ones; as in the original it ends with the stop string that ended it."""
    tokenizer = answer.artifact.tokenizer
    found = tokenizer.decode(answer.generation.token_ids, skip_special_tokens=True)
    return given["inputs"] + found if how["return_full_text"] else found


def details(answer: Answer, how: dict) -> dict:
    """Tokens, their log-probabilities, and why the answer ended."""
    found = {
        "finish_reason": REASONS[answer.generation.reason], "generated_tokens": len(answer.told), "seed": answer.seed,
        "prefill": [], "tokens": [written(each) for each in answer.told] if how["details"] else [],
    }  # fmt: skip
    if how["decoder_input_details"]:
        values = [None, *(each.logprob for each in answer.scores.prompt)]
        pairs = zip(answer.ask.prompt, values)
        found["prefill"] = [
            {name: part for name, part in _one(answer.artifact, token, value).items() if name != "special"}
            for token, value in pairs
        ]
    if how["top_n_tokens"]:
        found["top_tokens"] = [top(answer, each) for each in answer.told]
    return found


def times(answers: list[Answer], given: dict, begun: float) -> dict[str, str]:
    """The headers that tell where the time went, in whole milliseconds."""
    best = answers[0]
    now, count = timing.clock(), max(len(best.told), 1)
    milliseconds = {
        "x-compute-time": now - begun, "x-total-time": now - begun, "x-validation-time": best.submitted - begun,
        "x-queue-time": best.entered - best.submitted, "x-inference-time": best.ended - best.entered,
        "x-time-per-token": (best.ended - best.entered) / count,
    }  # fmt: skip
    found = {name: str(int(1000 * max(seconds, 0.0))) for name, seconds in milliseconds.items()}
    return found | {
        "x-compute-type": compute(best.artifact), "x-compute-characters": str(len(given["inputs"])),
        "x-prompt-tokens": str(len(best.ask.prompt)), "x-generated-tokens": str(len(best.told)),
    }  # fmt: skip


def compute(artifact: Artifact) -> str:
    """What computes."""
    return "cpu+packed" if artifact.packed else "cpu+transformers"


def tokens_of(artifact: Artifact, given: str, special: bool) -> list[dict]:
    """Tokens of a text with the places of their characters."""
    tgi_parameters.check_text(given)
    with artifact.lock:
        found = artifact.tokenizer(given, add_special_tokens=special, return_offsets_mapping=True)
    pairs = zip(found["input_ids"], found["offset_mapping"])
    return [
        {"id": token, "text": given[begin:end] if end > begin else artifact.tokenizer.decode([token]),
         "start": begin, "stop": end}
        for token, (begin, end) in pairs
    ]  # fmt: skip
