"""Evaluates a model on a task: asks samples without a stored answer, stores each answer, scores them all.

    found = run.evaluate(model, tasks.load("mmlu"))
    run.record("acc", found["acc"], task="mmlu")

After an interruption, the same call continues at the first sample without an answer and ends with the same numbers.
"""

from dataclasses import replace
from pathlib import Path

from lib import progress, timing, tokenization
from lib.evaluation import cache as answers_on_disk
from lib.evaluation import scores, shard
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed, is_packed
from lib.tasks.task import Generation, Likelihood, Task


def evaluate(
    engine, task: Task, *, dtype=None, cache: bool | Path | str = True, limit: int | None = None, part=None
) -> scores.Evaluation | None:
    """Scores of a model on a task, with the rows behind them.

    engine: a model (with its tokenizer as `model.tokenizer`; packed or not) or an engine. dtype: what a model computes
    in; "float32" gives the harness's numbers. cache: keep answers in data/cache/evaluation, in another folder, or
    (False) nowhere. limit: the first samples only. part: (index, number), see `shard`; the result is None while other
    parts are missing. Where THIMBLE_PART names it instead, the call waits for them; an evaluation without a cache is
    whole. Half a character in an answer becomes U+FFFD, which `Evaluation.replaced` counts. Raises ValueError for a
    limit below 1, for a malformed sample, for a greedy engine that is asked the same several times, and for prompts
    that would go through two chat templates, before anything runs.
    """
    engine = engine_of(engine, dtype=dtype)
    _check(engine, task)
    settings = getattr(engine, "settings", "greedy")
    samples = _chosen(task, limit)
    index, number = shard.own_part(part) if cache is not False or part or shard.launched() else (0, 1)
    key = {
        "model": engine.identity,
        "task": answers_on_disk.task_hash(task.name, samples),
        "settings": settings,
    }
    folder = None if isinstance(cache, bool) else cache
    store = answers_on_disk.Store(key, folder=folder, part=f"{index}-of-{number}") if cache is not False else None
    answered = store.load() if store else {}
    mine = shard.split(samples, index, number)
    open_places = {place for place in mine if samples[place].id not in answered}
    begin = timing.clock()
    truncated = _ask(engine, task.name, samples, open_places, answered, store)
    seconds = timing.clock() - begin
    if part is None and shard.launched():
        answered = shard.exchange(answered)
    elif store and number > 1:
        answered = store.load() if part else shard.awaited(store.load, {sample.id for sample in samples})
    if any(sample.id not in answered for sample in samples):
        missing = sum(sample.id not in answered for sample in samples)
        print(f"{task.name}: part {index} of {number} is kept; {missing} samples are left to the other parts")
        return None
    found, spans, rows = scores.score(task, samples, answered)
    behind = scores.Evaluation(
        task.name, task.data, rows, spans, task.chance, task.constant, truncated, len(open_places), seconds,
        engine.identity, key["task"], settings,
    )  # fmt: skip
    behind.update(found)
    return behind


def engine_of(model, *, dtype=None):
    """The engine for a model: `packed_engine.Packed` where it is packed, else `Local`; an engine is given back.

    Raises ValueError for a packed model in another type than its own.
    """
    if hasattr(model, "loglikelihoods"):
        return model
    if not is_packed(model):
        return Local(model, dtype=dtype)
    if dtype is not None:
        raise ValueError(f"dtype={dtype!r} for a packed model, which computes as it was packed; leave dtype=None.")
    return Packed(model)


def capped(task: Task, new_tokens: int) -> Task:
    """The task with at most `new_tokens` in every answer; its `data` says so. Scores are no longer the published ones.

    Raises ValueError for a cap below 1.
    """
    if new_tokens < 1:
        raise ValueError(f"new_tokens={new_tokens}; a whole number from 1 is allowed.")
    samples = [
        replace(sample, requests=tuple(_cap(each, new_tokens) for each in sample.requests)) for sample in task.samples
    ]
    return replace(task, samples=samples, data=task.data | {"new_tokens": new_tokens})


def _cap(request: Likelihood | Generation, most: int) -> Likelihood | Generation:
    if isinstance(request, Likelihood):
        return request
    return replace(request, max_new_tokens=min(request.max_new_tokens, most))


def _check(engine, task: Task) -> None:
    """Refuse an engine that does not fit the task."""
    repeats = task.data.get("repeats") or 1
    if repeats > 1 and getattr(engine, "greedy", True):
        raise ValueError(
            f"repeats={repeats} of {task.name} for a greedy engine, whose answers would all be the same; one that "
            "draws is allowed; give the engine sampling={'temperature': 0.8}, or load the task with repeats=1."
        )
    if task.data.get("chat") and getattr(engine, "chat", False):
        raise ValueError(
            f"chat=True of the endpoint for {task.name}, whose prompts a chat template has formed: the server would "
            "apply it twice; use Endpoint(..., chat=False), or load the task without chat."
        )


def _chosen(task: Task, limit: int | None):
    """The samples to be used; refuses what can't be asked."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; a whole number of samples from 1, or None for all, is allowed.")
    samples = task.samples[:limit]
    if not samples:
        raise ValueError(f"task {task.name!r} has no samples; one at least is needed; check its data.")
    seen = set()
    for sample in samples:
        if sample.id in seen or not sample.requests:
            fault = "has no requests" if sample.id not in seen else "has the id of another sample"
            raise ValueError(f"sample {sample.id!r} of {task.name} {fault}; mend its line of data.")
        seen.add(sample.id)
        for text in (sample.id, *(text for request in sample.requests for text in _texts(request))):
            tokenization.check(text, f"sample {sample.id!r} of {task.name}")
    return samples


def _texts(request: Likelihood | Generation) -> tuple[str, ...]:
    """The texts of a request."""
    if isinstance(request, Likelihood):
        return request.context, request.continuation
    return request.prompt, *request.until


def _ask(engine, name: str, samples: list, open_places: set[int], answered: dict, store) -> int:
    """Let the engine answer the samples at `open_places`; fills `answered`, returns how many had a prompt cut."""
    partial = {place: [None] * len(samples[place].requests) for place in open_places}
    truncated = set()
    with progress.bar(total=len(open_places), desc=name, unit="sample") as bar:
        try:
            for kind, method in ((Likelihood, "loglikelihoods"), (Generation, "generate")):
                at = [
                    (place, which)
                    for place, sample in enumerate(samples)
                    for which, request in enumerate(sample.requests)
                    if isinstance(request, kind)
                ]
                if not at:
                    continue
                wanted = {number for number, (place, _) in enumerate(at) if place in open_places}

                def finished(number, answer, at=at):
                    place, which = at[number]
                    # half a character (a lone surrogate), as a server may send it, can't be stored in a file
                    partial[place][which] = tokenization.mend(answer) if isinstance(answer, str) else answer
                    if all(each is not None for each in partial[place]):
                        answered[samples[place].id] = partial[place]
                        if store:
                            store.append(samples[place].id, partial[place])
                        bar.update()

                requests = [samples[place].requests[which] for place, which in at]
                getattr(engine, method)(requests, wanted=wanted, finished=finished)
                truncated |= {at[number][0] for number in engine.truncated}
        finally:
            if store:
                store.close()
    return len(truncated)
