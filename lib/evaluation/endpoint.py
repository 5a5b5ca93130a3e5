"""A remote engine: any server with OpenAI's completions interface (vLLM, TGI, llama.cpp, SGLang).

Log-likelihoods come from the log-probabilities of the prompt's own tokens: `echo` with `logprobs` where the server
gives them, else vLLM's `prompt_logprobs`. The server says which of them it knows (llama.cpp's own and TGI none); the
continuation's tokens are counted from the prompt's end, and their texts must join to it. Texts come from completions,
or from chat completions.

Requests that fail are tried again, after a wait that doubles; when the tries are used up the evaluation ends with what
has been kept, and the same call goes on from there.
"""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx

from lib import tokenization
from lib.decoding.stops import Stops
from lib.evaluation.sampling_mixin import SamplingMixin
from lib.evaluation.served_tokens import EndpointError, FirstToken, Refused, ending
from lib.tasks.task import Generation, Likelihood, Outcome

AGAIN = (408, 409, 425, 429)  # statuses that may pass, besides 500 and above
sleep = time.sleep  # replaced in tests


class Endpoint(SamplingMixin):
    """An engine behind `url` (such as "http://localhost:8000/v1") that serves `model`.

    chat: ask by chat completions; the server applies its template. key: sent as a bearer token. concurrency: requests
    under way at a time; tries: of each; seconds: that an answer may take. revision: distinguishes two models that
    the server calls by the same name; part of the identity. first: the text of the model's first token, where it is
    none of `served_tokens.FIRST`: a prompt that begins with it gets no second one. sampling: arguments of
    `decoding.sampling.Sampling` that are sent by these names (OpenAI's are temperature and top_p), {} for temperature
    0; request i has `seed` + i.
    """

    truncated = ()  # a server refuses what is too long for it

    def __init__(
        self,
        url: str,
        model: str,
        *,
        chat=False,
        key: str | None = None,
        concurrency=8,
        tries=5,
        seconds=120.0,
        revision="",
        first: str | None = None,
        sampling: dict | None = None,
        seed=0,
    ):
        if not url.startswith(("http://", "https://")) or concurrency < 1 or tries < 1:
            raise ValueError(
                f"url={url!r}, concurrency={concurrency}, tries={tries}; an address that begins with http:// or "
                "https:// and "
                'numbers from 1 are allowed, as in Endpoint("http://localhost:8000/v1", "my-model").'
            )
        self.url, self.model, self.chat, self.revision = url.rstrip("/"), model, chat, revision
        self.concurrency, self.tries, self.seconds = concurrency, tries, seconds
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._reader: Callable | None = None
        self._given, self._first = first, FirstToken(self._tokens, first)
        self.drawn(sampling, seed)

    @property
    def settings(self) -> str:
        """How texts are chosen, and whether the server's chat template forms the prompts."""
        return super().settings + (", chat template of the server" if self.chat else "")

    @property
    def identity(self) -> str:
        """SHA-256 of address, model, revision, interface and first token: all that is known of the model."""
        known = [self.url, self.model, self.revision, self.chat, self._given]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()

    def loglikelihoods(
        self, requests: list[Likelihood], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[Outcome | None]:
        """An outcome per request, None for those not `wanted`.

        Raises ValueError for chat completions, which show no log-probabilities of what was given, and EndpointError.
        """
        if self.chat:
            raise ValueError(
                "chat=True for log-likelihoods; chat completions do not give those of a prompt; use chat=False, "
                "and a task whose prompts a chat template has formed."
            )
        order = list(range(len(requests))) if wanted is None else sorted(wanted)
        self._prepare([requests[place].context + requests[place].continuation for place in order])
        if order and self._reader is None:
            self._reader = self._find_reader(requests[order[0]])
        return self._all(self._reader, requests, order, finished)

    def generate(
        self, requests: list[Generation], *, wanted: Collection[int] | None = None, finished: Callable | None = None
    ) -> list[str | None]:
        """A text per request, up to its first stop string; None for those not `wanted`."""
        order = list(range(len(requests))) if wanted is None else sorted(wanted)
        self._prepare([requests[place].prompt for place in order])
        return self._all(self._text, list(enumerate(requests)), order, finished)

    def _prepare(self, prompts: list[str]) -> None:
        """Refuse unreadable prompts, and find out how this server treats a first token that is written out."""
        for prompt in prompts:
            tokenization.check(prompt, "a prompt")
            if not self.chat:
                self._first.learn(prompt)

    def _tokens(self, body: dict) -> int | None:
        """The server's token count of a prompt; None where it gives none."""
        used = self._post("completions", body | {"max_tokens": 1, "temperature": 0}, ("usage",))
        return used.get("prompt_tokens") if isinstance(used, dict) else None

    def _text(self, asked: tuple[int, Generation]) -> str:
        place, request = asked
        body = {"max_tokens": request.max_new_tokens, "temperature": 0} | self.sampling
        if not self.greedy:
            body["seed"] = self.seed + place  # another seed for each repetition of a prompt
        if request.until:
            body["stop"] = list(request.until[:4])  # servers accept four stop strings; the others are applied here
        if self.chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
            text = self._post("chat/completions", body, ("choices", 0, "message", "content"))
        else:
            text = self._post("completions", body | self._first.body(request.prompt), ("choices", 0, "text"))
        return Stops([each for each in request.until if each], self).cut(tokenization.mend(text or ""))

    def _find_reader(self, request: Likelihood) -> Callable:
        """The first way in which this server gives the log-probabilities of a prompt."""
        reasons = []
        for reader in (self._echo, self._prompt_logprobs):
            try:
                reader(request)
                return reader
            except Refused as error:
                reasons.append(str(error))
        raise EndpointError(
            f"{self.url} gives no log-probabilities of prompts ({'; '.join(reasons)}); a completions interface with "
            "echo and logprobs, or vLLM's prompt_logprobs, is needed; choose another server, or generation tasks."
        )

    def _echo(self, request: Likelihood) -> Outcome:
        """Completions with `echo`: tokens, their text offsets, log-probabilities and the most probable ones."""
        whole = request.context + request.continuation
        body = self._first.body(whole) | {"max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        given = self._post("completions", body, ("choices", 0, "logprobs"))
        try:
            offsets, values, tops = (given[name] for name in ("text_offset", "token_logprobs", "top_logprobs"))
            tokens = given["tokens"]
        except (TypeError, KeyError):
            raise Refused("echo: no log-probabilities in its answer") from None
        if len(tokens) < 2:
            raise Refused("echo: the prompt is not in its answer")
        places = ending(whole[len(request.context.rstrip()) :], tokens[:-1], values, offsets)  # the last is generated
        greedy = all(values[n] >= max((tops[n] or {tokens[n]: values[n]}).values()) for n in places)
        return Outcome(float(sum(values[n] for n in places)), greedy, len(places))

    def _prompt_logprobs(self, request: Likelihood) -> Outcome:
        """vLLM: per token of the prompt, token id -> logprob, rank and decoded text; the given token comes first."""
        whole = request.context + request.continuation
        body = self._first.body(whole) | {"max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        given = self._post("completions", body, ("choices", 0, "prompt_logprobs"))
        if not isinstance(given, list) or len(given) < 2:
            raise Refused("prompt_logprobs: not in its answer")
        tokens = [next(iter(entry.values())) if entry else {} for entry in given]
        texts, values = ([token.get(name) for token in tokens] for name in ("decoded_token", "logprob"))
        places = ending(whole[len(request.context.rstrip()) :], texts, values)
        greedy = all(tokens[n].get("rank") == 1 for n in places)
        return Outcome(float(sum(values[n] for n in places)), greedy, len(places))

    def _all(self, ask: Callable, requests: list, order: list[int], finished: Callable | None) -> list:
        """Ask for `order`, `concurrency` at a time; answers that came before an error are told before it is raised."""
        answers, waiting, failed = [None] * len(requests), iter(order), None
        with ThreadPoolExecutor(self.concurrency) as pool:
            running = {pool.submit(ask, requests[n]): n for _, n in zip(range(self.concurrency), waiting)}
            while running:
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    place = running.pop(done)
                    if done.exception() is not None:
                        failed = failed or done.exception()
                        continue
                    answers[place] = done.result()
                    if finished:
                        finished(place, answers[place])
                    if failed is None and (following := next(waiting, None)) is not None:
                        running[pool.submit(ask, requests[following])] = following
        if failed is not None:
            kept = sum(answer is not None for answer in answers)
            raise EndpointError(
                f"{failed}; {kept} of {len(order)} requests were answered and stay in the cache; start the server "
                "again, then repeat the call to go on from there."
            ) from failed
        return answers

    @functools.cached_property
    def _client(self) -> httpx.Client:
        """One for all requests: each reads the certificates anew, which takes longer than a short answer."""
        return httpx.Client(headers=self.headers, timeout=self.seconds)

    def _post(self, path: str, body: dict, where: tuple):
        """The part at `where` of the answer to a request; tried again, with doubled waits, while that may help."""
        pause, reason = 0.5, ""
        for attempt in range(self.tries):
            if attempt:
                sleep(pause)
                pause = min(2 * pause, 30.0)
            try:
                given = {"model": self.model} | body
                answer = self._client.post(f"{self.url}/{path}", json=given)
                if answer.status_code == 200:
                    return _part(answer.json(), where)
                reason = f"status {answer.status_code}: {answer.text[:200]}"
                if answer.status_code < 500 and answer.status_code not in AGAIN:
                    raise Refused(f"{self.url}/{path} refused ({reason})")
                pause = max(pause, _asked_pause(answer))
            except (httpx.TransportError, ValueError, KeyError, IndexError, TypeError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise EndpointError(f"{self.url}/{path} did not answer in {self.tries} tries ({reason})")


def _part(answer: dict, where: tuple):
    for step in where:
        answer = answer.get(step) if isinstance(answer, dict) and step == where[-1] else answer[step]
    return answer


def _asked_pause(answer) -> float:
    """Seconds that the server asks to wait, at most a minute."""
    given = answer.headers.get("retry-after", "")
    return min(float(given), 60.0) if given.replace(".", "", 1).isdigit() else 0.0
