"""What the trained models of an architecture study can do: compressed, on tasks, after fine-tuning, and how fast.

    python -m lib.evaluation.architecture_scores cpu

Each model's answers are one file in the study's folder, in parts (quantized, tasks, TRACE's tasks): a call that was
killed goes on at the first part that is missing, and a plan that asks for more adds it. All models get the same text,
samples, steps and seeds, so that they can be compared in pairs; scores of another plan are refused.
"""

import argparse
import copy
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from lib import files, jobs, tasks
from lib.evaluation import last_word, run
from lib.evaluation.architecture_times import times
from lib.folders.turns import Alone
from lib.metrics import divergence, perplexity
from lib.quantizers import gptq
from lib.sources import models, texts
from lib.sources import tasks as task_data
from lib.tasks.task import Generation, Task
from lib.trainers import architecture_study, from_scratch, loop, next_token, presets
from lib.trainers.minibatch import IGNORED
from lib.trainers.recipe import Recipe

SCORED, PLAN = "scored", "plan.json"
TRACE = ("trace_fomc", "trace_numglue_cm", "trace_numglue_ds", "trace_scienceqa", "trace_20minuten")


@dataclass(frozen=True)
class Plan:
    """What is asked of each model.

    bits: widths of GPTQ, a grid a row, since no group size divides the columns of all arms; calibration: rows of the
    training text; rows: unseen ones that it is measured on. trace: TRACE's tasks, all learned in one short fine-tuning
    of `steps` batches of `batch` rows. packaged: multiple choice that needs no data. samples: of each task; passages:
    of which the last word is asked, 0 for none; new_tokens: of each answer.
    """

    bits: tuple[int, ...] = (4, 2)
    calibration: int = 32
    rows: int = 64
    trace: tuple[str, ...] = TRACE
    packaged: tuple[str, ...] = ("packaged_continuation", "packaged_facts")
    samples: int = 30
    passages: int = 100
    new_tokens: int = 40
    steps: int = 40
    batch: int = 8
    rate: float = 1e-3


def score(
    preset: str | presets.Preset, folder: Path | str, plan: Plan = Plan(), *, arms=None, blocks=None, seeds=None
) -> list[dict]:
    """Score the models of the study in `folder` that lack scores of the `plan`; returns all scores.

    arms, blocks, seeds: only models of these. A model that is being scored by another process is left to it. Raises
    ValueError for a folder whose scores are of a plan with other samples, steps or text.
    """
    folder = Path(folder)
    corpus = from_scratch.corpus(preset)
    _same_plan(folder / SCORED / PLAN, plan)
    chosen = architecture_study.best_rates(corpus.preset, architecture_study.records(folder))
    asked = questions(corpus, plan)
    for record in architecture_study.records(folder):
        name = architecture_study.name(record)
        path = folder / SCORED / f"{name}.json"
        wanted = record["rate"] == chosen[record["arm"]] and record["bits_per_byte"] is not None
        for key, given in (("arm", arms), ("blocks", blocks), ("seed", seeds)):
            wanted &= given is None or record[key] in given
        if not wanted or not _missing(_read(path), asked, plan):
            continue
        try:
            turn = Alone(architecture_study.model_folder(folder, record).parent)
        except BlockingIOError:
            continue
        try:
            known = {key: record[key] for key in ("arm", "blocks", "seed", "rate")}
            _score(path, known, architecture_study.model_folder(folder, record), corpus, asked, plan)
            print(f"{name}: scored", flush=True)
        finally:
            turn.end()
    return scored(folder)


def _same_plan(note: Path, plan: Plan) -> None:
    """Raise ValueError where a folder's scores were made with other settings; more of a kind may be added."""
    kept = {name: str(value) for name, value in asdict(plan).items() if name not in ("bits", "trace", "packaged")}
    note.parent.mkdir(parents=True, exist_ok=True)
    if not files.write_first(note, json.dumps(kept, indent=1)):
        jobs.same_job(note.parent, json.loads(note.read_text()), kept)


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _missing(found: dict, asked: "Questions", plan: Plan) -> list[str]:
    """Which parts a model's scores lack."""
    bits = [str(each) for each in plan.bits if str(each) not in found.get("quantized", {})]
    have = {name.split(" ")[0] for part in ("tasks", "trace") for name in found.get(part, {})}
    tasks = [each.name for each in asked.tasks if each.name not in have]
    trace = [each.name for each in asked.trace if each.name not in have] if asked.rows else []
    return ["quantized"] * bool(bits) + ["tasks"] * bool(tasks) + ["trace"] * bool(trace)


def _score(path: Path, known: dict, folder: Path, corpus: from_scratch.Corpus, asked: "Questions", plan: Plan) -> None:
    """Add what is missing to the scores in `path`, part by part, each of the model as it was trained."""
    found = known | _read(path)
    for part in _missing(found, asked, plan):
        model, _ = models.load(str(folder))
        found |= scores(model, corpus, asked, plan, part)
        files.write_text(path, json.dumps(found))


def scored(folder: Path | str) -> list[dict]:
    """The scores of the study in `folder`, by name of the model."""
    paths = sorted((Path(folder) / SCORED).glob("*.json"))
    return [json.loads(path.read_text()) for path in paths if path.name != PLAN]


@dataclass(frozen=True)
class Questions:
    """What all models of a study are asked: tasks as they are, TRACE's after learning its training `rows` in turns."""

    tasks: list[Task]
    trace: list[Task]
    rows: list[dict]


def questions(corpus: from_scratch.Corpus, plan: Plan) -> Questions:
    """The tasks of a `plan`, read once for all models."""
    unseen = texts.load(corpus.preset.text, split="valid")
    plain = [last_word.task(unseen.documents, plan.passages)] if plan.passages else []
    plain += [tasks.load(name, count=plan.samples) for name in plan.packaged]
    trace = [_shorter(tasks.load(name, count=plan.samples), plan) for name in plan.trace]
    parts = [task_data.load(name, ("train",)).rows for name in plan.trace]
    return Questions(plain, trace, [row for rows in zip(*parts) for row in rows])


def scores(model: nn.Module, corpus: from_scratch.Corpus, asked: Questions, plan: Plan, part: str) -> dict:
    """A part of what is known of a trained model: "quantized" (by bits), "tasks", or "trace".

    The last one fine-tunes `model` on TRACE's training rows and asks then, so that "trained" comes with it: the losses.
    """
    if part == "tasks":
        return {part: _answers(model, asked.tasks)}
    if part == "trace":
        losses = fine_tune_(model, asked.rows, plan, corpus.preset.recipe)
        return {"trained": losses, part: _answers(model, asked.trace)}
    base = perplexity.nll(model, corpus.unseen[: plan.rows]).double().mean().item()
    return {part: {str(bits): _quantized(model, corpus, bits, base, plan) for bits in plan.bits}}


def _quantized(model: nn.Module, corpus: from_scratch.Corpus, bits: int, base: float, plan: Plan) -> dict[str, float]:
    """What GPTQ costs on the unseen rows: loss, nats a token more than `base`, and kl, from the model as it was."""
    smaller = copy.deepcopy(model)
    gptq.quantize_(smaller, corpus.rows.ids[: plan.calibration], bits=bits, group_size=-1)
    compared = divergence.compare(smaller, model, corpus.unseen[: plan.rows])
    return {"loss": compared.nll.double().mean().item() - base, "kl": compared.divergence.double().mean().item()}


def _answers(model: nn.Module, asked: list[Task]) -> dict[str, dict]:
    """task metric -> [value, standard error, n, chance or the best constant answer]."""
    found = {}
    for task in asked:
        for metric, each in run.evaluate(model, task, cache=False).items():
            found[f"{task.name} {metric}"] = [each.value, each.stderr, each.n, each.baseline]
    return found


def fine_tune_(model: nn.Module, rows: list[dict], plan: Plan, recipe: Recipe) -> list[float]:
    """Train all weights of `model` on the answers of `rows`, the same steps for all models; their losses."""
    rows = [_row(model, row, plan) for row in rows]
    options = {"steps": plan.steps, "batch": plan.batch, "micro_batch": plan.batch, "learning_rate": plan.rate}
    return loop.train_(model, rows, next_token.loss, recipe=recipe, **options).losses


def _row(model: nn.Module, row: dict, plan: Plan) -> dict:
    """Prompt and answer as token ids; only the answer is learned, and the prompt's beginning is cut where needed."""
    ids, answer = (model.tokenizer(row[name], add_special_tokens=False)["input_ids"] for name in ("prompt", "answer"))
    answer = [*answer[: plan.new_tokens - 1], model.tokenizer.eos_token_id]
    ids = ids[-(model.config.max_position_embeddings - plan.new_tokens) :]
    labels = [IGNORED] * len(ids) + answer
    return {"input_ids": torch.tensor(ids + answer), "labels": torch.tensor(labels)}


def _shorter(task: Task, plan: Plan) -> Task:
    """The task with answers of at most `plan.new_tokens`: a model that reads 256 tokens has no room for more."""

    def cut(request: Generation) -> Generation:
        return replace(request, max_new_tokens=min(request.max_new_tokens, plan.new_tokens))

    return replace(task, samples=[replace(each, requests=tuple(map(cut, each.requests))) for each in task.samples])


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.evaluation.architecture_scores", description="Score a study.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--folder", type=Path, help="of the study")
    parser.add_argument("--arms", nargs="+", help="only these")
    parser.add_argument("--blocks", nargs="+", type=int, help="only models of so many blocks")
    parser.add_argument("--seeds", nargs="+", type=int, help="only models of these")
    parser.add_argument("--speed", action="store_true", help="only the times")
    given = parser.parse_args(arguments)
    folder = given.folder or architecture_study.place(given.preset)
    try:
        if given.speed:
            times(given.preset, folder)
        else:
            score(given.preset, folder, arms=given.arms, blocks=given.blocks, seeds=given.seeds)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
