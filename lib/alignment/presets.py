"""Sizes of preference trainings, one table: what a notebook, a night on two cores, and a GPU can train."""

from dataclasses import dataclass, field

from lib import files
from lib.trainers import adapters, preferences
from lib.trainers.preferences import Options

SCALES = "scales"  # of a quantized model alone: codes stay, no byte is added
BESIDE, BACK = "qlora", "qlora-back"  # adapters on codes: kept beside them in 8 bits, or put through GPTQ with them
QUANTIZED = (SCALES, BESIDE, BACK)
WAYS = (*adapters.WAYS, *QUANTIZED)
PLAIN = 16  # bits of a model that is not quantized


@dataclass(frozen=True)
class Arm:
    """One kind of training: a loss, the weights that learn, and the bits of the model that does."""

    loss: str
    way: str = "full"
    bits: int = PLAIN

    def __post_init__(self):
        preferences.by_name(self.loss)
        if self.way not in WAYS or not 2 <= self.bits <= PLAIN or (self.way in QUANTIZED) != (self.bits < PLAIN):
            raise ValueError(
                f"way={self.way!r} of a model of {self.bits} bits; a model of {PLAIN} bits learns by "
                f"{', '.join(adapters.WAYS)}, one of 2 to 8 by {', '.join(QUANTIZED)}; change one."
            )

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.loss}-{self.way}-{self.bits}"


@dataclass(frozen=True)
class Preset:
    """One size of training, and of a study of several.

    model, pairs, text: names as `models.load`, `preference_data.load` and `texts.load` know them; the text calibrates
    (`calibration` windows) and shows what is forgotten (`windows` of them, of `plain` tokens). length: tokens of
    question and answer, pairs that do not fit are left out. train, held_out: pairs. steps, batch, micro_batch: of every
    training. rates: the peak learning rates that each way is tried with; the best one on `trial` pairs, which are
    neither trained nor judged on, is taken. options: of the losses that do not take the usual ones. arms, seeds: of a
    study. group_size: of quantized models. asked, new_tokens: questions that a model answers when it is judged, and
    tokens of an answer at most. judge: steps of the reward model that says who wins, 0 for none. samples, kl: answers a
    question, and β, of learning from rewards. tasks: (name, samples at most) of those that generate, with at most
    `task_tokens` an answer; those whose data are not at hand are left out.
    """

    pairs: str
    length: int
    train: int
    trial: int
    held_out: int
    steps: int
    batch: int
    micro_batch: int
    rates: dict[str, tuple[float, ...]]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    model: str = "smollm2-135m-instruct"
    text: str = "packaged"
    calibration: int = 8
    windows: int = 4
    plain: int = 256
    group_size: int = 64
    asked: int = 16
    new_tokens: int = 32
    judge: int = 0
    judge_rate: float = 1e-4
    samples: int = 4
    kl: float = 0.05
    tasks: tuple[tuple[str, int], ...] = ()
    task_tokens: int = 256
    options: dict[str, Options] = field(default_factory=dict)

    def options_of(self, loss: str) -> Options:
        """The options of a loss: the preset's, or the usual ones."""
        return self.options.get(loss, Options())


_OPTIONS = {"simpo": Options(beta=2.0), "ipo": Options(beta=0.1), "kto": Options(beta=0.1)}
_FOUR = (Arm("dpo"), Arm("ipo"), Arm("simpo"), Arm("kto"))
_BITS = (Arm("dpo", SCALES, 4), Arm("dpo", SCALES, 2))
_BESIDE = (Arm("dpo", BESIDE, 4), Arm("dpo", BACK, 4), Arm("dpo", BESIDE, 2))

PRESETS = {
    # one loss on pairs of this project, for a notebook
    "quick": Preset(
        "packaged", 96, 16, 4, 4, 4, 4, 4, {"full": (1e-5,), SCALES: (2e-3,)}, (Arm("dpo"),), (0, 1, 2), windows=2,
        asked=2, new_tokens=8, calibration=2, judge=4, samples=2,
    ),
    # so little that an evening's rest of one core is enough: what it does not show is not shown to be absent
    "evening": Preset(
        "hh_harmless", 128, 64, 4, 48, 6, 4, 4, {"full": (4e-5,), SCALES: (4e-3,)},
        (_FOUR[0], *_BITS, *_FOUR[1:]), (0, 1, 2, 3, 4), options=_OPTIONS, calibration=4, windows=2, plain=128, asked=6,
        new_tokens=16, judge=12,
    ),
    # four losses on pairs of people, and by scales alone at 4 and 2 bits: two to three hours of one core
    "cpu": Preset(
        "hh_harmless", 128, 192, 24, 96, 16, 8, 4,
        {"full": (1e-5, 4e-5), SCALES: (1e-3, 4e-3), BESIDE: (2e-4,), BACK: (2e-4,)},
        (*_FOUR, *_BITS), (0, 1, 2, 3, 4), options=_OPTIONS, judge=24, task_tokens=48,
        tasks=(("packaged_instructions", 10), ("ifeval", 10), ("xstest", 10)),
    ),
    # whole data and answers of any length
    "gpu": Preset(
        "Anthropic/hh-rlhf", 1024, 40_000, 500, 2_000, 600, 64, 8,
        {"full": (5e-7, 1e-6, 2e-6), SCALES: (5e-4, 1e-3, 2e-3)} | dict.fromkeys(("lora", BESIDE, BACK), (2e-5, 5e-5)),
        (*_FOUR, Arm("orpo"), Arm("hinge"), Arm("robust"), Arm("dpo", "lora"), *_BITS, *_BESIDE), (0, 1, 2, 3, 4),
        options=_OPTIONS | {"robust": Options(label_smoothing=0.1)}, calibration=128, windows=32, plain=512, asked=512,
        new_tokens=256, judge=600, judge_rate=2e-5,
        tasks=(("ifeval", 541), ("xstest", 450), ("packaged_instructions", 20)), task_tokens=1280,
    ),
}  # fmt: skip


def by_name(name: str) -> Preset:
    """The preset `name`; ValueError with the choices for others."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; {files.choices(name, PRESETS)}")
    return PRESETS[name]
