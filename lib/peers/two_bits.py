"""A rival of the distilled student: auto-round with its extension for few bits, on the same model, tokens and texts.

    THIMBLE_PEERS=/some/folder python -m lib.peers.two_bits cpu --iterations 200

It quantizes in its own environment (`environments`), to the bits and groups of the preset, on the windows that the
student's start was calibrated on; its folder is measured as the student is, window by window, so that both can be
compared in pairs. Where it is not installed, the reason and the commands that install it are kept instead.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lib import files, jobs
from lib.checkpoints import fingerprint
from lib.distillation import pipeline, presets
from lib.distillation.judging import Judge
from lib.peers import environments
from lib.sources import models

FILE, NAME = "rivals.json", "auto-round"


def run(preset: str | presets.Preset, folder: Path | str, *, windows: int | None = None, **options) -> dict:
    """Quantize and measure the rival of a preset's run in `folder`; returns what is kept of it.

    windows: of calibration, as many as the preset's start sees if None. options: of `peers.auto_round`; the extension
    is on. A finished rival is not made again; one of other options is refused, as is a folder of another job. What
    keeps it from running is kept as its reason, and the next call tries again.
    """
    made, folder = presets.by_name(preset) if isinstance(preset, str) else preset, Path(folder)
    original, _ = models.load(made.model)
    tokens = pipeline.windows_of(original, made).calibration[:windows]
    options = {"extension": True, **options}
    job = {"model": fingerprint(original), "calibration": files.data_hash(tokens), "bits": made.bits}
    job = {name: str(value) for name, value in (job | {"group_size": made.group_size} | options).items()}
    kept = json.loads(path.read_text()) if (path := folder / FILE).exists() else {}
    if (before := kept.get(NAME, {})).get("rows"):
        jobs.same_job(folder, before["job"], job)
        return before
    place = folder / "rivals" / NAME
    grid = {"bits": made.bits, "group_size": made.group_size, "folder": place}
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        result = environments.quantize(NAME, models.find(made.model)[0], tokens, **grid, **options)
    except FileNotFoundError as missing:
        found = {"skipped": str(missing)}
    else:
        judge = Judge.of(original, made.judged, windows=made.judge, length=made.length)
        facts = asdict(result) | {"folder": str(place)}
        found = {"job": job, "result": facts, "rows": judge(NAME, models.load(str(place))[0])}
    files.write_text(path, json.dumps(kept | {NAME: found}))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lib.peers.two_bits", description="Measure a rival.")
    parser.add_argument("preset", help=f"one of {', '.join(presets.PRESETS)}")
    parser.add_argument("--folder", type=Path, help="of the preset's run")
    parser.add_argument("--windows", type=int, help="of calibration; the preset's own if not given")
    parser.add_argument("--iterations", type=int, default=200, help="of each block; the peer recommends 1000 at 2 bits")
    parser.add_argument("--batch-size", type=int, default=8)
    given = vars(parser.parse_args(arguments))
    preset, folder = given.pop("preset"), given.pop("folder")
    try:
        presets.by_name(preset)
        found = run(preset, folder or pipeline.place(preset), **given)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 2
    if "skipped" in found:
        print(f"left out: {found['skipped']}")
        return 0
    for row in found["rows"]:
        print(f"{NAME} {row['text']}: KL {row['kl']:.4f} ± {row['kl_stderr'] or 0:.4f} nats a token, n={row['n']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
