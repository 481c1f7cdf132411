"""What was done: one line of JSON a result, so that a run can be killed at any moment and goes on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from styleapp.batch.plan import JOURNAL, Job, is_file, output_key
from styleapp.errors import ImageError, OptionError
from styleapp.gallery import styles_folder
from styleapp.options import Options

__all__ = ["JOURNAL", "Journal", "Summary", "journal_of", "read_journal", "settings_hash", "style_hash", "summarize"]


@dataclass(frozen=True)
class Summary:
    """What a journal says: results, failures with their errors, and what a kill left unfinished.

    Attributes:
        done: number of results.
        seconds: that they took together.
        failed: error by output.
        unfinished: outputs that were begun.
    """

    done: int
    seconds: float
    failed: dict[str, str]
    unfinished: list[str]


class Journal:
    """Lines of JSON beside the results: a job's result is about to be written, is done, or the job failed.

    A record holds the input and its hash, style, hash of the settings, the output, as it was given and from the
    journal's folder, and seconds or the error. Lines that a kill cut off are ignored. Use as a context manager; two
    runs cannot hold one journal.

    Raises:
        OptionError: if another process is at work on this output, or the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.path = journal_of(folder)
        self.settings = settings
        self.records: dict[str, dict[str, Any]] = {}
        self.ours: set[str] = set()
        self._file: TextIO | None = None

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise OptionError(f"{self.path.parent}: cannot be written ({error.strerror})") from None
        if not _lock(self._file):
            self._file.close()
            raise OptionError(f"{self.path.parent}: another styleapp is at work on this output")
        for record in _lines(self.path):
            self._remember(record)
        self._file.write("\n")  # the last line may have been cut off
        if self.path.name == JOURNAL:
            for leftover in self.path.parent.rglob(".styleapp-*"):
                if re.fullmatch(r"\.styleapp-[0-9a-f]{12}\.\w+", leftover.name):
                    leftover.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def known(self, job: Job) -> str | None:
        """The hash of the photo that a result which is still there was made of with these settings, or None."""
        record = self.records.get(output_key(job.target))
        if (
            record is not None
            and "seconds" in record
            and record.get("settings") == self.settings
            and record.get("style") == job.style
            and record.get("style_hash") == style_hash(job.style)
            and job.target.is_file()
        ):
            return str(record["hash"])
        return None

    def failed(self, job: Job) -> bool:
        """Whether it failed the last time."""
        return "error" in self.records.get(output_key(job.target), {})

    def may_write(self, job: Job) -> bool:
        """Whether nothing is at the target, or something that we have written."""
        return output_key(job.target) in self.ours or not job.target.exists()

    def start(self, job: Job) -> None:
        """Note that the result is about to be written: what a kill leaves there is ours to replace."""
        self._add(job, "", {"started": True})

    def write(self, job: Job, digest: str, *, seconds: float = 0.0, error: str = "") -> None:
        """Note what became of a job."""
        self._add(job, digest, {"error": error} if error else {"seconds": round(seconds, 4)})

    def _add(self, job: Job, digest: str, outcome: dict[str, Any]) -> None:
        record = {
            "input": str(job.photo),
            "hash": digest,
            "style": job.style,
            "style_hash": style_hash(job.style),
            "settings": self.settings,
            "output": str(job.target),
            **self._place(job.target),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            **outcome,
        }
        assert self._file is not None
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._remember(record)

    def _place(self, target: Path) -> dict[str, str]:
        """Where the output is from the journal's folder, which may be moved, or be looked at from another one."""
        if self.path.name != JOURNAL:  # it is not beside the results
            return {}
        try:
            return {"place": Path(os.path.relpath(target, self.path.parent)).as_posix()}
        except ValueError:  # on another drive
            return {}

    def _remember(self, record: dict[str, Any]) -> None:
        key = _key(record)
        self.records[key] = record
        if "error" not in record:  # once written by us it is ours to replace, whatever fails later
            self.ours.add(key)


def journal_of(folder: Path) -> Path:
    """Where the journal of an output folder is: in it; for a store, which cannot append, in the current folder."""
    if isinstance(folder, Path):
        return folder / JOURNAL
    return Path(f".styleapp-journal-{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}.jsonl")


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The last record of each output, by :func:`styleapp.batch.plan.output_key`.

    Raises:
        ImageError: if it cannot be read, or is another file than a journal. (One may have no record: of a run that was
            killed while it wrote the first.)
    """
    found = {_key(record): record for record in _lines(path)}
    if not found and not path.name.startswith(Path(JOURNAL).stem):
        raise ImageError(f"{path}: is not the journal of a run ({JOURNAL} in the folder of its results)")
    return found


def _key(record: Mapping[str, Any]) -> str:
    """Of the output of a record; one in a store is a name, not a path."""
    return record["output"] if "://" in record["output"] else output_key(Path(record["output"]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The records in order, outputs as they are seen from here. Lines that were cut off are ignored.

    Raises:
        ImageError: if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    for line in text.splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("output"), str):
                if "place" in record:
                    record["output"] = os.path.normpath(path.parent / record["place"])
                yield record


def summarize(path: Path) -> Summary:
    """Of a journal, or of the folder that it lies in."""
    records = read_journal(path / JOURNAL if path.is_dir() else path)
    finished = [r for r in records.values() if "seconds" in r]
    return Summary(
        len(finished),
        sum(float(r["seconds"]) for r in finished),
        {r["output"]: str(r["error"]) for r in records.values() if "error" in r},
        [r["output"] for r in records.values() if "seconds" not in r and "error" not in r],
    )


def _lock(file: TextIO) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def style_hash(style: str) -> str:
    """Of the file of a painting, or of a style that was saved; "" for a built-in one, or a file that is not there."""
    path = Path(style) if is_file(style) else styles_folder() / f"{style}.safetensors"
    try:
        found = path.stat()
        return _digest(path, found.st_mtime_ns, found.st_size)
    except OSError:
        return ""


@functools.cache
def _digest(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def settings_hash(options: Options, precision: str, quality: int, encoder: str) -> str:
    """What a result depends on besides photo and style."""
    said = {k: v for k, v in asdict(options).items() if k not in ("tile", "max_memory")}
    text = json.dumps([said, precision, quality, encoder], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
