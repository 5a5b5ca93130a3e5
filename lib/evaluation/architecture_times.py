"""How fast the trained models of an architecture study answer, in PyTorch and in the packed engine."""

import copy
import json
from pathlib import Path

from torch import nn

from lib import files, runtime
from lib.metrics import speed
from lib.quantizers import rtn
from lib.sources import models
from lib.trainers import architecture_study, presets

SPEED = "speed.json"
PROMPT, ROUNDS = 128, 15


def times(
    preset: str | presets.Preset, folder: Path | str, *, prompt: int = PROMPT, rounds: int = ROUNDS
) -> dict[str, dict[str, list[float]]]:
    """Seconds of reading `prompt` tokens and of a further token, of all arms and depths in turns, round by round.

    One model each, that of the first seed, since time does not depend on the weights; "packed" behind a name is that
    model at 4 bits in the packed engine, which says which architectures it does not run. Kept in the study's folder.
    """
    preset = presets.by_name(preset) if isinstance(preset, str) else preset
    folder, first, systems = Path(folder), preset.seeds[0], {}
    records = architecture_study.records(folder)
    chosen = architecture_study.best_rates(preset, records)
    for each in records:
        if each["seed"] == first and each["rate"] == chosen[each["arm"]]:
            name = f"{each['arm']} {each['blocks']}"
            systems[name], _ = models.load(str(architecture_study.model_folder(folder, each)))
            try:
                systems[f"{name} packed"] = _packed(systems[name])
            except ValueError as error:
                print(f"{name} is not timed in the packed engine: {error}")
    measured = speed.measure(systems, prompt=prompt, new_tokens=32, rounds=rounds)
    found = {name: {key: measured.samples[name][key] for key in ("ttft", "tpot")} for name in systems}
    files.write_text(folder / SPEED, json.dumps(found))
    return found


def _packed(model: nn.Module) -> runtime.Session:
    """The model at 4 bits, a grid a row, in the packed engine; ValueError for one that it does not run."""
    smaller = copy.deepcopy(model).bfloat16()
    rtn.quantize_(smaller, bits=4, group_size=-1)
    return runtime.Session(runtime.pack_(smaller))
