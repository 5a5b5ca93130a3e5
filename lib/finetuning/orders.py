"""The orders in which a model is tuned and compressed, an arm each: every one ends in a model of the same data.

    tune, compress      LoRA in 16 bits, merged, then GPTQ
    scales              GPTQ, then its scales learn: compressed weights in the loop, not a byte added
    adapters, back      GPTQ, then QLoRA on its codes, merged and put through GPTQ again
    adapters, beside    GPTQ, then QLoRA, whose adapters stay beside the codes in 8 bits, at their bytes

Beside them stand the original, the tuned model in 16 bits, and the compressed one that learned nothing.
"""

import functools
import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lib import tasks, timing
from lib.evaluation import run as evaluation
from lib.evaluation.local import Local
from lib.export import compressed_tensors, size
from lib.finetuning import adapter_folder, merging, packing, ways
from lib.finetuning.presets import Preset
from lib.quantized import low_rank_linear
from lib.quantizers import gptq
from lib.sources import conversations, models, texts
from lib.trainers import answer_rows, loop, next_token

TUNED = {"tune, compress": "lora", "scales": "scales", "adapters, back": "qlora", "adapters, beside": "qlora"}
ARMS = ("original", "tuned", "compressed", *TUNED)
_TRIALS = 3  # steps by which a way's pace is measured, after one that warms up


@dataclass(frozen=True)
class Training:
    """What is trained: way, bits of the model (16: as it came), seed, factor of the usual learning rate."""

    way: str
    bits: int
    seed: int
    rate: float

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.way}-{self.bits}-rate-{self.rate:g}-seed-{self.seed}"


class Material:
    """The data of a study, and the models that its arms begin with, made once in `folder`."""

    def __init__(self, preset: Preset, folder: Path):
        self.preset, self.folder = preset, folder
        _, self.tokenizer = models.load(preset.model, dtype="bfloat16")
        self.train, self.valid, self.test = (self._rows(split) for split in ("train", "valid", "test"))
        self.windows = texts.load(preset.text, split="test").windows(preset.windows, 512)

    def _rows(self, split: str) -> answer_rows.AnswerRows:
        count = {"train": None, "valid": self.preset.tried, "test": self.preset.unseen}[split]
        found = conversations.read(self.preset.data, split=split, broken="skip")[:count]
        return answer_rows.rows(found, self.tokenizer, length=self.preset.length)

    def original(self) -> nn.Module:
        """The model as it came, in bfloat16."""
        return models.load(self.preset.model, dtype="bfloat16")[0]

    def compressed(self, bits: int) -> nn.Module:
        """The model at `bits` by GPTQ on training rows; read from its folder once it is there."""
        if bits == 16:
            return self.original()
        place = self.folder / "models" / f"gptq-{bits}"
        if not place.is_dir():
            model = quantized_(self.original(), self, bits)
            compressed_tensors.save(model, self.tokenizer, place)
        return compressed_tensors.load(place)[0]

    def right(self, model: nn.Module) -> dict[str, list[float]]:
        """Of each task whether `model` answers each question right, 1 or 0."""
        engine, found = Local(model, self.tokenizer), {}
        for name, task in self._tasks.items():
            rows = evaluation.evaluate(engine, task, cache=False).rows
            found[name] = [float(row.scores[task.metrics[0]]) for row in rows]
        return found

    @functools.cached_property
    def _tasks(self) -> dict[str, tasks.Task]:
        return {name: tasks.load(name, count=count) for name, count in self.preset.tasks}

    @functools.cached_property
    def calibration(self) -> Tensor:
        """Token ids [count, length] of training conversations one behind the other."""
        return packing.windows(self.train, self.preset.calibration, self.preset.length)


def quantized_(model: nn.Module, material: Material, bits: int) -> nn.Module:
    """`model` through GPTQ, in place."""
    gptq.quantize_(model, material.calibration, bits=bits, group_size=material.preset.group_size)
    return model


def pace(material: Material, way: str, bits: int) -> float:
    """Seconds of processor time that a training step takes on this machine, by the fastest of a few."""
    model, times = material.compressed(bits), []
    _train_(model, material, Training(way, bits, 0, 1.0), 1 + _TRIALS, None, lambda *_: times.append(timing.worked()))
    return min(after - before for before, after in itertools.pairwise(times))


def train(material: Material, each: Training, steps: int) -> Path:
    """The folder with what was learned: an adapter, or a whole model where scales did; trained if it is not there.

    A killed training resumes, and ends in the same bytes.
    """
    place = material.folder / "tuned" / each.name
    if not place.is_dir():
        model, state = material.compressed(each.bits), material.folder / "training" / each.name
        adapters = _train_(model, material, each, steps, state)
        if adapters is None:
            compressed_tensors.save(model, material.tokenizer, place)
        else:
            adapter_folder.save(adapters, place)
        shutil.rmtree(state, ignore_errors=True)
    return place


def _train_(model, material: Material, each: Training, steps: int, state: Path | None, on_step=None):
    preset, options = material.preset, {}
    if each.way != "scales":
        options = {"rank": preset.rank, "seed": each.seed}
    rate = each.rate * ways.learning_rate(model, each.way)
    with ways.trained_(model, each.way, **options) as adapters:
        loop.train_(
            model, material.train, next_token.loss, steps=steps, learning_rate=rate, batch=preset.batch,
            micro_batch=preset.batch, seed=each.seed, folder=state, on_step=on_step,
        )  # fmt: skip
    return adapters


def made(material: Material, arm: str, bits: int, learned: Path | None) -> nn.Module:
    """The model that an arm ends with; learned: the folder of its training."""
    if arm in ("original", "compressed"):
        return material.compressed(bits)
    if arm == "scales":
        return compressed_tensors.load(learned)[0]
    model = material.compressed(16 if arm in ("tuned", "tune, compress") else bits)
    adapters = adapter_folder.load(learned, model)
    if arm == "adapters, beside":
        return merging.beside_(model, adapters)
    if arm == "adapters, back":
        return merging.into_low_bits_(model, adapters, material.calibration)
    merging.into_16_bits_(model, adapters)
    return model if arm == "tuned" else quantized_(model, material, bits)


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the checkpoint of `model`, and of the low-rank part beside it."""
    parts = low_rank_linear.without_(model)
    try:
        return size.predict(model) + sum(part.nbytes for part in parts.values())
    finally:
        low_rank_linear.with_(model, parts)
