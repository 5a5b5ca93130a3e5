"""Settings as programs read them that know transformers' older form: the rotation's at the top of config.json.

Transformers 5 writes `rope_parameters` alone. mlx-lm, and programs that stayed with transformers 4, look for
`rope_theta` and take 10,000 where they find none: the file opens, and is another model.
"""

import json
from pathlib import Path

from lib import files

_OTHERS = ("rope_theta", "partial_rotary_factor")  # stand beside `rope_scaling` in the older form, not in it


def add(folder: Path | str) -> None:
    """Write the older names beside the newer ones, in place, before a folder is sealed."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_text())
    newer = config.get("rope_parameters") or {}
    whole = newer.get("full_attention", newer)  # some families have a rotation for each kind of attention
    config |= {name: whole[name] for name in _OTHERS if name in whole}
    if "sliding_attention" in newer:
        config["rope_local_base_freq"] = newer["sliding_attention"]["rope_theta"]
    if whole.get("rope_type", "default") != "default":
        config["rope_scaling"] = {name: value for name, value in whole.items() if name not in _OTHERS}
    files.write_text(path, json.dumps(config, indent=2))
