"""The systems that `53_peers` compares: each quantizer's name and settings.

`SYSTEMS` are compared at equal bits. Each peer runs with its own recommended settings; auto-round also with a quarter
of its iterations, with which it was the best peer within the time of a small machine.
"""

from lib import files, peers
from lib.peers import environments

SYSTEMS = {
    "rtn": ("thimble", {"method": "rtn"}),
    "gptq": ("thimble", {"method": "gptq"}),
    "signround": ("thimble", {"method": "signround"}),
    "best": ("thimble", {"method": "best"}),
    "hqq": ("hqq", {}),
    "gptqmodel": ("gptqmodel", {}),
    "llmcompressor": ("llmcompressor", {}),
    "auto-round": ("auto-round", {"iterations": 50, "batch_size": 2}),
    "auto-round, 200 iterations": ("auto-round", {}),
}


def named(text: str) -> list[str]:
    """The systems named in `text`, separated by semicolons; ValueError with the choices for an unknown name.

    Systems whose environment is missing are left out, and a printed line says how to create it.
    """
    found = []
    for name in filter(None, (part.strip() for part in text.split(";"))):
        if name not in SYSTEMS:
            raise ValueError(f"system {name!r} is unknown; {files.choices(name, SYSTEMS)}")
        try:
            environments.interpreter(peers.by_name(SYSTEMS[name][0]))
        except FileNotFoundError as missing:
            print(f"left out: {name}. {missing}")
        else:
            found.append(name)
    return found


def quantize(name: str, model_folder, tokens, *, minutes: float, **options) -> environments.Result:
    """`environments.quantize` for the system `name`; minutes: the time limit of our recipe."""
    peer, settings = SYSTEMS[name]
    if settings.get("method") == "best":
        settings = settings | {"minutes": minutes}
    return environments.quantize(peer, model_folder, tokens, **settings, **options)
