"""Judges a finished student: the original with 16 bits, the student, and the student with prompt lookup.

    python -m lib.distillation.variants cpu --rival FOLDER --plan      # what it would cost
    python -m lib.distillation.variants cpu --rival FOLDER
    python -m lib.distillation.variants STUDENT --original MODEL --folder WHERE --samples "ifeval 100, mmlu 200"

Perplexity and divergence on texts that nothing was tuned on, tasks, speed and memory, one file a part: a call that was
killed goes on at the first part that is missing, inside a task at the first sample without an answer. Tasks are
compared sample by sample with the original and with a rival, such as the best result of the same minutes without
distillation. Prompt lookup changes no answer, so its variant has the student's scores; that is checked on the prompts
on which it is timed.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import quote

from lib import checkpoints, files, tasks
from lib.distillation import pipeline, presets, variant_parts
from lib.distillation.variant_parts import NAMES, Models
from lib.evaluation import run as evaluation
from lib.folders.turns import Alone
from lib.sources import models, prompts, texts
from lib.tasks import asked
from lib.tasks.task import Task

PLAN, ANSWERS, FRESH = "plan.json", "answers", "fresh"
SAMPLES = "ifeval 200, toxicchat 400, mmlu 400, gsm8k 100, humaneval 164, ruler_niah 20"
# what a chat model is asked in its own template; the others are plain text, as their published scores are
CHAT = ("ifeval", "packaged_instructions", "toxicchat", "toxicchat_guard", "xstest", "ruler_niah", "packaged_needle")
EXECUTED = "is left out: it runs programs that a model wrote; --allow-execution lets it"


@dataclass(frozen=True)
class Plan:
    """What is compared, and at which cost.

    original, student, rival: folders or names of models. texts: text -> split, of which `windows` of `length` tokens
    are measured. samples: of each task, "ifeval 200, mmlu 400"; new_tokens: of an answer at most, None leaves the
    published limits. prompts: of each kind that decoding is timed on, with answers of `answer_tokens`; rounds: of
    processes. prompt_source: "packaged" or "data". engine: what runs all but the original. allow_execution: whether
    programs may be run that a model wrote.
    """

    original: str
    student: str
    rival: str | None = None
    texts: dict[str, str] = field(default_factory=lambda: dict(presets.by_name("cpu").judged))
    windows: int = 32
    length: int = 512
    samples: str = SAMPLES
    new_tokens: int | None = None
    prompts: int = 2
    answer_tokens: int = 64
    rounds: int = 3
    prompt_source: str = "packaged"
    engine: str = "packed"
    allow_execution: bool = False

    def __post_init__(self):
        if self.engine not in variant_parts.ENGINES:
            raise ValueError(f"engine={self.engine!r}; {files.choices(self.engine, variant_parts.ENGINES)}")
        numbers = (self.windows, self.prompts, self.rounds, self.answer_tokens - 1, self.length - 1)
        if min(numbers) < 1:
            raise ValueError(
                f"windows={self.windows}, prompts={self.prompts}, rounds={self.rounds}, "
                f"answer_tokens={self.answer_tokens}, length={self.length}; 1 or more, the last two 2 or more."
            )

    @property
    def folders(self) -> dict[str, str]:
        """The models by name."""
        named = dict(zip(NAMES, (self.original, self.student, self.rival)))
        return {name: folder for name, folder in named.items() if folder is not None}


def judge(plan: Plan, folder: Path | str) -> Path:
    """Measure all that `folder` lacks of `plan`; returns the folder.

    Everything is checked before the first measurement: models, tokenizers, texts, tasks. A part that was measured with
    other models or numbers is measured again. Raises what reading models, texts and tasks raises.
    """
    folder = Path(folder)
    loaded = list(_tasks(plan))
    for text, split in plan.texts.items():
        texts.load(text, split)
    given = Models(plan.folders, plan.engine)
    given.check()
    files.check_writable(folder / PLAN, 1 << 24)
    folder.mkdir(parents=True, exist_ok=True)
    turn = Alone(folder)
    try:
        files.write_text(folder / PLAN, json.dumps(asdict(plan), indent=1))
        prints = {name: checkpoints.fingerprint(models.find(each)[0]) for name, each in plan.folders.items()}
        for path, settings, work in _work(plan, folder, given, loaded):
            of = {"models": prints, "engine": plan.engine} | settings
            if not _is_done(path, of):
                files.write_text(path, json.dumps({"of": of} | work()))
                print(f"{path.parent.name}/{path.stem}: measured", flush=True)
    finally:
        turn.end()
    return folder


def _is_done(path: Path, of: dict) -> bool:
    return path.exists() and json.loads(path.read_text())["of"] == of


def _work(plan: Plan, folder: Path, given: Models, loaded: list[Task]):
    """(File, what determines it beside the models, function that measures it) of each part, in order."""
    how = {"windows": plan.windows, "length": plan.length}
    for text, split in plan.texts.items():
        yield (
            part(folder, "texts", text),
            how | {"split": split},
            lambda text=text, split=split: {"systems": variant_parts.on_text(given, text, split, **how)},
        )
    for task in loaded:
        data = {name: task.data.get(name) for name in ("sha256", "count", "new_tokens", "chat", "shots")}
        yield (
            part(folder, "tasks", task.name),
            data,
            lambda task=task: variant_parts.on_task(given, task, folder / ANSWERS),
        )
    spoken = {"number": plan.prompts, "new_tokens": plan.answer_tokens, "source": plan.prompt_source}
    for kind in prompts.KINDS:
        yield (
            part(folder, "prompts", kind),
            spoken,
            lambda kind=kind: {"systems": variant_parts.on_prompts(given, kind, **spoken)},
        )
    alone = {"rounds": plan.rounds, "new_tokens": plan.answer_tokens, "source": plan.prompt_source}
    yield part(folder, FRESH, FRESH), alone, lambda: variant_parts.in_fresh_processes(given, **alone)


def part(folder: Path, kind: str, name: str) -> Path:
    """The file of a part; a text may be called by a path."""
    return folder / kind / f"{quote(Path(name).name, safe=' ')}.json"


def measured(folder: Path | str) -> tuple[Plan, dict[str, dict[str, dict]]]:
    """The plan of `folder`, and the parts of it that are measured: kind -> name -> what was found."""
    folder = Path(folder)
    plan = Plan(**json.loads((folder / PLAN).read_text()))
    wanted = {"texts": [*plan.texts], "tasks": [*asked.read(plan.samples)], "prompts": [*prompts.KINDS], FRESH: [FRESH]}
    found = {
        kind: {name: json.loads(path.read_text()) for name in names if (path := part(folder, kind, name)).exists()}
        for kind, names in wanted.items()
    }
    return plan, found


def _tasks(plan: Plan):
    """The tasks of `plan`, loaded."""
    tokenizer = models.load(plan.original)[1]
    for name, number in asked.read(plan.samples).items():
        form, _ = tasks.find(name)
        if form.executes and not plan.allow_execution:
            print(f"{name} {EXECUTED}")
            continue
        chat = tokenizer if name in CHAT and getattr(tokenizer, "chat_template", None) else None
        task = tasks.load(name, count=number, chat=chat, allow_execution=plan.allow_execution)
        yield task if plan.new_tokens is None else evaluation.capped(task, plan.new_tokens)


def costs(plan: Plan) -> str:
    """What judging by `plan` takes, part by part, and which differences its samples can show."""
    given, lines = Models(plan.folders, plan.engine), []
    read = plan.windows * plan.length * len(plan.texts)
    for name in plan.folders:
        seconds = read * given.running(name).seconds_per_token()[0]
        lines.append(f"{name}: {read:,} tokens of texts, about {seconds:.0f} s as it answers tasks")
    lines += [variant_parts.cost(given, task) for task in _tasks(plan)]
    processes = 3 * plan.rounds
    answers = 3 * (plan.prompts + 1) * len(prompts.KINDS)
    lines.append(f"speed: {answers} answers of {plan.answer_tokens} tokens, {processes} fresh processes")
    return "\n".join(lines)


def of_preset(preset: str, folder: Path | None = None, **changed) -> tuple[Plan, Path]:
    """(The plan of a preset's student, its folder): the original and the texts are the preset's.

    The rival is the result of the same minutes of post-training, where the pipeline has made it.
    """
    made, folder = presets.by_name(preset), folder or pipeline.place(preset)
    rival = folder / pipeline.POST_TRAINED
    given = {"original": made.model, "texts": made.judged, "windows": made.judge, "length": made.length}
    given["rival"] = str(rival) if rival.is_dir() else None
    given |= {name: value for name, value in changed.items() if value is not None}
    return Plan(student=str(folder / pipeline.STUDENT), **given), folder / "variants"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.distillation.variants", description="Judge a student.")
    parser.add_argument("student", help="a preset, or the folder of a student")
    parser.add_argument("--original", help="the model with all its bits (of a folder; a preset names its own)")
    parser.add_argument("--rival", help="the folder of the result that the student is compared with")
    parser.add_argument("--folder", type=Path, help="of the preset's run; of a student: where measurements are kept")
    parser.add_argument("--samples", help=f'of each task; "{SAMPLES}" if not given')
    parser.add_argument("--windows", type=int, help="of each text")
    parser.add_argument("--new-tokens", type=int, help="of each answer at most; the published limits if not given")
    parser.add_argument("--prompts", type=int, help="of each kind that decoding is timed on")
    parser.add_argument("--prompt-source", choices=("packaged", "data"), help="where these prompts come from")
    parser.add_argument("--engine", choices=variant_parts.ENGINES, help="what runs the student")
    parser.add_argument("--allow-execution", action="store_true", default=None, help="run programs that models write")
    parser.add_argument("--plan", action="store_true", help="only tell what it costs")
    given = vars(parser.parse_args(arguments))
    student, folder, only = given.pop("student"), given.pop("folder"), given.pop("plan")
    try:
        if student in presets.PRESETS:
            plan, where = of_preset(student, folder, **given)
        else:
            plan, where = _of_folder(student, folder, {name: value for name, value in given.items() if value})
        print(costs(plan) if only else f"the parts lie in {judge(plan, where)}")
    except (ValueError, OSError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _of_folder(student: str, folder: Path | None, given: dict) -> tuple[Plan, Path]:
    if "original" not in given or folder is None:
        raise ValueError(
            f"{student!r} is no preset ({', '.join(presets.PRESETS)}); of a student's folder --original and --folder "
            "are needed too; give them."
        )
    return Plan(student=student, **given), folder


if __name__ == "__main__":
    sys.exit(main())
