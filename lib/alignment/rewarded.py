"""A model learns from rewards of its own answers: a reward model is trained on pairs, or read, and RLOO does the rest.

    python -m lib.alignment.rewarded quick --output checkpoints/mine
    python -m lib.alignment.rewarded gpu --judge checkpoints/judge --way lora --output checkpoints/mine

A judge that is trained here is saved beside the output, as `OUTPUT.training/judge`, with its accuracy on pairs that it
was not trained on: what is learned is what the judge likes, right or wrong.
"""

import argparse
import copy
import dataclasses
import sys
from pathlib import Path

from torch import nn

from lib import files
from lib.alignment import judging, on_policy, presets, tune
from lib.alignment.presets import PLAIN, Preset
from lib.trainers import processes, reward_model
from lib.trainers.history import History


def judge_of(preset: Preset, data: tune.Data, place: Path, given: Path | None) -> tuple[nn.Module, object]:
    """The reward model in the folder `given`, or at `place`, where it is trained and saved unless it is there."""
    if given is None and not reward_model.is_whole(place):
        made, tokenizer = tune.judge(preset, data.train, place.with_name(f"{place.name}.steps"))
        if processes.leads():
            reward_model.save_(made, tokenizer, place)
        return made, tokenizer
    return reward_model.load(given or place)


def run(
    preset: Preset, output: Path | str, *, way: str = "full", bits: int = PLAIN, judge: Path | str | None = None,
    rate: float | None = None, seed: int = 0,
) -> History:  # fmt: skip
    """Load, train and save one model; checkpoints lie beside `output`. rate: None takes the preset's first.

    Raises ValueError for a preset without a judge where none is given, and what loading and training raise.
    """
    presets.Arm("dpo", way, bits)  # which ways a model of so many bits has
    if judge is None and not preset.judge:
        raise ValueError(
            "the preset trains no reward model; one is needed; give its folder as judge, or set its steps."
        )
    output = Path(output)
    state = output.with_name(f"{output.name}.training")
    files.check_writable(output)
    model, tokenizer = tune.model_of(preset, bits, state / "quantized")
    data = tune.data(preset, tokenizer)
    judging_model, its = judge_of(preset, data, state / "judge", None if judge is None else Path(judge))
    right = judging.accuracy(judging.finds(judging_model, its, data.held_out, length=preset.length))
    print(f"the judge is right in {right} of unseen pairs")
    asked = on_policy.questions(data.train, tokenizer, length=preset.length)
    reward = on_policy.by_model(judging_model, its, length=preset.length + preset.new_tokens)
    options = {"samples": preset.samples, "beta": preset.kl, "new_tokens": preset.new_tokens, "seed": seed}
    loss = on_policy.Loss(tokenizer, asked, reward, reference=copy.deepcopy(model), name="judge", **options)
    settings = {"steps": preset.steps, "batch": preset.batch, "micro_batch": tune.at_once(preset), "seed": seed}
    settings |= {"learning_rate": rate or preset.rates[way][0], "folder": state / "steps"}
    history = tune.learn_(model, way, asked, loss, preset, **settings)
    tune.save(model, tokenizer, output)
    return history


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.alignment.rewarded", description="Learn from rewards.")
    parser.add_argument("preset", help=f"sizes: one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--output", required=True, type=Path, help="the folder of the model that comes out")
    parser.add_argument("--judge", type=Path, help="the folder of a reward model; else one is trained")
    parser.add_argument("--way", default="full", help=f"which weights learn: one of {', '.join(presets.WAYS)}")
    parser.add_argument("--bits", type=int, default=PLAIN, help="of the model; below 16 it is quantized first")
    parser.add_argument("--model", help="another model than the preset's")
    parser.add_argument("--pairs", help="other pairs than the preset's: a name, a file, or OWNER/NAME")
    parser.add_argument("--rate", type=float, help="another learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the questions, and of the answers")
    given = parser.parse_args(arguments)
    try:
        named = {name: value for name in ("model", "pairs") if (value := getattr(given, name)) is not None}
        preset = dataclasses.replace(presets.by_name(given.preset), **named)
        options = {name: getattr(given, name) for name in ("way", "bits", "judge", "rate", "seed")}
        history = run(preset, given.output, **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if processes.leads():
        first, last = (history.measures["reward"][place] for place in (0, -1))
        print(f"{len(history.losses)} steps, mean reward {first:.4g} to {last:.4g}: {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
