"""Answers on disk, one line per sample: answered samples are not asked again, a killed evaluation resumes.

Each folder holds one evaluation, identified by the engine, the hash of the task's requests and the decoding settings;
each process appends to its own file there. A line is on disk before its sample counts as finished, and a last line
left incomplete by a kill is dropped.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

from lib import files, tokenization
from lib.tasks.task import Outcome, Sample

Answers = list[Outcome | str]


def task_hash(name: str, samples: list[Sample]) -> str:
    """SHA-256 of a task's name and of the ids and requests of its samples, in order."""
    digest = hashlib.sha256(tokenization.check(name, "the task's name").encode())
    for sample in samples:
        requests = [[type(each).__name__, *vars(each).values()] for each in sample.requests]
        digest.update(json.dumps([sample.id, requests], ensure_ascii=False).encode())
    return digest.hexdigest()


class Store:
    """The answers of one evaluation in `folder` (None: THIMBLE_ANSWERS, else data/cache/evaluation); `part` names this
    process's file.

    key: what determines the answers, by name: model, task, settings; it is stored beside them.
    """

    def __init__(self, key: dict[str, str], *, folder: Path | str | None = None, part: str = "0"):
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        folder = folder or os.environ.get("THIMBLE_ANSWERS") or files.cache() / "evaluation"
        self.folder = Path(folder).expanduser() / digest[:20]
        self.path, self._file = self.folder / f"part-{part}.jsonl", None
        files.check_writable(self.path, 1 << 20)
        if not (self.folder / "key.json").exists():
            files.write_text(self.folder / "key.json", json.dumps(key, indent=1))

    def load(self) -> dict[str, Answers]:
        """Answers by sample id, of all parts.

        Raises ValueError, naming file and line, for a line that is damaged though others follow it.
        """
        found = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            lines = path.read_bytes().split(b"\n")
            for number, line in enumerate(lines[:-1], 1):  # after the last line end: an incomplete line, or nothing
                try:
                    kept = json.loads(line)
                    found[kept["id"]] = [_answer(each) for each in kept["answers"]]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"{path}, line {number} is no answer ({error}); whole lines of JSON are allowed; "
                        "delete the file to ask its samples again."
                    ) from error
        return found

    def append(self, sample: str, answers: Answers) -> None:
        """Write the answers of a sample; on return they are on the disk."""
        if self._file is None:
            self._file = _open(self.path)
        line = {
            "id": sample,
            "answers": [each if isinstance(each, str) else list(vars(each).values()) for each in answers],
        }
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process write this part."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def _answer(kept) -> Outcome | str:
    return kept if isinstance(kept, str) else Outcome(*kept)


def _open(path: Path):
    """The file of a part, locked, without an incomplete last line.

    Raises BlockingIOError while another process writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "ab+")  # noqa: SIM115 - it stays open, and locked, until `close`
    with contextlib.suppress(ImportError):  # no locks on Windows
        import fcntl  # not on Windows

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BlockingIOError(
                f"another process evaluates the same model on the same task and writes {path.name}; one at a time is "
                "allowed for each part; wait for it, or share the samples by `part`."
            ) from None
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file
