"""One configuration of the benchmark (`50_benchmark`): check it, compress the model, save it, evaluate it."""

from pathlib import Path

from torch import nn

from lib import files, folders, quantizers, runtime
from lib import tasks as all_tasks
from lib.decoding import draft_controller, lookup, sessions
from lib.evaluation import comparison, run
from lib.export import compressed_tensors, plain
from lib.metrics import count, decoding_speed, guards, speed
from lib.models import blocks as blocks_of
from lib.pruners import depth, importance
from lib.quantized.grid import BITS
from lib.sources import prompts
from lib.tasks import asked as asked_tasks

METHODS = ("none", "depth", *quantizers.METHODS)
ENGINES = ("transformers", "packed")
DECODING = ("plain", "lookup")
asked = asked_tasks.read


def check(
    *,
    method: str,
    bits: int,
    group_size: int,
    blocks: int,
    engine: str = "transformers",
    decoding: str = "plain",
    tasks: str = "",
) -> None:
    """Raise ValueError, before any work, for a configuration that does not exist or contradicts itself."""
    for name, value, known in (("engine", engine, ENGINES), ("decoding", decoding, DECODING)):
        if value not in known:
            raise ValueError(f"{name}={value!r}; {files.choices(value, known)}")
    asked(tasks)
    if method not in METHODS:
        raise ValueError(f"method={method!r}; {files.choices(method, METHODS)}")
    quantized = method in quantizers.METHODS
    if quantized and bits not in BITS:
        raise ValueError(f"bits={bits} for method={method!r}; grids have 2 to 8 bits; choose one of {list(BITS)}.")
    if quantized and blocks:
        raise ValueError(f"blocks={blocks} for method={method!r}, which removes none; set blocks=0 or method='depth'.")
    if method == "depth" and blocks < 1:
        raise ValueError(f"blocks={blocks} for method='depth'; it removes 1 or more; set blocks, or method='none'.")
    if method == "none" and blocks:
        raise ValueError(f"blocks={blocks} for method='none', which changes nothing; set blocks=0 or method='depth'.")
    if not quantized and bits != 16:
        raise ValueError(f"bits={bits} for method={method!r}, which keeps 16-bit weights; set bits=16 or a quantizer.")


def compress_(
    model: nn.Module,
    calibration,
    *,
    method: str,
    bits: int,
    group_size: int,
    blocks: int,
    score: str = "block_influence",
) -> nn.Module:
    """Compress `model` in place by one of `METHODS`; returns it. `score` orders the blocks for `depth`."""
    check(method=method, bits=bits, group_size=group_size, blocks=blocks)
    if method == "depth":
        removed = depth.lowest(importance.score(score, model, calibration), blocks)
        print(_said(removed, blocks_of.config(model)))
        depth.drop_blocks_(model, removed)
    elif method != "none":
        quantizers.by_name(method)(model, calibration, bits=bits, group_size=group_size)
    return model


def _said(removed: list[int], config) -> str:
    """Which blocks go, and of which kind where a model has blocks of several (local and global attention)."""
    kinds = getattr(config, "layer_types", None) or []
    named = [f"{block} ({kinds[block]})" if len(set(kinds)) > 1 else str(block) for block in removed]
    return f"blocks {', '.join(named)} of {config.num_hidden_layers} go"


def folder(*, method: str, bits: int, group_size: int, blocks: int, **parameters) -> Path:
    """The artifact's place under `checkpoints/`, by a name that tells the configuration; looked at before the work.

    parameters: further parameters; `model`, `text` and `calibration_windows` become part of the name.
    Raises OSError or ValueError where nothing can be written, or what the project did not write would be replaced.
    """
    source, text = (Path(str(parameters.get(key, key))).name for key in ("model", "text"))
    if method in quantizers.METHODS:
        how = f"{method}-{bits}bit-g{group_size}-{text}{parameters.get('calibration_windows')}"
    elif method == "depth":
        how = f"depth-minus{blocks}-{text}{parameters.get('calibration_windows')}"
    else:
        how = "original"
    found = files.checkpoints() / f"{source}-{how}"
    folders.check(found)
    return found


def save(model: nn.Module, tokenizer, /, *, method: str, **parameters) -> Path:
    """Save the artifact in `folder(method=method, **parameters)`, which is returned."""
    quantized = method in quantizers.METHODS
    return (compressed_tensors if quantized else plain).save(model, tokenizer, folder(method=method, **parameters))


def ready_(model: nn.Module, engine: str):
    """What `speed` and `decoding` run: the model, or for engine "packed" a session of it, packed in place."""
    if engine == "transformers":
        return model
    return runtime.Session(runtime.pack_(model))


def shares(measured: dict, running, top, context: int) -> dict:
    """MBU of decoding and MFU of prefill of `running`, where the machine's peaks `top` (`peaks.measure`) are known.

    Packed models multiply 8-bit integers, for which no peak is measured: they have no MFU.
    """
    if hasattr(running, "weights"):
        found = {"mbu": speed.mbu(measured["tpot"], running.weights.bytes_per_token(context), top.bandwidth)}
    else:
        found = {"mbu": speed.mbu(measured["tpot"], count.bytes_per_token(running, context), top.bandwidth)}
        work = count.flops_per_token(running, context // 2)
        found["mfu"] = speed.mfu(measured["prefill"], work, top.of(running.dtype))
    return {metric: value for metric, value in found.items() if value is not None}


def lookup_gains(running, tokenizer, *, count: int = 2, new_tokens: int = 32, seed: int = 0) -> dict:
    """{(kind of prompt, metric): Score}: tokens a step and speed-up of guarded prompt lookup over plain decoding.

    Raises RuntimeError if an answer changes in the packed engine, whose logits don't depend on drafts.
    """
    session = running if hasattr(running, "rewind") else sessions.ModelSession(running)
    drafter, found = lookup.Lookup(max_ngram=3, draft_length=8), {}
    costs = draft_controller.step_costs(session, drafter, lengths=(0, 1, 4, 8))
    systems = {
        "plain": decoding_speed.System(session),
        "lookup": decoding_speed.System(session, drafter, draft_controller.DraftController(costs)),
    }
    for kind in prompts.KINDS:
        given = prompts.tokens(prompts.load(kind, count, characters=1200, seed=seed), tokenizer)
        said = decoding_speed.measure(systems, given, new_tokens=new_tokens, eos=tokenizer.eos_token_id, seed=seed)
        if session is running and decoding_speed.identical(said["lookup"], said["plain"]).value < 1:
            raise RuntimeError(f"lookup changed an answer to a {kind} prompt; the packed engine must not; report this.")
        found[kind, "tokens_per_step"] = decoding_speed.tokens_per_step(said["lookup"])
        found[kind, "speed_up"] = decoding_speed.speed_up(said["lookup"], said["plain"])
    return found


def evaluate(model: nn.Module, tasks: str, *, seed: int = 0, calibration=None, allow_execution: bool = False) -> dict:
    """{task: evaluation} of the samples that `asked` reads from `tasks`, as plain text.

    calibration: the `Text` that the model was calibrated on, in which no sample may stand; None where there is none.
    Everything is loaded, and so checked, before the first sample is asked. Raises PermissionError for tasks that run
    what a model wrote unless allow_execution, ValueError for a sample that the calibration text holds.
    """
    options = {"seed": seed, "allow_execution": allow_execution}
    loaded = [all_tasks.load(name, count=count, **options) for name, count in asked(tasks).items()]
    for task in loaded if calibration is not None else ():
        shown = {sample.id: comparison.prompt(sample) for sample in task.samples}
        guards.refuse_contaminated(shown, calibration.documents, name=f"{calibration.name}/{calibration.split}")
    return {task.name: run.evaluate(model, task) for task in loaded}
