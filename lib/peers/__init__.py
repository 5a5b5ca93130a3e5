"""Peers: quantizers of other projects, run side by side with ours on the same model, tokens and grid.

Each peer is one file, a script that the peer's *own* interpreter runs, because their requirements contradict ours and
one another's. `environments.quantize` checks, starts the script and returns an ordinary checkpoint with the peer's
weights.

    python -m lib.peers.<file> arguments.json      # what it executes, inside the peer's environment

Thimble itself is one of them, `thimble.py`, so that its seconds and memory are taken in the same way.

A peer's file has the literals NAME, PACKAGE, VERSION, MODULE, INTERPRETER, INSTALL, BITS, NEEDS_TOKENS, ENVIRONMENT
and OPTIONS (its own settings with their defaults), which can be read without the peer, and
`quantize(job) -> (weights, facts)`, which can't. `PEERS` names the files; `by_name` finds one.
"""

import importlib

from lib import files

PEERS = {
    "thimble": "lib.peers.thimble",
    "auto-round": "lib.peers.auto_round",
    "gptqmodel": "lib.peers.gptqmodel",
    "llmcompressor": "lib.peers.llmcompressor",
    "hqq": "lib.peers.hqq_package",
    "llama.cpp": "lib.peers.llama_cpp",
}


def by_name(name: str):
    """Return the module of the peer `name`; raise ValueError with the choices when there is none."""
    if name not in PEERS:
        raise ValueError(f"peer {name!r} is unknown; {files.choices(name, PEERS)}")
    return importlib.import_module(PEERS[name])
