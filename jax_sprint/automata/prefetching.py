"""Automata of coming batches, fetched and packed while the current one is trained on.

Only the automata's data are known here: where they come from is up to an object with a method
`get_automata_for_batch(tags)`, such as a `jax_sprint.SprintInstancePool`.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Protocol, TypeVar

from jax_sprint.automata._automata import Automata
from jax_sprint.automata.growing import GrowingSizes

__all__ = ["AutomataSupplier", "prefetch"]

logger = logging.getLogger("jax_sprint")

_Batch = TypeVar("_Batch")
# How long to wait, after the consumer stopped, for an iterable or a supplier that does not return.
_PATIENCE = 30.0


class AutomataSupplier(Protocol):
    """Where automata come from."""

    def get_automata_for_batch(self, tags: Any) -> tuple[Any, Any, Any]:
        """Gives edges, weights and start_end_states, as `Automata.from_edges` takes them.

        If it takes a keyword `cancelled`, a `threading.Event`, it should return soon, in whatever
        way, once that is set.

        A supplier may have a method `get_automata` as well, with the same arguments, that gives the
        automata one by one, as `GrowingSizes.pack_each` takes them: with such sizes it is asked in
        place of this one, and what is packed of a segment is remembered.
        """


def prefetch(
    batches: Iterable[_Batch],
    supplier: AutomataSupplier,
    *,
    depth: int = 2,
    tags: Callable[[_Batch], Any] | None = None,
    num_labels: int | None = None,
    pad_to: Mapping[str, int] | Automata | GrowingSizes | None = None,
) -> Generator[tuple[_Batch, Automata], None, None]:
    """Iterates over batches, each together with its automata, packed in the background.

    One thread takes batches from `batches`, fetches their automata and packs them, in order, up to
    `depth` ahead of the consumer.  It starts with the first `next` and ends with the iterator: when
    the batches do, when one of them fails, when the iterator is closed, or dropped as by a `break`
    out of a loop.  An unfinished request is then cancelled.  Contexts of the consumer's thread,
    such as `jax.default_device`, do not hold in that thread.

    Args:
        batches: what to iterate over; it is iterated in the background thread.
        supplier: usually a `SprintInstancePool`.  It is not closed here.
        depth: how many batches, at least 1, are taken from `batches` before the consumer asks for
            them.
        tags: gets the segment names out of a batch, in any form that the supplier takes; None:
            a mapping's item "tags", and anything else is the names itself.
        num_labels: as for `Automata.from_edges`.
        pad_to: as for `Automata.from_edges`; or a `GrowingSizes`, which keeps the shapes of
            bucketed batches few where their sizes are not known beforehand.

    Yields:
        The batch, as it came, and its automata.

    Raises:
        ValueError: an argument is not usable; at once.  Everything else is raised where the batch
            that it concerns would have been yielded, after all batches before it; then the
            iteration is over.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth must be an int of at least 1, got {depth!r}")
    fetch = getattr(supplier, "get_automata_for_batch", None)
    if not callable(fetch):
        raise ValueError(
            "supplier must have a method get_automata_for_batch, as a SprintInstancePool has, got "
            f"{type(supplier).__name__}; the batches come first"
        )
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches must be iterable, got {type(batches).__name__}")
    if tags is not None and not callable(tags):
        raise ValueError(f"tags must be a function of a batch or None, got {tags!r}")
    names = _tags_of if tags is None else tags

    fetch_each = getattr(supplier, "get_automata", None)

    def pack(batch: _Batch, cancelled: threading.Event) -> Automata:
        def ask(function: Callable[..., Any]) -> Any:
            more = {"cancelled": cancelled} if _takes(function, "cancelled") else {}
            return function(names(batch), **more)

        if isinstance(pad_to, GrowingSizes):
            kind = pad_to.kind(batch)
            if callable(fetch_each):
                return pad_to.pack_each(kind, ask(fetch_each), num_labels=num_labels)
            return pad_to.pack(kind, *ask(fetch), num_labels=num_labels)
        fetched = ask(fetch)
        return Automata.from_edges(*fetched, num_labels=num_labels, pad_to=pad_to)

    return _iterate(_Worker(batches, pack, depth))


def _iterate(worker: _Worker) -> Generator[tuple[Any, Automata], None, None]:
    # The thread is not started before somebody iterates: a generator that was never started is
    # never closed either.
    worker.start()
    try:
        while (outcome := worker.get()) is not None:
            batch, automata, error = outcome
            del outcome
            if error is not None:
                raise error
            yield batch, automata
            # Not kept while the next one is awaited.
            del batch, automata
    finally:
        worker.stop()


class _Worker:
    """The thread, and the queue in which it leaves what it made."""

    def __init__(
        self,
        batches: Iterable[Any],
        pack: Callable[[Any, threading.Event], Automata],
        depth: int,
    ) -> None:
        self._batches = batches
        self._pack = pack
        self._room = threading.Semaphore(depth)
        self._made: queue.SimpleQueue[tuple[Any, Any, BaseException | None] | None]
        self._made = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="jax_sprint prefetch of automata", daemon=True
        )

    def start(self) -> None:
        # At the interpreter's end, nobody closes iterators, but a thread must not be inside jax.
        atexit.register(self.stop)
        self._thread.start()

    def get(self) -> tuple[Any, Any, BaseException | None] | None:
        """What comes next: batch, automata and error; None at the end."""
        outcome = self._made.get()
        # The consumer has it: there is room for another one.
        self._room.release()
        return outcome

    def stop(self) -> None:
        if self._stopping.is_set():
            # A generator may be closed so late that not even `threading` is left.
            return
        self._stopping.set()
        self._room.release()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                logger.warning("%s does not end", self._thread.name)
        atexit.unregister(self.stop)

    def _run(self) -> None:
        batch: Any = None
        try:
            batches = iter(self._batches)
            while self._take_room():
                batch = None
                try:
                    batch = next(batches)
                except StopIteration:
                    self._made.put(None)
                    return
                automata = self._pack(batch, self._stopping)
                self._made.put((batch, automata, None))
                del automata
        except BaseException as error:
            # Also a SystemExit or KeyboardInterrupt of the iterable: it is the consumer's.
            self._made.put((batch, None, error))
        finally:
            del batch

    def _take_room(self) -> bool:
        self._room.acquire()
        return not self._stopping.is_set()


def _tags_of(batch: Any) -> Any:
    if not isinstance(batch, Mapping):
        return batch
    if "tags" not in batch:
        raise ValueError(
            f"the batch has no item 'tags', only {sorted(map(str, batch))}; pass tags=, a function "
            "that gets the segment names out of a batch"
        )
    return batch["tags"]


def _takes(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
