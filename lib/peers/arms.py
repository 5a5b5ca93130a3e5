"""Arms of the comparison: a name for each quantizer with the settings that it is compared with.

`ARMS` are the ones at a given number of bits. A peer has its own recommendation, but for auto-round, which is also
there with a quarter of its iterations: with those it was the best peer in the time that a small machine gives.
"""

from lib import files, peers
from lib.peers import environments

ARMS = {
    "rtn": ("thimble", {"method": "rtn"}),
    "gptq": ("thimble", {"method": "gptq"}),
    "rounding": ("thimble", {"method": "rounding"}),
    "best": ("thimble", {"method": "best"}),
    "hqq": ("hqq", {}),
    "gptqmodel": ("gptqmodel", {}),
    "llmcompressor": ("llmcompressor", {}),
    "auto-round": ("auto-round", {"iterations": 50, "batch_size": 2}),
    "auto-round, 200 iterations": ("auto-round", {}),
}


def named(text: str) -> list[str]:
    """The arms in `text`, names with semicolons between them; ValueError with the choices for one that is unknown.

    Arms whose environment is missing are left out, and a line says how to make it.
    """
    found = []
    for name in filter(None, (part.strip() for part in text.split(";"))):
        if name not in ARMS:
            raise ValueError(f"arm {name!r} is unknown; {files.choices(name, ARMS)}")
        try:
            environments.interpreter(peers.by_name(ARMS[name][0]))
        except FileNotFoundError as missing:
            print(f"left out: {name}. {missing}")
        else:
            found.append(name)
    return found


def quantize(name: str, model_folder, tokens, *, minutes: float, **options) -> environments.Result:
    """`run.quantize` for the arm `name`; minutes: what our recipe may take."""
    peer, settings = ARMS[name]
    if settings.get("method") == "best":
        settings = settings | {"minutes": minutes}
    return environments.quantize(peer, model_folder, tokens, **settings, **options)
