"""Runs a peer on a checkpoint and tokens in the peer's own environment, and reads back an ordinary checkpoint.

    THIMBLE_PEERS=/some/folder        # one virtual environment a peer: auto-round/, gptqmodel/, hqq/, llmcompressor/,
                                      # and llama.cpp/ (sources, build/bin, venv)

    peers.environments.quantize("auto-round", folder_of_model, tokens, bits=4, folder=result, iterations=200)

A peer's file says in INSTALL how its environment is made; every error here about a missing one repeats it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lib import files, folders, machine, peers

TIMEOUT = 4 * 3600  # seconds
_TAIL = 30  # lines of a failed script's output that the error shows
_ROOM = 1 << 30  # bytes of disk for the result and the peer's own files
_OURS = "thimble_"  # begins the model types of `lib.architectures`
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True)
class Result:
    """The result of a peer and its cost.

    group_size: None where the peer's formats fix their own. folder: plain checkpoint. seconds: quantizing alone,
    without imports, loading and saving. peak_bytes: highest resident memory meanwhile. packed_bytes: weight files of
    the peer's own save, None where it has none. dtype: of the plain checkpoint. options: all that were in force.
    facts: values that only this peer reports.
    """

    name: str
    version: str
    bits: int
    group_size: int | None
    folder: Path
    seconds: float | None
    peak_bytes: int | None
    packed_bytes: int | None
    dtype: str
    options: dict
    facts: dict = field(default_factory=dict)


def quantize(
    name: str, model_folder, tokens, *, bits: int, group_size: int = 64, python=None, folder, timeout=TIMEOUT, **options
) -> Result:
    """Let the peer `name` quantize the decoder linears of `model_folder`; write a plain checkpoint to `folder`.

    tokens: LongTensor [count, length], None for peers that calibrate nothing. python: the peer's interpreter, by
    default the one in `THIMBLE_PEERS`. timeout: seconds. options: the peer's own, `by_name(name).OPTIONS` lists them.

    `folder` is complete or absent and holds `peer.json` (the result's numbers) and a manifest. Raises ValueError for
    arguments that are not allowed, FileNotFoundError for what is missing, PermissionError or OSError for the folder,
    RuntimeError with the end of the output when the peer fails, TimeoutError when it takes too long.
    """
    peer = peers.by_name(name)
    options = _options(peer, options)
    _check(peer, Path(model_folder), tokens, bits=bits, options=options)
    folders.check(folder, _ROOM)
    group_size = None if getattr(peer, "OWN_GROUPS", False) else group_size
    python = interpreter(peer, python)
    version = installed(peer, python)
    origin = {"kind": "peer", "name": name, "version": version}
    with tempfile.TemporaryDirectory(prefix="thimble-peer-") as scratch, folders.replace(folder, **origin) as plain:
        arguments = {
            "model": str(Path(model_folder).resolve()),
            "tokens": _write_tokens(tokens, Path(scratch)) if tokens is not None else None,
            "bits": bits,
            "group_size": group_size,
            "options": options,
            "folder": str(plain.resolve()),
        }
        report = _script(peer, python, Path(scratch), arguments, timeout)
        numbers = {key: report.pop(key, None) for key in ("seconds", "peak_bytes", "packed_bytes", "dtype")}
        common = {"name": name, "version": version, "bits": bits, "group_size": group_size, "options": options}
        result = Result(folder=Path(folder), **common, **numbers, facts=report)
        _seal(plain, result)
    return result


def interpreter(peer, python=None) -> Path:
    """The peer's interpreter: `python`, or the one in the folder that `THIMBLE_PEERS` names.

    Raises FileNotFoundError with the commands that make it.
    """
    root = os.environ.get("THIMBLE_PEERS")
    if python is None and peer.INTERPRETER is None:
        return Path(sys.executable)
    if python is None and not root:
        raise FileNotFoundError(
            f"THIMBLE_PEERS is not set, so {peer.NAME} cannot be found; it names a folder with one environment a peer; "
            f"set it, and if {peer.NAME} is not there yet, run: {how(peer)}"
        )
    path = Path(python or Path(root).expanduser() / peer.INTERPRETER)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise FileNotFoundError(f"{path} is no interpreter; {peer.NAME} needs one of its own; run: {how(peer)}")
    return path.absolute()  # not resolved: the link itself makes Python use the environment


def installed(peer, python: Path) -> str:
    """The version of the peer that `python` imports; FileNotFoundError with the commands that install it if none."""
    needed = f"{peer.MODULE}, torch, transformers, safetensors"
    code = f"import {needed}, importlib.metadata as m; print(m.version({peer.PACKAGE!r}))"
    done = subprocess.run(
        [str(python), "-P", "-c", code], env=_environment(peer), capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        raise FileNotFoundError(
            f"{python} cannot import {peer.MODULE} ({_end(done.stderr, 1)}); {peer.NAME} must be installed there; "
            f"run: {how(peer)}"
        )
    if peer.VERSION is None:  # Thimble itself: the commit is the version
        return machine.commit()["commit"] or "uncommitted"
    version = done.stdout.split()[-1]
    if version != peer.VERSION:
        print(f"{peer.NAME} {version} is installed; its script was written for {peer.VERSION}")
    return version


def how(peer) -> str:
    """The shell commands that create the peer's environment, on one line."""
    return " && ".join(peer.INSTALL)


def _options(peer, given):
    """The peer's defaults with `given` in their place; ValueError for unknown names and wrong types."""
    for key, value in given.items():
        if key not in peer.OPTIONS:
            raise ValueError(f"{peer.NAME} has no option {key!r}; {files.choices(key, peer.OPTIONS)}")
        wanted = type(peer.OPTIONS[key])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ValueError(
                f"{key}={value!r} is {type(value).__name__}; {peer.NAME} takes {wanted.__name__}; change it."
            )
    return {**peer.OPTIONS, **given}


def _check(peer, model, tokens, *, bits, options):
    if bits not in peer.BITS:
        allowed = ", ".join(map(str, peer.BITS))
        raise ValueError(f"bits={bits!r} was given; {peer.NAME} has {allowed} bits; choose one of them.")
    if not (model / "config.json").is_file():
        raise FileNotFoundError(f"{model.name} has no config.json; a checkpoint folder is needed; give another one.")
    kind = str(json.loads((model / "config.json").read_text()).get("model_type", ""))
    if kind.startswith(_OURS) and peer.NAME != "thimble":
        raise ValueError(
            f"{model.name} is a {kind}, which {peer.NAME} does not know; architectures of this project are compressed "
            "by its own methods only; choose one of them, or a model of transformers."
        )
    if tokens is None and peer.NEEDS_TOKENS:
        raise ValueError(f"no tokens were given; {peer.NAME} calibrates on some; give a LongTensor [count, length].")
    if tokens is not None and (tokens.ndim != 2 or not tokens.numel() or str(tokens.dtype) != "torch.int64"):
        raise ValueError(
            f"tokens are {tokens.dtype} {list(tokens.shape)}; token ids are int64 [count, length]; "
            "make them with texts.tokens."
        )
    if hasattr(peer, "check"):
        peer.check(bits=bits, options=options)


def _write_tokens(tokens, scratch):
    from safetensors.torch import save_file  # loads torch, which asking about a peer does without

    save_file({"tokens": tokens.detach().cpu().contiguous()}, scratch / "tokens.safetensors")
    return str(scratch / "tokens.safetensors")


def _environment(peer):
    """The peer's environment variables: ours, this repository as the only extra path, no accelerator, no network."""
    return {**os.environ, **_QUIET, **peer.ENVIRONMENT, "PYTHONPATH": str(files.ROOT)}


def _script(peer, python, scratch, arguments, timeout):
    """Run the peer's script and return its report; the working folder is `scratch`, where peers leave their logs."""
    work, log, report = scratch / "work", scratch / "output.log", scratch / "report.json"
    work.mkdir()
    listed = scratch / "arguments.json"
    listed.write_text(json.dumps({**arguments, "work": str(work), "report": str(report)}))
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [str(python), "-m", peer.__name__, str(listed)],
            cwd=work, env=_environment(peer), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            process_group=0,  # so that the programs that it starts end with it
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"{peer.NAME} ran for {timeout} s; that is the limit given; raise timeout, or give fewer tokens.\n"
                f"{_end(log.read_text(errors='replace'))}"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code or not report.is_file():
        raise RuntimeError(
            f"{peer.NAME} ended with {code}; 0 and a report are expected; the end of its output may say why:\n"
            f"{_end(log.read_text(errors='replace'))}"
        )
    return json.loads(report.read_text())


def _end(text, lines=_TAIL):
    return "\n".join(text.strip().splitlines()[-lines:])


def _seal(plain, result):
    numbers = {**asdict(result), "folder": Path(result.folder).name}
    files.write_text(plain / "peer.json", json.dumps(numbers, indent=1))
