"""Automata in a file, for several processes of one host.

The file is an SQLite database with a write-ahead log.  Arrays are stored as their bytes, little
endian, and every row has a checksum of itself: a row that does not fit its checksum is dropped and
counts as not there.  If SQLite finds the file damaged it is set aside as ``FILE.damaged`` and a new
one begun, unless another process has it open; then this process does without.  ``FILE.lock`` tells
who has it open.

The write-ahead log needs a local file system: processes of several hosts need a file each.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jax_sprint.bridge.batches import Automaton
from jax_sprint.bridge.replies import parse_automaton
from jax_sprint.sprint_side.jax_sprint_control.wire import FormatError

__all__ = ["AutomataStore"]

logger = logging.getLogger("jax_sprint")

_APPLICATION = 0x6A537041
_VERSION = 1
_MAGIC = b"SQLite format 3\0"
# How many fingerprints' automata are kept: those used last.
_MAX_FINGERPRINTS = 32
_BUSY_SECONDS = 10.0
_MAX_VARIABLES = 500
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_TABLES = """
CREATE TABLE IF NOT EXISTS fingerprints (
    id INTEGER PRIMARY KEY, digest TEXT UNIQUE NOT NULL, used REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS automata (
    fingerprint INTEGER NOT NULL, segment TEXT NOT NULL, states INTEGER NOT NULL,
    edges BLOB NOT NULL, weights BLOB NOT NULL, checksum BLOB NOT NULL,
    UNIQUE (fingerprint, segment)
);
"""


class AutomataStore:
    """One such file, opened.  For one thread at a time.

    No method raises for what is wrong with the file, apart from opening it: a warning is logged
    and the automata count as not there.

    Args:
        path: the file; made if it is missing, and its directory too.

    Attributes:
        faults: how many rows, or whole files, were dropped because they were damaged, or could not
            be read or written.

    Raises:
        ValueError: there is a file of that name which is something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.faults = 0
        self._database: sqlite3.Connection | None = None
        self._lock_fd: int | None = None
        self._ids: dict[str, int] = {}
        self._check_that_it_is_ours()
        with self._guarded("open"):
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._lock_fd = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT, 0o666)
            # Whoever starts afresh holds it exclusively, for a moment.
            _lock_shared(self._lock_fd)
            self._open()

    def get(self, fingerprint: str, segments: Sequence[str]) -> dict[str, Automaton]:
        """Those automata of these segments that are there, and undamaged."""
        found: dict[str, Automaton] = {}
        damaged: list[str] = []
        with self._guarded("read"):
            number = self._number(fingerprint)
            if number is None or self._database is None:
                return found
            for first in range(0, len(segments), _MAX_VARIABLES):
                some = segments[first : first + _MAX_VARIABLES]
                marks = ",".join("?" * len(some))
                for segment, *row in self._database.execute(
                    "SELECT segment, states, edges, weights, checksum FROM automata "
                    f"WHERE fingerprint = ? AND segment IN ({marks})",
                    [number, *some],
                ):
                    automaton = _unpack(fingerprint, segment, row)
                    if automaton is None:
                        damaged.append(segment)
                    else:
                        found[segment] = automaton
        if damaged:
            self.faults += len(damaged)
            logger.warning(
                "%s: the automata of %d segments are damaged, the first is %r; Sprint is asked "
                "again",
                self.path,
                len(damaged),
                damaged[0],
            )
        return found

    def put(self, fingerprint: str, automata: Iterable[tuple[str, Automaton]]) -> None:
        """Stores automata, replacing those of the same segments; all of them or none."""
        rows = [(segment, *_pack(fingerprint, segment, each)) for segment, each in automata]
        with self._guarded("write"):
            if self._database is None or not rows:
                return
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._database.execute(
                    "INSERT INTO fingerprints (digest, used) VALUES (?, ?) "
                    "ON CONFLICT (digest) DO UPDATE SET used = excluded.used",
                    (fingerprint, time.time()),
                )
                self._ids.pop(fingerprint, None)
                number = self._number(fingerprint)
                self._database.executemany(
                    "INSERT OR REPLACE INTO automata "
                    "(fingerprint, segment, states, edges, weights, checksum) "
                    f"VALUES ({number}, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._forget_old_ones()

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            os.close(fd)

    # ------------------------------------------------------------------------------------ inside

    def _check_that_it_is_ours(self) -> None:
        """A mistyped name must not cost somebody's corpus."""
        try:
            with open(self.path, "rb") as file:
                head = file.read(len(_MAGIC))
        except IsADirectoryError:
            raise ValueError(
                f"automata_cache {self.path!r} is a directory; name a file in it"
            ) from None
        except OSError:
            return
        if head and head != _MAGIC and not os.path.exists(self.path + ".lock"):
            raise ValueError(
                f"automata_cache {self.path!r} exists and is no cache of automata; name another "
                "file, or remove this one"
            )

    def _open(self) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                return self._open_once()
            except sqlite3.OperationalError as error:
                # Switching to WAL does not wait for other processes, whatever `timeout` says.
                if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _open_once(self) -> None:
        database = sqlite3.connect(
            self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            # In one transaction: another process may be making the tables just now.
            database.execute("BEGIN")
            application = database.execute("PRAGMA application_id").fetchone()[0]
            version = database.execute("PRAGMA user_version").fetchone()[0]
            empty = not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            database.execute("COMMIT")
            if not empty and application != _APPLICATION:
                raise ValueError(
                    f"automata_cache {self.path!r} is an SQLite database of another program; name "
                    "another file"
                )
            if not empty and version != _VERSION:
                raise ValueError(
                    f"automata_cache {self.path!r} was written by another version of jax_sprint; "
                    "remove it, or name another file"
                )
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with database:
                database.execute("BEGIN IMMEDIATE")
                for statement in _TABLES.split(";"):
                    database.execute(statement)
                database.execute(f"PRAGMA application_id = {_APPLICATION}")
                database.execute(f"PRAGMA user_version = {_VERSION}")
        except BaseException:
            database.close()
            raise
        self._ids.clear()
        self._database = database

    @contextlib.contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.faults += 1
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in _BUSY and what != "open":
                logger.warning("%s is busy, cannot %s it now: %s", self.path, what, error)
            elif code in _DAMAGE:
                self._start_afresh(error)
            else:
                logger.warning("cannot %s %s: %s; doing without it", what, self.path, error)
                self.close()
        except ValueError:
            self.close()
            raise

    def _start_afresh(self, error: Exception) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        assert self._lock_fd is not None
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            logger.warning(
                "%s is damaged (%s), and another process has it open; doing without it",
                self.path,
                error,
            )
            self.close()
            return
        try:
            for ending in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.path + ending)
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, self.path + ".damaged")
            self._open()
            fcntl.flock(self._lock_fd, fcntl.LOCK_SH)
            logger.warning(
                "%s is damaged (%s): set aside as %s.damaged, and begun anew",
                self.path,
                error,
                self.path,
            )
        except (sqlite3.Error, OSError) as again:
            logger.warning("%s is damaged and cannot be begun anew: %s", self.path, again)
            self.close()

    def _number(self, fingerprint: str) -> int | None:
        """The key of a fingerprint; None if nothing is stored for it."""
        if fingerprint not in self._ids and self._database is not None:
            row = self._database.execute(
                "SELECT id FROM fingerprints WHERE digest = ?", (fingerprint,)
            ).fetchone()
            if row is None:
                return None
            self._ids[fingerprint] = row[0]
        return self._ids.get(fingerprint)

    def _forget_old_ones(self) -> None:
        assert self._database is not None
        old = self._database.execute(
            "SELECT id FROM fingerprints ORDER BY used DESC LIMIT -1 OFFSET ?",
            (_MAX_FINGERPRINTS,),
        ).fetchall()
        for row in old:
            self._database.execute("DELETE FROM automata WHERE fingerprint = ?", row)
            self._database.execute("DELETE FROM fingerprints WHERE id = ?", row)


def _lock_shared(fd: int) -> None:
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _pack(fingerprint: str, segment: str, automaton: Automaton) -> tuple[int, bytes, bytes, bytes]:
    states, _, edges, weights = automaton
    edge_bytes = np.ascontiguousarray(edges, "<u4").tobytes()
    weight_bytes = np.ascontiguousarray(weights, "<f4").tobytes()
    checksum = _checksum(fingerprint, segment, states, edge_bytes, weight_bytes)
    return states, edge_bytes, weight_bytes, checksum


def _unpack(fingerprint: str, segment: str, row: Sequence) -> Automaton | None:
    """The automaton of a row, or None if anything about it is wrong."""
    states, edges, weights, checksum = row
    if (
        not isinstance(states, int)
        or not all(isinstance(part, bytes) for part in (edges, weights, checksum))
        or _checksum(fingerprint, segment, states, edges, weights) != checksum
        or len(edges) != 3 * len(weights)
        or len(weights) % 4
    ):
        return None
    count = len(weights) // 4
    try:
        return parse_automaton(
            (
                states,
                count,
                np.frombuffer(edges, "<u4").astype(np.uint32, copy=False),
                np.frombuffer(weights, "<f4").astype(np.float32, copy=False),
            )
        )
    except FormatError:
        return None


def _checksum(fingerprint: str, segment: str, states: int, edges: bytes, weights: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    head = f"{fingerprint}\0{segment}\0{states}\0<u4[3,{len(edges) // 12}]\0<f4\0"
    for part in (head.encode("utf-8", "surrogateescape"), edges, weights):
        digest.update(part)
    return digest.digest()
