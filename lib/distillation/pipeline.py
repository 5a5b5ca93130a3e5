"""A recipe of `presets` from the original to a saved student, each step in a folder of its own.

    python -m lib.distillation.pipeline cpu

    start/      the student's first codes, block by block
    training/   checkpoints of the distillation, the curve on unseen text and the best state
    student/    the result, packed
    post_training/ the result of the same processor minutes without distillation, where that is asked for
    ladder.json what was measured after each rung, and how much processor time each step took

A run that was killed goes on where it was and its student has the same bytes: no clock decides anything of it.
Processor time counts all threads of the process, so it is the same on a busy machine, and what a kill interrupted too.
"""

import argparse
import contextlib
import copy
import dataclasses
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from lib import files, jobs
from lib.distillation import (
    block_wise,
    checks,
    post_training,
    presets,
    quantization_aware,
    selection,
    teacher_data,
    training_text,
)
from lib.distillation.judging import Judge
from lib.distillation.ladder import Ladder
from lib.export import compressed_tensors
from lib.metrics import divergence
from lib.quantized.replace import dense_
from lib.quantizers import by_name as quantizer
from lib.quantizers import calibrate
from lib.sources import models
from lib.trainers import confidence, distill, divergences, loop, next_token, trackers, training_data

NOTE, STUDENT, TRAINING = "preset.json", "student", "training"
CONTROL, ADAPTING = "control", 2e-5  # the rung of the adapted original, and its learning rate
POST_TRAINED = post_training.FOLDER
SURE = 64  # rows that tell how sure the teacher is
CANDIDATES = 8  # ranges tried for a group where the start is rounding to nearest


def place(name: str) -> Path:
    """The folder of a preset where no other is given: recomputable, so it lies in the cache."""
    return files.cache() / "distillation" / name


def run(
    preset: str | presets.Preset, folder: Path | str, *, control: bool = False, post_trained: bool = False,
    report_to: Sequence[str] = (),
) -> list[dict]:  # fmt: skip
    """Make the student of `preset` in `folder`; returns the rows of its ladder, see `judging.Judge`.

    control: also train a copy of the original, with all its bits, to predict the same windows, and judge it: what it
    gains on a text is adaptation to that kind of text, not repair. post_trained: also spend the processor time of the
    whole pipeline on the start alone, see `post_training`, and judge that. report_to: programs that follow the
    training, see `trackers`.
    Raises, before the work, ValueError for bits without a grid, for a folder of another preset, model or text, for
    texts with too few windows, and for a start that no time makes better; MemoryError for what does not fit;
    FileNotFoundError for texts that are not there; and what the steps raise.
    """
    made = presets.by_name(preset) if isinstance(preset, str) else preset
    folder = Path(folder)
    trackers.check(report_to)
    if post_trained:
        post_training.check(made)
    original, _ = models.load(made.model)
    checks.before(original, made)
    windows = windows_of(original, made)
    _same(folder, made, original, windows)
    ladder, arms = Ladder(folder), {post_training.RUNG: post_trained, CONTROL: control}
    arms = [rung for rung, wanted in arms.items() if wanted and not ladder.has(rung)]
    if ladder.finished and not arms:
        return ladder.rows
    judge = Judge.of(original, made.judged, windows=made.judge, length=made.length)
    if not ladder.finished:
        student = ladder.timed("start", lambda: start(original, made, windows, folder))
        ladder.measured("start", lambda: judge("start", student))
        with trackers.following(report_to, project="distillation", settings=dataclasses.asdict(made)) as told:
            learn = functools.partial(train_, student, original, made, windows, folder, followers=told)
            found = ladder.timed("training", learn)
        ladder.measured("distilled", lambda: judge("distilled", student))
        compressed_tensors.save(student, original.tokenizer, folder / STUDENT)
        ladder.finish(moved=found.moved, best=found.best, unseen=found.divergences, losses=found.history.losses)
    for rung in arms:
        _arm(rung, original, made, windows, folder, ladder, judge)
    for name in (TRAINING, CONTROL):  # nobody resumes what is finished
        shutil.rmtree(folder / name, ignore_errors=True)
    return ladder.rows


def _arm(rung: str, original: nn.Module, made: presets.Preset, windows, folder: Path, ladder: Ladder, judge) -> None:
    """Make and judge what a student is compared with: the control, or post-training, whose model is kept."""
    if rung == CONTROL:
        model = ladder.timed(rung, lambda: adapted(original, made, windows, folder))
    else:
        planned = ladder.planned(rung, lambda: post_training.plan(made, ladder.kept["seconds"]))
        larger = post_training.enlarged(made, windows, planned)
        model = ladder.timed(rung, lambda: start(original, *larger, folder / f"{POST_TRAINED}-state"))
        compressed_tensors.save(model, original.tokenizer, folder / POST_TRAINED)
    ladder.measured(rung, lambda: judge(rung, model))
    shutil.rmtree(folder / f"{POST_TRAINED}-state", ignore_errors=True)


def windows_of(original: nn.Module, made: presets.Preset) -> training_text.Windows:
    """The windows that `made` calibrates on, trains on, and keeps unseen."""
    counts = {"calibration": made.calibration, "unseen": made.unseen, "training": made.windows}
    return training_text.draw(original, made.texts, made.read, **counts, length=made.length, seed=made.seed)


def start(original: nn.Module, made: presets.Preset, windows: training_text.Windows, folder: Path | None) -> nn.Module:
    """A copy of `original` on the grids of `made`, by its quantizer; blocks that are finished in `folder` are read."""
    student = copy.deepcopy(original)
    for bits in made.through:
        state = folder and folder / f"start-{bits}"
        _start_(student, dataclasses.replace(made, bits=bits), windows, state)
        dense_(student, original.dtype)
    _start_(student, made, windows, folder and folder / "start")
    return student


def _start_(student: nn.Module, made: presets.Preset, windows: training_text.Windows, state: Path | None) -> None:
    """Put `student` on the grids of `made`, in place."""
    options = {"state": state, "bits": made.bits, "group_size": made.group_size}
    options |= {} if made.start == "codebook" else {"levels": made.levels}
    if made.start == "rtn":
        options |= {"candidates": CANDIDATES}
    if made.start in ("signround", "gptq_signround", "block_wise"):
        options |= {"steps": made.rounding, "batch": min(2, made.calibration), "seed": made.seed}
    quantize_ = block_wise.quantize_ if made.start == "block_wise" else quantizer(made.start)
    quantize_(student, windows.calibration, **options)


def train_(
    student: nn.Module,
    original: nn.Module,
    made: presets.Preset,
    windows: training_text.Windows,
    folder: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
    followers: Sequence = (),
) -> quantization_aware.Distilled:
    """Distill `original` into `student`, in place, as `made` says; on_step, followers: as `quantization_aware` has."""
    weights = {name: original.get_submodule(name).weight.detach() for name in calibrate.layers(original)}
    rows = rows_of(original, made, windows, folder)
    return quantization_aware.train_(
        student,
        rows,
        distill.Distillation(original, divergence=divergence_of(original, made, rows)),
        steps=max(1, len(rows) // made.batch),
        learning_rate=made.learning_rate,
        code_steps=made.code_steps,
        originals=weights if made.code_steps else None,
        linear=made.linear,
        norms=made.norms,
        held_out=(divergence.remember(original, windows.unseen), windows.unseen),
        every=made.every,
        batch=made.batch,
        micro_batch=made.micro_batch,
        seed=made.seed,
        folder=folder and folder / TRAINING,
        on_step=on_step,
        followers=followers,
    )


def adapted(original: nn.Module, made: presets.Preset, windows: training_text.Windows, folder: Path) -> nn.Module:
    """A copy of `original` that learned to predict the training windows, all weights and bits."""
    copied = copy.deepcopy(original)
    settings = {"learning_rate": ADAPTING, "batch": made.batch, "micro_batch": made.micro_batch, "seed": made.seed}
    steps = max(1, len(windows.training) // made.batch)
    loop.train_(copied, windows.training, next_token.loss, steps=steps, folder=folder / CONTROL, **settings)
    return copied


def rows_of(original: nn.Module, made: presets.Preset, windows: training_text.Windows, folder: Path | None):
    """What the student reads: the training windows, or these mixed with answers that `original` writes in `folder`."""
    if not made.answers:
        return windows.training
    prompts = teacher_data.from_data(original.tokenizer, "chat", made.answers, wished=made.wished, seed=made.seed)
    with contextlib.ExitStack() as stack:
        where = folder / "teacher" if folder else stack.enter_context(tempfile.TemporaryDirectory())
        how = {"new_tokens": made.new_tokens, "seed": made.seed, "engine": teacher_data.engine_of(made.model, original)}
        answers = teacher_data.write(original, prompts, where, **how)
    parts = {"windows": training_data.Windows(windows.training), "answers": selection.kept(answers, truncated=made.cut)}
    sizes = {name: len(part) for name, part in parts.items()}
    return selection.mixed(parts, sizes, count=sum(sizes.values()), seed=made.seed)


def divergence_of(original: nn.Module, made: presets.Preset, rows):
    """The divergence of `made`; the confidence-aware one asks how sure `original` is of the first `SURE` rows."""
    options = {}
    if made.divergence == "cakld":
        source = training_data.of(rows, original)
        first = [source.rows[place] for place in range(min(SURE, source.count))]
        options["coefficient"] = confidence.measure(original, first).value
    return divergences.by_name(made.divergence, **options)


def _same(folder: Path, made: presets.Preset, original: nn.Module, windows: training_text.Windows) -> None:
    """Raise ValueError, naming what differs, where `folder` holds another preset, model or text."""
    job = {name: str(value) for name, value in dataclasses.asdict(made).items()}
    job |= jobs.fingerprint(original) | {part: files.data_hash(getattr(windows, part)) for part in training_text.PARTS}
    if not files.write_first(folder / NOTE, json.dumps(job, indent=1)):
        jobs.same_job(folder, json.loads((folder / NOTE).read_text()), job)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.distillation.pipeline", description="Distill to few bits.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--model", help="another model than the preset's")
    parser.add_argument("--folder", type=Path, help="where its steps and the student are kept")
    parser.add_argument("--control", action="store_true", help="also train the original on the same windows, and judge")
    parser.add_argument("--post-training", action="store_true", help="also spend the same time without distillation")
    parser.add_argument("--report-to", nargs="+", default=(), help="programs that follow it: wandb, mlflow, trackio...")
    given = parser.parse_args(arguments)
    folder = given.folder or place(given.preset)
    try:
        made = presets.by_name(given.preset)
        made = dataclasses.replace(made, model=given.model) if given.model else made
        options = {"control": given.control, "post_trained": given.post_training, "report_to": given.report_to}
        run(made, folder, **options)
    except (ValueError, OSError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    print(Ladder(folder), f"the student lies in {folder / STUDENT}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
