"""What the trainings of a study of preferences share, how one of them is trained, and how it is judged."""

import copy
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from lib import files, jobs, tasks
from lib.alignment import judging, on_policy, tune
from lib.alignment.presets import PLAIN, Arm, Preset
from lib.evaluation import run as evaluation
from lib.evaluation.local import Local
from lib.metrics import divergence, seeds
from lib.models import logits
from lib.sources import texts
from lib.trainers import checkpoints, preference_rows, preference_training, preferences, reward_model
from lib.trainers.preference_rows import PreferenceRows

NOTE = "study.json"
_ROOM = 1 << 20  # bytes of a record


@dataclass(frozen=True)
class Run:
    """One training of a study, or, without a seed, the model before any."""

    arm: Arm
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.arm.name}-{self.seed}-{self.rate:g}"


class Study:
    """The study of `preset` in `folder`: what all its trainings share is made once, when it is first needed.

    The model before training, by bits, with its reference's log-probabilities of all pairs in files; the reward model.
    """

    def __init__(self, preset: Preset, folder: Path | str):
        self.preset, self.folder = preset, Path(folder)
        seeds.check(list(preset.seeds))
        self._models: dict[int, nn.Module] = {}
        self._judge = None
        files.check_writable(self.folder / NOTE, _ROOM * (len(preset.arms) * len(preset.seeds) + 16))
        model, self.tokenizer = tune.model_of(preset, PLAIN)
        self.tasks = _at_hand(preset, self.tokenizer)
        job = {name: str(value) for name, value in dataclasses.asdict(preset).items()}
        job["judged by"] = ", ".join(self.tasks)
        self.folder.mkdir(parents=True, exist_ok=True)
        jobs.same_study(self.folder / NOTE, job, preset.seeds)
        self._models[PLAIN] = model
        self.data = tune.data(preset, self.tokenizer)
        self.plain = texts.tokens(texts.load(preset.text, "test").windows(preset.windows, preset.plain), model)
        self.asked = on_policy.questions(self.data.held_out[: preset.asked], self.tokenizer, length=preset.length)

    def model(self, bits: int) -> nn.Module:
        """A copy of the model before training, to be trained."""
        return copy.deepcopy(self.before(bits))

    def rows(self, arm: Arm, part: str) -> PreferenceRows:
        """The rows of a part of the data ("train", "trial" or "held_out") for an arm, with its reference's answers."""
        given = getattr(self.data, part)
        made = tune.rows_of(arm.loss if part == "train" else "dpo", given, self.tokenizer, self.preset.length)
        kind = "pairs" if part != "train" or preferences.by_name(arm.loss).pairs else "singles"
        return made.towards(self.before(arm.bits), self.folder / "references" / f"{part}-{kind}-{arm.bits}")

    def before(self, bits: int) -> nn.Module:
        """The model before training itself: to be read only."""
        if bits not in self._models:
            self._models[bits] = tune.model_of(self.preset, bits, self.folder / f"quantized-{bits}")[0]
        return self._models[bits]

    def train(self, run: Run) -> tuple[nn.Module, dict]:
        """The trained model of a run, and what its training noted, one number a step."""
        own, model = self.folder / "trainings" / run.name, self.model(run.arm.bits)
        own.mkdir(parents=True, exist_ok=True)
        history = tune.train_(model, run.arm, self.rows(run.arm, "train"), self.preset, rate=run.rate, seed=run.seed,
                              folder=own)  # fmt: skip
        for each in checkpoints.checkpoints(own):  # three times a model; nobody resumes what is finished
            shutil.rmtree(each)
        return model, {"losses": history.losses, "measures": history.measures, "seconds": history.seconds[-1]}

    def judge(self, model: nn.Module, arm: Arm) -> dict:
        """What can be said of a model, beside the one before its training, as plain numbers."""
        rows, before = self.rows(arm, "held_out"), self.before(arm.bits)
        found, known = judging.likelihoods(model, rows), judging.reference_of(rows)
        h = (found.logp - known).T
        score = judging.bits_per_byte(found, rows)
        reference = divergence.remember(before, self.plain)
        forgotten = divergence.compare(model, reference, self.plain).divergence.double().mean(1)
        own = judging.answers(model, before, self.asked, self.tokenizer, new_tokens=self.preset.new_tokens)
        said = {
            "prefers": found.prefers.tolist(), "learned": found.against(known).tolist(), "chosen": h[0].tolist(),
            "rejected": h[1].tolist(), "bits_per_byte": score.value, "forgotten": forgotten.tolist(),
            "answer_kl": own.gone.tolist(), "answer_tokens": own.tokens.tolist(), "over_length": own.over_length.value,
        }  # fmt: skip
        return said | {"rewards": self.rewards(own.texts), "tasks": self._tasks(model)}

    def rewards(self, answers: tuple[str, ...]) -> list[float]:
        """The reward model's scores of answers to the questions asked; none where the preset has no such model."""
        if not self.preset.judge:
            return []
        model, tokenizer = self.reward_model()
        answered = [reward_model.answered(each, text) for each, text in zip(self.asked.conversations, answers)]
        length = self.preset.length + self.preset.new_tokens
        return reward_model.score(model, answered, tokenizer, length=length).tolist()

    def reward_model(self) -> tuple[nn.Module, object]:
        """The reward model, trained on the pairs that are trained on."""
        if self._judge is None:
            self._judge = tune.judge(self.preset, self.data.train, self.folder / "trainings" / "judge")
        return self._judge

    def judged_right(self) -> list[float]:
        """Of each held-out pair whether the reward model finds the right answer better: its own error."""
        if not self.preset.judge:
            return []
        model, tokenizer = self.reward_model()
        return judging.finds(model, tokenizer, self.data.held_out, length=self.preset.length).tolist()

    def _tasks(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """Scores of the preset's tasks: instructions followed, refusals."""
        engine, found = Local(model, self.tokenizer), {}
        for name, task in self.tasks.items():
            scores = evaluation.evaluate(engine, task)
            found[name] = {metric: score.value for metric, score in scores.items()}
        return found

    def trial_loss(self, model: nn.Module, arm: Arm) -> float:
        """The mean of DPO's loss, at the arm's β, on the trial pairs: by it the learning rate is chosen.

        One yardstick for all losses, of which some have other units.
        """
        rows = self.rows(arm, "trial")
        options = dataclasses.replace(self.preset.options_of("dpo"), label_smoothing=0.0)
        loss, device, total = preference_training.Loss("dpo", options), logits.device(model), 0.0
        with torch.no_grad():
            for row in rows:
                batch = preference_rows.collate([row])
                total += float(loss(model, {name: each.to(device) for name, each in batch.items()}))
        return total / len(rows)


def _at_hand(preset: Preset, tokenizer) -> dict[str, tasks.Task]:
    """The tasks of a preset whose data are there, asked as the chat template writes questions; says what is not."""
    found = {}
    for name, most in preset.tasks:
        try:
            task = tasks.load(name, chat=tokenizer)
        except FileNotFoundError as error:
            print(f"{name} is left out: {error}")
            continue
        capped = evaluation.capped(task, preset.task_tokens)
        found[name] = dataclasses.replace(capped, samples=capped.samples[:most])
    return found
