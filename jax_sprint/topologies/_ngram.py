"""Denominators: an n-gram model over labels, composed with a label topology, without epsilons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_sprint.topologies._common import ArcList, Labels, Triple, ragged, starts, to_automata
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
    shared: bool = False,
) -> Automata:
    """Builds a denominator: an n-gram model over labels, spelled out in frames.

    Drawn around the label ``a`` of a bigram with the CTC topology: ``[a]`` is the state of being in
    the label a, ``(a)`` that of being in blanks after it, and ``b`` stands for every other label::

                   a
                  .-.
                   v |    b: P(b|a)
        ... ----> [a] ----------------------> [b] ----> ...
                  ^ |                          ^
        a: P(a|a) | | -                        | b: P(b|a)
                  | v                          |
                  (a) -------------------------'
                  ^ |
                  '-'
                   -

    An arc emits the label of the state that it *enters*: ``[a] -> [b]`` and ``(a) -> [b]`` emit b
    and cost -log P(b|a), ``[a] -> (a)`` emits the blank and costs nothing. As in CTC, equal labels
    have a blank between them. The start is like ``(a)``, after the begin mark. A sequence may end
    in every state from which the model can end: the arcs into such a state are there a second time,
    into the one end state, which no arc leaves, and cost -log P(end|a) more. There are no epsilon
    arcs: back-off is spelled out, every arc has its whole probability.

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
        shared: give the form that serves all sequences of a batch without copies, without
            building the padded tables of a batch first, which are large for a large model.

    Returns:
        A batch of one automaton, or with `shared` what its `Automata.shared` gives.  Zero frames
        have no path.
        With a topology that has neither blank nor silence an empty label sequence takes no frame;
        there the model is that of non-empty sequences, and the start has no end probability.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: an argument out of range, a text without labels, an empty sequence where no
            frame can stand for it, a label outside the vocabulary or without states, a smoothed
            model that would be too large.

    Example:
        >>> from jax_sprint import topologies
        >>> denominator = topologies.ngram([[1, 2, 1], [2, 3]], order=2, num_labels=4, shared=True)

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
    return to_automata(triple, num_labels=num_labels, pad_to=pad_to, shared=shared)


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
    """Replaces each label of the model by its chain; an arc emits the label of the node it enters.

    A node of a chain belongs to a pair (state that the label led to, label), a filler node to a
    state.  As in `hmm`, exit penalties are paid on entering.
    """
    costs, has_filler = spelling.costs, spelling.filler is not None
    n_histories, n_words = model.final.size, spelling.words.size
    word = np.searchsorted(spelling.words, model.label)
    pairs, pair_of_arc = np.unique(model.target * n_words + word, return_inverse=True)
    pair_of_arc = pair_of_arc.reshape(-1)
    pair_state, pair_word = pairs // n_words, pairs % n_words

    # Nodes: the start, the fillers, the chains; then the end.
    n_fillers = n_histories if has_filler else 0
    sizes = spelling.sizes[pair_word]
    first = 1 + n_fillers + starts(sizes)
    last = first + sizes - 1
    node = np.arange(1 + n_fillers, 1 + n_fillers + int(sizes.sum()))
    left = np.repeat(last, sizes) - node
    chain = np.repeat(starts(spelling.sizes)[pair_word] + sizes - 1, sizes) - left
    end = 1 + n_fillers + node.size
    # The label of each node, and what it costs to end there.
    emission = np.zeros(end, np.int64)
    emission[node] = spelling.emissions[chain]
    final = np.full(end, np.inf)
    final[last] = model.final[pair_state]

    pair, arc = _continuations(model, pair_state)
    if spelling.separate:
        apart = pair_word[pair] != word[arc]
        pair, arc = pair[apart], arc[apart]
    onward, skipped = node[left >= 1], node[left >= 2]
    begin = np.flatnonzero(model.source == 0)
    moves = [
        (node, node, costs["loop"]),
        (onward, onward + 1, costs["forward"]),
        (skipped, skipped + 2, costs["skip"]),
        (last[pair], first[pair_of_arc[arc]], costs["exit"] + model.cost[arc]),
        (
            np.zeros(begin.size, np.int64),
            first[pair_of_arc[begin]],
            costs["exit"] + model.cost[begin],
        ),
    ]
    if spelling.filler is not None:
        filler = np.arange(1, 1 + n_fillers)
        emission[filler] = spelling.filler
        final[filler] = model.final
        moves += [
            (last, filler[pair_state], costs["silence_exit"]),
            (filler, filler, costs["silence_loop"]),
            (filler[model.source], first[pair_of_arc], costs["exit"] + model.cost),
            (np.zeros(1, np.int64), filler[:1], costs["silence_exit"]),
        ]
    source, target = (np.concatenate([m[i] for m in moves]) for i in range(2))
    weight = np.concatenate([np.broadcast_to(m[2], m[0].shape) for m in moves])
    possible = weight < np.inf
    source, target, weight = source[possible], target[possible], weight[possible]

    kept = np.append(reachable(source, target, np.zeros(1, np.int64), end), True)
    number = np.cumsum(kept) - 1
    alive = kept[source]
    source, target, weight = source[alive], target[alive], weight[alive]
    closing = final[target] < np.inf
    arcs = ArcList()
    arcs.add(
        np.zeros(source.size, np.int64), number[source], number[target], emission[target], weight
    )
    arcs.add(
        np.zeros(int(closing.sum()), np.int64),
        number[source[closing]],
        np.full(int(closing.sum()), number[end]),
        emission[target[closing]],
        weight[closing] + final[target[closing]],
        ends=True,
    )
    return arcs.build(np.zeros(1, np.int64), number[end:])[0]


def _continuations(model: NgramModel, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joins states with the model's arcs that leave them: (index into `state`, arc) pairs."""
    by_source = np.argsort(model.source, kind="stable")
    begin = np.searchsorted(model.source[by_source], np.arange(model.final.size + 1))
    width = begin[state + 1] - begin[state]
    index = np.repeat(np.arange(state.size), width)
    within = np.arange(index.size) - np.repeat(starts(width), width)
    return index, by_source[np.repeat(begin[state], width) + within]
