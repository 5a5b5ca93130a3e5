"""The parts of a comparison of variants: distance on texts, scores on tasks, speed and memory with and without lookup.

Each takes the models by the names of `NAMES` and gives numbers that can be written as JSON.
"""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path

from lib import checkpoints, runtime, tokenization
from lib.decoding import draft_controller, lookup, sessions
from lib.distillation.judging import Judge
from lib.evaluation import comparison, estimate, run
from lib.evaluation.local import Local
from lib.evaluation.packed_engine import Packed
from lib.metrics import count, decoding_speed, fresh, guards
from lib.metrics.score import Score
from lib.sources import models, prompts
from lib.tasks.task import Task

ORIGINAL, STUDENT, RIVAL = NAMES = ("original", "student", "post-training")
ENGINES = ("packed", "transformers")
PREFILL = 256  # tokens whose reading is timed, at most


@dataclass
class Models:
    """The folders of the compared models by name, and what runs them: the packed engine, or plain transformers."""

    folders: dict[str, str]
    engine: str

    def __post_init__(self):
        self._running: dict[str, object] = {}

    def plain(self, name: str):
        """The model as transformers runs it."""
        return models.load(self.folders[name])[0]

    def running(self, name: str):
        """The engine that answers tasks, one for all: the original differs in its weights, which have 16 bits."""
        if name not in self._running:
            if self.engine == "transformers":
                self._running[name] = Local(self.plain(name))
            else:
                folder, _ = models.find(self.folders[name])
                weights = runtime.load(folder, **self.options(name))
                self._running[name] = Packed(weights, checkpoints.tokenizer(models.find(self.folders[ORIGINAL])[0]))
        return self._running[name]

    def options(self, name: str) -> dict:
        """How the packed engine loads the model: all of the original's matrices stay as they are."""
        return {"embedding_bits": None} if name == ORIGINAL and self.engine == "packed" else {}

    def session(self, name: str):
        """A session for one text at a time, as the model is run."""
        engine = self.running(name)
        return runtime.Session(engine.weights) if isinstance(engine, Packed) else sessions.ModelSession(engine.model)

    def check(self) -> None:
        """Raise ValueError where a model splits text into other tokens than the original: nothing could be paired."""
        found = {
            name: tokenization.identity(checkpoints.tokenizer(models.find(each)[0]))
            for name, each in self.folders.items()
        }
        for name, each in found.items():
            if each != found[ORIGINAL]:
                raise ValueError(
                    f"the tokenizer of {self.folders[name]} is {each[:12]}, that of {self.folders[ORIGINAL]} is "
                    f"{found[ORIGINAL][:12]}; models of the same tokens can be compared in pairs; give the original of "
                    "both."
                )


def on_text(given: Models, text: str, split: str, *, windows: int, length: int) -> dict:
    """name -> what `judging.Judge` tells of the model on the first `windows` of a text."""
    judge = Judge.of(given.plain(ORIGINAL), {text: split}, windows=windows, length=length)
    found = {}
    for name in given.folders:
        found[name] = judge(name, given.plain(name))[0]
        gc.collect()
    return found


def on_task(given: Models, task: Task, answers: Path) -> dict:
    """Scores of every model by metric, and what is compared: with the original, and with the rival, in pairs.

    answers: folder in which each sample's answer is kept as soon as it is there.
    """
    found = {name: run.evaluate(given.running(name), task, cache=answers) for name in given.folders}
    pairs = {metric: comparison.against(found, metric, task) for metric in found[ORIGINAL]}
    told = {
        "metrics": list(found[ORIGINAL]),
        "systems": {name: {metric: _score(each, metric) for metric in each} for name, each in found.items()},
        "against": {
            name: {metric: _compared(pairs[metric][name]) for metric in pairs} for name in [*given.folders][1:]
        },
    }
    if RIVAL in found:
        two = {RIVAL: found[RIVAL], STUDENT: found[STUDENT]}
        ahead = {metric: comparison.against(two, metric, task)[STUDENT].comparison for metric in pairs}
        told["ahead"] = {metric: asdict(each) for metric, each in ahead.items()}
    return told


def _score(evaluation, metric: str) -> dict:
    found, span = evaluation[metric], evaluation.intervals[metric]
    floors = {"chance": evaluation.chance.get(metric), "constant": evaluation.constant.get(metric)}
    return plain(found) | floors | {"low": span.low, "high": span.high, "marks": guards.marks(evaluation, metric)}


def _compared(found: comparison.Compared) -> dict:
    kept = found.retention
    return {"difference": asdict(found.comparison), "kept": None if kept is None else asdict(kept), "of": found.basis}


def plain(score: Score) -> dict:
    """A score as JSON has it."""
    names = ("value", "stderr", "n", "baseline")
    return {name: getattr(score, name) for name in names}


def cost(given: Models, task: Task) -> str:
    """What evaluating every model on `task` takes, and which difference it can show; each model is timed on a pass."""
    said = [(name, estimate.before(given.running(name), task)) for name in given.folders]
    return "\n".join(f"{name}: {each}" for name, each in said)


def on_prompts(given: Models, kind: str, *, number: int, new_tokens: int, source: str) -> dict:
    """Speed of the original, the student, and the student with prompt lookup, on prompts of a `kind`, in turns."""
    tokenizer = given.running(ORIGINAL).tokenizer
    asked = prompts.tokens(prompts.load(kind, number, source=source, characters=1200), tokenizer)
    student, drafter = given.session(STUDENT), lookup.Lookup(max_ngram=3, draft_length=8)
    costs = draft_controller.step_costs(student, drafter, lengths=(0, 1, 4, 8))
    systems = {
        ORIGINAL: decoding_speed.System(given.session(ORIGINAL)),
        STUDENT: decoding_speed.System(student),
        "lookup": decoding_speed.System(student, drafter, draft_controller.DraftController(costs)),
    }
    found = decoding_speed.measure(systems, asked, new_tokens=new_tokens, eos=tokenizer.eos_token_id)
    told = {name: {"seconds_per_token": plain(decoding_speed.seconds_per_token(each))} for name, each in found.items()}
    ours = told["lookup"]
    ours["tokens_per_step"] = plain(decoding_speed.tokens_per_step(found["lookup"]))
    ours["speed_up"] = plain(decoding_speed.speed_up(found["lookup"], found[STUDENT]))
    ours["identical"] = plain(decoding_speed.identical(found["lookup"], found[STUDENT]))
    told[STUDENT]["speed_up"] = plain(decoding_speed.speed_up(found[STUDENT], found[ORIGINAL]))
    return told


def in_fresh_processes(given: Models, *, rounds: int, new_tokens: int, source: str) -> dict:
    """Bytes on disk, peak memory, and the time to read and to write of the three variants, each in its own process."""
    tokenizer = given.running(ORIGINAL).tokenizer
    said = prompts.tokens(prompts.load("summarization", 1, source=source, characters=1200), tokenizer)[0].tolist()
    where = {name: str(models.find(folder)[0]) for name, folder in given.folders.items()}
    kind = "session" if given.engine == "packed" else "transformers"
    options = given.options(ORIGINAL)
    systems = {
        ORIGINAL: fresh.System(kind, where[ORIGINAL], options=options),
        STUDENT: fresh.System(kind, where[STUDENT]),
    }
    if kind == "session":
        systems["lookup"] = fresh.System(kind, where[STUDENT], options={"lookup": True})
    said = said[:PREFILL]
    measured = fresh.measure(systems, tokens=said, prompt=len(said), new_tokens=new_tokens, rounds=rounds)
    found = {
        name: {metric: plain(each) for metric, each in measured.times[name].items()}
        | ({"peak": plain(measured.peaks[name])} if name in measured.peaks else {})
        for name in systems
    }
    return {"systems": found, "bytes": {name: count.artifact_bytes(folder) for name, folder in where.items()}}
