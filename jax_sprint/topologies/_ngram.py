"""Denominators: an n-gram model over labels, composed with a label topology, without epsilons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_sprint.topologies._common import ArcList, Labels, Triple, ragged, to_automata
from jax_sprint.topologies._ngram_model import NgramModel, estimate, reachable
from jax_sprint.topologies._spelling import Spelling, read_vocabulary, spell

if TYPE_CHECKING:
    from jax_sprint.automata import Automata

__all__ = ["ngram", "ngram_triple"]

_TOPOLOGIES = ("ctc", "rna", "linear", "once", "hmm")
_SMOOTHINGS = ("witten-bell", "absolute", "none")


def ngram(
    label_sequences: Labels,
    label_lengths: Any = None,
    *,
    order: int,
    topology: str = "ctc",
    blank: int = 0,
    vocabulary: Any = None,
    smoothing: str = "witten-bell",
    discount: float = 0.5,
    min_count: int = 1,
    max_histories: int | None = None,
    prune: float = 0.0,
    states: Mapping[int, Any] | None = None,
    silence: int | None = None,
    tdps: Mapping[str, float] | None = None,
    num_labels: int | None = None,
    pad_to: Any = None,
) -> Automata:
    """Builds a denominator: an n-gram model over labels, spelled out in frames.

    Drawn for a bigram over the labels ``a`` and ``b`` with the CTC topology; ``[a]`` is the state
    of being in the label a, ``(a)`` that of being in blanks after it, and ``(-)`` in blanks before
    the first label.  Every state but the start also leads to the one end state, E::

            .-.        P(a|begin)        .-.
        -> (-) ----------------------->  [a] <---------------.
            |                             |                   |
            | P(b|begin)        P(b|a)    |   -               | P(a|a), P(a|b)
            |          .------------------+-------> (a) ------'
            v          v         P(b|a)               |
           [b] <--------------------------------------'       and so on from [b], by symmetry

    An arc emits the label of the state that it leaves: ``[a] -> [b]`` emits a and costs
    -log P(b|a), ``[a] -> (a)`` emits a and costs nothing, ``(a) -> [b]`` emits the blank and costs
    -log P(b|a), ``[a] -> E`` emits a and costs -log P(end|a).  As in CTC, equal labels have a
    blank between them.  There are no epsilon arcs: back-off is spelled out, every arc has its
    whole probability.  The possible first states are joined to one start state that has a copy of
    the arcs leaving each of them.

    With the topologies ``"ctc"``, ``"rna"`` and ``"once"`` every frame label string has exactly
    one path, whose weight is -log P of the label sequence that the string spells.

    *Estimation.*  Each sequence counts with a begin mark in front and an end mark behind.  With c
    the count of label w after history h, C and T the number of all and of distinct labels after h,
    and h' the history without its oldest label:

    * ``"witten-bell"``: P(w|h) = (c + T P(w|h')) / (C + T)
    * ``"absolute"``: P(w|h) = (c - D + D T P(w|h')) / C for c > 0, without the c - D otherwise
    * ``"none"``: P(w|h) = c / C; only what was seen has arcs

    Below the empty history lies the uniform distribution over vocabulary and end.  A history that
    is not kept is replaced by its longest kept suffix.  In every state the probabilities sum to 1,
    and every state leads to the end with a positive probability, so that the model's label
    sequences have probability 1 in total.

    Args:
        label_sequences: `[B, N]` integers, or a list of integer sequences: the training text.
        label_lengths: `[B]` integers, number of labels of each row of an array; None: rows are
            used whole.
        order: n of the n-gram, at least 1.
        topology: how a label sequence becomes frames: ``"ctc"``, ``"rna"``, ``"linear"`` (one
            frame or more each), ``"once"`` (one frame each), or ``"hmm"``.
        blank: the blank's index on the label axis, for ``"ctc"`` and ``"rna"``.
        vocabulary: the labels that the model knows; None: those of the text.
        smoothing: ``"witten-bell"``, ``"absolute"`` (discounting) or ``"none"``.
        discount: D, between 0 and 1, for ``"absolute"``.
        min_count: histories that were seen less often are not kept.
        max_histories: at most that many histories are kept, those seen most often; ties at the
            limit are not kept.  None: no limit.
        prune: a continuation that the text does not have and whose probability is below this is
            left out, and the state's others are scaled to sum to 1.  What the text has always
            stays, so that the denominator contains every numerator.  0: nothing is left out; 1:
            the automaton has arcs for seen continuations only.
        states: for ``"hmm"``, the HMM states of each label, as labels of the emission axis; None:
            one state per label, of the same number.
        silence: for ``"hmm"``, the label of an optional silence of one state before, between and
            after labels; None: none.
        tdps: for ``"hmm"``, costs by the names of `hmm`'s arguments: ``loop``, ``forward``,
            ``skip``, ``exit``, ``silence_loop``, ``silence_exit``.  Left out: 0, and +inf for
            ``skip``.  Their probabilities sum to 1 in each state only if you choose them so.
        num_labels: L, the size of the label axis of the log-posteriors; None: not checked here.
        pad_to: padded sizes, handed to `Automata.from_edges`.

    Returns:
        One automaton (B = 1), to be shared by all sequences of a batch.  Zero frames have no path.
        With a topology that has neither blank nor silence an empty label sequence takes no frame;
        there the model is that of non-empty sequences, and the start has no end probability.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: an argument out of range, a text without labels, an empty sequence where no
            frame can stand for it, a label outside the vocabulary or without states, a smoothed
            model that would be too large.

    Sources: Witten and Bell, IEEE Trans. Information Theory 37, 1991; Ney, Essen and Kneser,
    Computer Speech and Language 8, 1994; denominators of such models: Povey et al., Interspeech
    2016.
    """
    triple = ngram_triple(
        label_sequences,
        label_lengths,
        order=order,
        topology=topology,
        blank=blank,
        vocabulary=vocabulary,
        smoothing=smoothing,
        discount=discount,
        min_count=min_count,
        max_histories=max_histories,
        prune=prune,
        states=states,
        silence=silence,
        tdps=tdps,
        num_labels=num_labels,
    )
    return to_automata(triple, num_labels=num_labels, pad_to=pad_to)


def ngram_triple(
    label_sequences: Labels,
    label_lengths: Any = None,
    *,
    order: int,
    topology: str = "ctc",
    blank: int = 0,
    vocabulary: Any = None,
    smoothing: str = "witten-bell",
    discount: float = 0.5,
    min_count: int = 1,
    max_histories: int | None = None,
    prune: float = 0.0,
    states: Mapping[int, Any] | None = None,
    silence: int | None = None,
    tdps: Mapping[str, float] | None = None,
    num_labels: int | None = None,
) -> Triple:
    """The arcs of `ngram`, not packed."""
    if topology not in _TOPOLOGIES:
        raise ValueError(f"topology is {topology!r}; it must be one of {', '.join(_TOPOLOGIES)}")
    _check_estimation(order, smoothing, discount, min_count, max_histories, prune)
    if topology != "hmm":
        for name, value in (("states", states), ("silence", silence), ("tdps", tdps)):
            if value is not None:
                raise ValueError(f'{name} needs topology="hmm", but topology is {topology!r}')

    text = ragged(label_sequences, label_lengths, name="label_sequences")
    words = read_vocabulary(text, vocabulary, "label_sequences")
    spelling = spell(topology, words, blank, states, silence, tdps, num_labels)
    has_filler = spelling.filler is not None
    if not has_filler and (text.lengths == 0).any():
        raise ValueError(
            f"label_sequences[{int(np.flatnonzero(text.lengths == 0)[0])}] is empty, and with "
            f"topology={topology!r} and no silence no frame can stand for it; leave it out"
        )
    model = estimate(
        text,
        order=order,
        vocabulary=words,
        smoothing=smoothing,
        discount=discount,
        min_count=min_count,
        max_histories=max_histories,
        prune=prune,
        allow_empty=has_filler,
    )
    return _compose(model, spelling)


def _check_estimation(
    order: int,
    smoothing: str,
    discount: float,
    min_count: int,
    max_histories: int | None,
    prune: float,
) -> None:
    if int(order) != order or order < 1:
        raise ValueError(f"order is {order}; it must be an integer of at least 1")
    if smoothing not in _SMOOTHINGS:
        raise ValueError(f"smoothing is {smoothing!r}; it must be one of {', '.join(_SMOOTHINGS)}")
    if not 0 < discount < 1:
        raise ValueError(f"discount is {discount}; it must lie between 0 and 1")
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; it must be at least 1")
    if max_histories is not None and max_histories < 1:
        raise ValueError(f"max_histories is {max_histories}; it must be at least 1, or None")
    if not 0 <= prune <= 1:
        raise ValueError(f"prune is {prune}; it is a probability, between 0 and 1")


def _compose(model: NgramModel, spelling: Spelling) -> Triple:
    """Replaces each label of the model by its chain; an arc emits the label of the node it leaves.

    A node of a chain belongs to a pair (state that the label led to, label), a filler node to a
    state.
    """
    costs, has_filler = spelling.costs, spelling.filler is not None
    n_histories = model.final.size
    n_words = spelling.words.size
    word = np.searchsorted(spelling.words, model.label)
    pairs, pair_of_arc = np.unique(model.target * n_words + word, return_inverse=True)
    pair_of_arc = pair_of_arc.reshape(-1)
    pair_state, pair_word = pairs // n_words, pairs % n_words

    n_fillers = n_histories if has_filler else 0
    sizes = spelling.sizes[pair_word]
    first = n_fillers + np.cumsum(sizes) - sizes
    last = first + sizes - 1
    n_nodes = n_fillers + int(sizes.sum())
    offset = np.arange(n_nodes - n_fillers) - np.repeat(first - n_fillers, sizes)
    left = np.repeat(sizes, sizes) - 1 - offset
    chain_start = (np.cumsum(spelling.sizes) - spelling.sizes)[pair_word]
    emission = np.concatenate(
        [
            np.full(n_fillers, spelling.filler if has_filler else 0, np.int64),
            spelling.emissions[np.repeat(chain_start, sizes) + offset],
        ]
    )

    # All pairs joined with the arcs that leave their state.
    by_source = np.argsort(model.source, kind="stable")
    begin = np.searchsorted(model.source[by_source], np.arange(n_histories + 1))
    width = begin[pair_state + 1] - begin[pair_state]
    pair = np.repeat(np.arange(pairs.size), width)
    within = np.arange(pair.size) - np.repeat(np.cumsum(width) - width, width)
    arc = by_source[np.repeat(begin[pair_state], width) + within]
    if spelling.separate:
        apart = pair_word[pair] != word[arc]
        pair, arc = pair[apart], arc[apart]

    node = np.arange(n_fillers, n_nodes)
    end = n_nodes
    moves = [
        (node, node, np.full(node.size, costs["loop"])),
        (node[left >= 1], node[left >= 1] + 1, np.full(int((left >= 1).sum()), costs["forward"])),
        (node[left >= 2], node[left >= 2] + 2, np.full(int((left >= 2).sum()), costs["skip"])),
        (last[pair], first[pair_of_arc[arc]], costs["exit"] + model.cost[arc]),
        (last, np.full(last.size, end), costs["exit"] + model.final[pair_state]),
    ]
    if has_filler:
        filler = np.arange(n_fillers)
        moves += [
            (last, pair_state, np.full(last.size, costs["exit"])),
            (filler, filler, np.full(n_fillers, costs["silence_loop"])),
            (model.source, first[pair_of_arc], costs["silence_exit"] + model.cost),
            (filler, np.full(n_fillers, end), costs["silence_exit"] + model.final),
        ]
    source, target, weight = (np.concatenate([m[i] for m in moves]) for i in range(3))
    possible = weight < np.inf
    source, target, weight = source[possible], target[possible], weight[possible]

    # The start has a copy of the arcs that leave the nodes where a path may begin.
    entry = np.full(n_nodes, np.inf)
    from_start = model.source == 0
    entry[first[pair_of_arc[from_start]]] = model.cost[from_start]
    if has_filler:
        entry[0] = 0.0
    copied = entry[source] < np.inf
    start = n_nodes + 1
    label = np.concatenate([emission[source], emission[source[copied]]])
    weight = np.concatenate([weight, (weight + entry[source])[copied]])
    source = np.concatenate([source, np.full(int(copied.sum()), start)])
    target = np.concatenate([target, target[copied]])

    kept = reachable(source, target, np.asarray([start]), n_nodes + 2)
    kept[end] = True
    number = np.cumsum(kept)  # the start, last so far, becomes 0
    number[start] = 0
    number[end] = int(kept.sum()) - 1
    arcs = ArcList()
    alive = kept[source]
    for ends in (False, True):
        w = alive & ((target == end) == ends)
        arcs.add(
            np.zeros(int(w.sum()), np.int64),
            number[source[w]],
            number[target[w]],
            label[w],
            weight[w],
            ends=ends,
        )
    return arcs.build(np.zeros(1, np.int64), number[end : end + 1])[0]
