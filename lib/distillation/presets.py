"""Recipes of two bits, one table: what half a minute, an hour of two cores, and a GPU can distill.

What was measured on the way to `cpu` (packaged model, one thread, KL in nats a token): a start of 96 windows and 120
steps a block, 10.75 processor minutes, stands at 0.699 ± 0.015 on WikiText-2, 0.963 ± 0.033 on C4 and 0.733 ± 0.017 on
novels (24 windows each). From there 64 fresh windows, 3 processor minutes of scales alone, bring 0.079 ± 0.005, 0.128 ±
0.009 and 0.057 ± 0.006, paired on 12 windows. Against these, on the same windows, WikiText-2, C4, novels:

    learning rate 8e-3 in place of 4e-3         0.041 ± 0.007   0.019 ± 0.007   0.016 ± 0.003 worse
    2e-3                                        0.005 ± 0.003   0.007 ± 0.003  -0.010 ± 0.002
    norms learn too                            -0.001 ± 0.002   0.000 ± 0.002   0.000 ± 0.001
    the embedding too, at 3e-5                  0.000 ± 0.001   0.000 ± 0.001  -0.001 ± 0.000
    codes move too, at 1e-3 code steps: 0.04 %  0.010 ± 0.001   0.002 ± 0.002   0.014 ± 0.001 worse

More than half of what `cpu` reads is WikiText, a quarter are chats and answers of the original; nothing is read of C4
and the novels, though another collection's books are.
"""

from dataclasses import dataclass

from lib import files


@dataclass(frozen=True)
class Preset:
    """One recipe: where a student starts, what it reads, and how it learns.

    model: as `models.load` knows it. texts: name -> share of the windows, see `training_text`; read: the shares of
    those that are learned from, where they are others. judged: text -> split, of which `judge` windows are measured and
    none is learned from. bits, group_size, levels: of the decoder's linear layers. through: bits at which the model is
    quantized on the way there, each from the values of the last. start: quantizer that the student begins with, one of
    `quantizers.METHODS` or "block_wise"; calibration: windows that it sees; rounding: its steps a block, where it
    learns. windows: of `length` tokens, each read once, in steps of `batch`, `micro_batch` at once. answers: of the
    teacher to prompts of chats, at most `new_tokens` long, which are mixed into the windows; wished: share of the
    prompts that also say which form the answer shall have; cut: whether answers stay that are longer. learning_rate: of
    the scales at its peak, None by the bits. code_steps: how far a latent weight moves at most in a step, in steps of
    its grid; 0 keeps all codes. linear: how codes move, one of `quantization_aware.LINEARS`. norms: whether their
    weights learn too. divergence: one of `divergences.DIVERGENCES`; of "cakld" the teacher's own confidence is the
    coefficient. unseen: windows of the same texts by which the best state is chosen, every `every` steps.
    """

    model: str
    texts: dict[str, float]
    judged: dict[str, str]
    bits: int = 2
    group_size: int = 64
    levels: str = "half"
    through: tuple[int, ...] = ()
    start: str = "gptq_signround"
    calibration: int = 96
    rounding: int = 120
    length: int = 512
    windows: int = 512
    batch: int = 4
    micro_batch: int = 2
    learning_rate: float | None = None
    code_steps: float = 0.0
    linear: str = "codes"
    norms: bool = False
    divergence: str = "forward_kl"
    unseen: int = 16
    every: int = 32
    judge: int = 32
    answers: int = 0
    wished: float = 0.0
    new_tokens: int = 256
    cut: bool = False
    read: dict[str, float] | None = None
    seed: int = 0


_PACKAGED = "smollm2-135m-instruct"
# half of it the domain of one of the judged texts, and nothing from the domains of the other two
_GENERAL = {
    "wikitext2": 0.5,
    "redpajama_sample/book2.jsonl": 0.2,
    "redpajama_sample/stackexchange1.jsonl": 0.12,
    "redpajama_sample/arxiv1.jsonl": 0.08,
    "redpajama_sample/wiki1.jsonl": 0.06,
    "redpajama_sample/cc2.jsonl": 0.04,
}
# of these the hour reads more, and sees how a chat is written
_HOUR = {
    "wikitext2": 0.45,
    "redpajama_sample/book2.jsonl": 0.2,
    "redpajama_sample/stackexchange1.jsonl": 0.135,
    "chats:alpaca/alpaca_4000.jsonl": 0.1,
    "redpajama_sample/arxiv1.jsonl": 0.07,
    "redpajama_sample/wiki1.jsonl": 0.03,
    "redpajama_sample/cc2.jsonl": 0.015,
}
# what it learns from, beside answers to chats
_READ = {
    "wikitext2": 0.62,
    "chats:alpaca/alpaca_4000.jsonl": 0.15,
    "redpajama_sample/book2.jsonl": 0.09,
    "redpajama_sample/stackexchange1.jsonl": 0.07,
    "redpajama_sample/arxiv1.jsonl": 0.03,
    "redpajama_sample/wiki1.jsonl": 0.025,
    "redpajama_sample/cc2.jsonl": 0.015,
}
_JUDGED = {"wikitext2": "test", "c4": "test", "novels_en": "valid"}
_WEB = {"cerebras/SlimPajama-627B": 1.0}
_LLAMA, _GUARD = "meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-Guard-3-1B"
_GPU = {"calibration": 512, "rounding": 200, "length": 2048, "windows": 24576, "batch": 16, "micro_batch": 8,
        "unseen": 64, "every": 128}  # fmt: skip

PRESETS = {
    # rounding to nearest, and scales that take back a part of the harm while one looks on
    "quick": Preset(
        _PACKAGED, {"packaged": 1.0}, {"packaged": "test"}, start="rtn", calibration=2, length=128, windows=32, batch=2,
        micro_batch=2, unseen=4, every=4, judge=4,
    ),
    # an hour of two cores
    "cpu": Preset(
        _PACKAGED, _HOUR, _JUDGED, levels="pairs", calibration=128, rounding=128, read=_READ, windows=1536,
        answers=704, wished=0.6, cut=True, micro_batch=1, every=100,
    ),
    # what each rung is worth over seeds (`rungs`): small enough for five of them in an hour and a half of one core
    "rungs": Preset(_PACKAGED, _GENERAL, _JUDGED, calibration=24, rounding=24, windows=48, unseen=8, every=6, judge=8),
    # published recipes, at the same size: clipped ranges, grids that follow their weights, answers of the teacher
    "bitdistiller": Preset(
        _PACKAGED, _GENERAL, _JUDGED, levels="integer", start="clip", calibration=64, windows=512, answers=1000,
        batch=8, linear="bitdistiller", code_steps=1e-3, divergence="cakld",
    ),
    # all weights block by block, then scales alone
    "efficientqat": Preset(
        _PACKAGED, _GENERAL, _JUDGED, levels="integer", start="block_wise", calibration=128, rounding=160, windows=1024,
    ),
    # balanced levels, all weights end to end
    "paretoq": Preset(
        _PACKAGED, _GENERAL, _JUDGED, levels="balanced", start="rtn", calibration=1, windows=1024, batch=8,
        linear="lsq", code_steps=1e-3,
    ),
    # 50 M tokens on one device of 80 GB; not run yet
    "gpu": Preset(_LLAMA, _WEB, _JUDGED, **_GPU),
    "gpu_guard": Preset(_GUARD, _WEB, _JUDGED, **_GPU),
    # as many samples as BitDistiller's; not run yet
    "gpu_bitdistiller": Preset(
        _LLAMA, _WEB, _JUDGED, levels="integer", start="clip", calibration=128, length=1024, windows=64, answers=3000,
        batch=16, micro_batch=8, linear="bitdistiller", code_steps=1e-4, divergence="cakld", unseen=64, new_tokens=512,
    ),
}  # fmt: skip


def by_name(name: str) -> Preset:
    """The preset `name`; ValueError with the choices for others."""
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown; {files.choices(name, PRESETS)}")
    return PRESETS[name]
