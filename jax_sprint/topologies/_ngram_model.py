"""n-gram models over label sequences, as deterministic automata without back-off arcs.

The estimation is vectorised over the whole text: the contexts of length k are numbered by one
`np.unique` over pairs (context of length k - 1, the label before it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jax_sprint.topologies._common import Ragged, concatenate

__all__ = ["NgramModel", "estimate", "reachable"]

# Smoothed models are computed as a dense table; this many entries are 3 GB of float64 and masks.
_MAX_TABLE = 200_000_000


@dataclass(frozen=True)
class NgramModel:
    """A label model as a deterministic automaton; state 0 is the start.

    The probabilities of the arcs that leave a state and of ending there sum to 1.

    Attributes:
        source: `[A] int64`, state that each arc leaves.
        label: `[A] int64`.
        target: `[A] int64`, the longest kept suffix of history and label.
        cost: `[A] float64`, -log P(label | history).
        final: `[S] float64`, -log P(end | history); +inf where a sequence cannot end.
    """

    source: np.ndarray
    label: np.ndarray
    target: np.ndarray
    cost: np.ndarray
    final: np.ndarray


@dataclass(frozen=True)
class _Contexts:
    """The kept histories; number 0 is the empty one.

    Attributes:
        level: `[C] int64`, number of labels (the begin mark counts as one).
        suffix: `[C] int64`, the history without its oldest label; that of 0 is 0.
        start: the history at the beginning of a sequence.
        keys: sorted `[K] int64`, history * V + label for every pair that is itself a history.
        extended: `[K] int64`, that history.
        history, event, count: `[N] int64`, the counted continuations; event V is the end.
    """

    level: np.ndarray
    suffix: np.ndarray
    start: int
    keys: np.ndarray
    extended: np.ndarray
    history: np.ndarray
    event: np.ndarray
    count: np.ndarray


def estimate(
    sequences: Ragged,
    *,
    order: int,
    vocabulary: np.ndarray,
    smoothing: str,
    discount: float,
    min_count: int,
    max_histories: int | None,
    prune: float,
    allow_empty: bool,
) -> NgramModel:
    """Counts, smooths, prunes and normalises.

    Args:
        sequences: the text.
        order: n; histories have up to n - 1 labels, the begin mark included.
        vocabulary: `[V] int64`, sorted, unique; holds every label of the text.
        smoothing: ``"witten-bell"``, ``"absolute"`` or ``"none"``.
        discount: what absolute discounting takes from each count, in (0, 1).
        min_count: histories seen less often are not kept.
        max_histories: raises `min_count` until at most that many are kept; None: no limit.
        prune: unseen continuations below this probability are dropped, and the rest renormalised.
        allow_empty: whether the empty sequence keeps its probability; otherwise it gets none.

    Returns:
        The model, with the states that the start reaches.

    Raises:
        ValueError: a smoothed table that would be too large.
    """
    size = vocabulary.size
    words = np.searchsorted(vocabulary, sequences.flat)
    contexts = _collect(
        words, sequences.lengths, size, order=order, min_count=min_count, limit=max_histories
    )
    if smoothing == "none":
        history, event, probability = contexts.history, contexts.event, contexts.count.astype(float)
    else:
        history, event, probability = _smooth(contexts, size, smoothing, discount, prune)

    # A start state of its own: a copy of the start's history that no arc enters.
    at_start = history == contexts.start
    if not allow_empty:
        at_start &= event < size
    history = np.concatenate([np.zeros(int(at_start.sum()), np.int64), history + 1])
    event = np.concatenate([event[at_start], event])
    probability = np.concatenate([probability[at_start], probability])
    n_states = contexts.level.size + 1
    total = np.bincount(history, probability, minlength=n_states)
    cost = np.log(total[history]) - np.log(probability)

    final = np.full(n_states, np.inf)
    ending = event == size
    final[history[ending]] = cost[ending]
    source, label, cost = history[~ending], event[~ending], cost[~ending]
    known = np.where(source == 0, contexts.start, source - 1)
    target = _follow(contexts, known, label, size) + 1

    kept = reachable(source, target, np.zeros(1, np.int64), n_states)
    number = np.cumsum(kept) - 1
    arcs = kept[source]
    return NgramModel(
        number[source[arcs]],
        vocabulary[label[arcs]],
        number[target[arcs]],
        cost[arcs],
        final[kept],
    )


def _collect(
    words: np.ndarray,
    lengths: np.ndarray,
    size: int,
    *,
    order: int,
    min_count: int,
    limit: int | None,
) -> _Contexts:
    # One event per label and one per end of sequence.
    sizes = lengths + 1
    position = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    last = position == np.repeat(lengths, sizes)
    events = np.full(position.size, size, np.int64)
    events[~last] = words

    # Level by level: which history of k labels stands before each event, -1 for none.
    current = np.zeros(events.size, np.int64)
    levels = [current]
    suffixes, counts = [np.zeros(1, np.int64)], [np.asarray([events.size])]
    sample = [np.zeros(1, np.int64)]
    known = 1
    for k in range(1, order):
        at = np.flatnonzero((current >= 0) & (position >= k - 1))
        before = np.where(position[at] >= k, events[at - k], size)  # `size` marks the begin
        codes = current[at] * (size + 1) + before
        unique, index, inverse, count = np.unique(
            codes, return_index=True, return_inverse=True, return_counts=True
        )
        keep = count >= min_count
        number = np.where(keep, known + np.cumsum(keep) - 1, -1)
        current = np.full(events.size, -1, np.int64)
        current[at] = number[inverse.reshape(-1)]
        levels.append(current)
        suffixes.append(unique[keep] // (size + 1))
        counts.append(count[keep])
        sample.append(at[index[keep]])
        known += int(keep.sum())

    level = np.repeat(np.arange(len(suffixes)), [s.size for s in suffixes])
    suffix, count = np.concatenate(suffixes), np.concatenate(counts)
    first_seen = np.concatenate(sample)
    kept = np.ones(level.size, bool)
    if limit is not None and level.size > limit:
        # By a threshold on the count, so that with a history its prefix and suffixes stay too.
        kept = count > np.sort(count)[::-1][limit]
        kept[0] = True
    number = np.where(kept, np.cumsum(kept) - 1, -1)
    levels = [np.where(c >= 0, number[c], -1) for c in levels]
    level, suffix, first_seen = level[kept], number[suffix[kept]], first_seen[kept]

    # A history of k labels whose newest is w extends the history of k - 1 labels one event earlier.
    long = np.flatnonzero((level >= 1) & (position[first_seen] >= 1))
    here = first_seen[long]
    shorter = np.zeros(long.size, np.int64)
    for k in range(1, order):
        of_level = level[long] == k
        shorter[of_level] = levels[k - 1][here[of_level] - 1]
    keys = shorter * size + events[here - 1]
    by_key = np.argsort(keys)
    begins = np.flatnonzero((level == 1) & (position[first_seen] == 0))

    counted = []
    for current in levels:
        known_here = current >= 0
        codes = current[known_here] * (size + 1) + events[known_here]
        counted.append(np.unique(codes, return_counts=True))
    codes = concatenate([c for c, _ in counted])
    return _Contexts(
        level=level,
        suffix=suffix,
        start=int(begins[0]) if begins.size else 0,
        keys=keys[by_key],
        extended=long[by_key],
        history=codes // (size + 1),
        event=codes % (size + 1),
        count=concatenate([c for _, c in counted]),
    )


def _smooth(
    contexts: _Contexts, size: int, smoothing: str, discount: float, prune: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolates every history with its suffix, down to the uniform distribution."""
    n = contexts.level.size
    if n * (size + 1) > _MAX_TABLE:
        raise ValueError(
            f"{n} histories times {size} labels are too many for a smoothed model, which has an "
            "arc for each pair; raise `min_count`, set `max_histories`, lower `order`, or use "
            'smoothing="none", which has arcs for seen labels only'
        )
    # (counts - taken + share * P(suffix)) / (total + added)
    total = np.bincount(contexts.history, contexts.count, minlength=n)
    distinct = np.bincount(contexts.history, minlength=n).astype(float)
    if smoothing == "witten-bell":
        taken, share, norm = 0.0, distinct, total + distinct
    else:
        taken, share, norm = discount, discount * distinct, total
    table = np.zeros((n, size + 1))
    table[contexts.history, contexts.event] = contexts.count - taken
    seen = table > 0
    table[0] += share[0] / (size + 1)
    table[0] /= norm[0]
    for k in range(1, int(contexts.level.max()) + 1):
        rows = np.flatnonzero(contexts.level == k)
        table[rows] += share[rows, None] * table[contexts.suffix[rows]]
        table[rows] /= norm[rows, None]
    history, event = np.nonzero(seen | (table >= prune))
    return history, event, table[history, event]


def _follow(contexts: _Contexts, history: np.ndarray, label: np.ndarray, size: int) -> np.ndarray:
    """The longest kept suffix of each history followed by its label."""
    target = np.zeros(history.size, np.int64)
    if not contexts.keys.size:
        return target
    at, current = np.arange(history.size), history
    while at.size:
        wanted = current * size + label[at]
        place = np.minimum(np.searchsorted(contexts.keys, wanted), contexts.keys.size - 1)
        found = contexts.keys[place] == wanted
        target[at[found]] = contexts.extended[place[found]]
        more = ~found & (current > 0)
        at, current = at[more], contexts.suffix[current[more]]
    return target


def reachable(
    source: np.ndarray, target: np.ndarray, initial: np.ndarray, n_states: int
) -> np.ndarray:
    """`[n_states] bool`: which states some path from an initial state arrives at."""
    order = np.argsort(source, kind="stable")
    sorted_target = target[order]
    first = np.searchsorted(source[order], np.arange(n_states + 1))
    seen = np.zeros(n_states, bool)
    seen[initial] = True
    frontier = np.unique(initial)
    while frontier.size:
        width = first[frontier + 1] - first[frontier]
        offset = np.arange(int(width.sum())) - np.repeat(np.cumsum(width) - width, width)
        reached = np.unique(sorted_target[np.repeat(first[frontier], width) + offset])
        frontier = reached[~seen[reached]]
        seen[frontier] = True
    return seen
