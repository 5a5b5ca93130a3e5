"""Preference pairs by name: a few written for this project, files under `$THIMBLE_DATA`, one's own, or the Hub's."""

from pathlib import Path

from lib import files
from lib.sources import builtin_preferences, conversations, hub
from lib.sources.conversations import Conversation

FILES = {  # under $THIMBLE_DATA
    "hh_harmless": "preference/hh_harmless_base_test.jsonl",  # Anthropic's (arXiv 2204.05862), MIT
    "dpo_en": "preference/dpo_en_300.jsonl",  # LLaMA-Factory's demonstration, Apache-2.0
    "dpo_zh": "preference/dpo_zh_300.jsonl",
}
NAMES = ("packaged", *FILES)


def load(name: str, *, broken: str = "refuse") -> list[Conversation]:
    """The pairs called `name`, printed and noted: one of `NAMES`, the path of a file, or a data set of the Hub
    ("Anthropic/hh-rlhf", its train split).

    broken: as in `conversations.read`. Raises ValueError for unknown names and for rows that are no pairs,
    FileNotFoundError without the file, ConnectionError where the Hub can't be asked.
    """
    if name == "packaged":
        found = conversations.read(builtin_preferences.rows(), name=name, broken=broken)
    elif name in FILES:
        found = conversations.read(_local(name), broken=broken)
    elif Path(name).suffix in (".jsonl", ".json", ".parquet"):
        found = conversations.read(Path(name).expanduser(), broken=broken)
    elif name.count("/") == 1:
        found = conversations.read(hub.rows(name), name=name, broken=broken)
    else:
        raise ValueError(f"pairs {name!r} are unknown; {files.choices(name, NAMES)} Or give a file, or OWNER/NAME.")
    if lone := next((each for each in found if each.chosen is None), None):
        raise ValueError(f"{lone.where} has no pair of answers; a preferred and a rejected one are needed; use pairs.")
    return found


def _local(name: str) -> Path:
    base = files.data()
    if base is None or not (base / FILES[name]).exists():
        raise FileNotFoundError(
            f"pairs {name!r} are {FILES[name]} under $THIMBLE_DATA, which is {base or 'not set'}; name a folder that "
            'has them, or take "packaged".'
        )
    return base / FILES[name]
