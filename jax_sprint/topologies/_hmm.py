"""Hidden Markov models with time distortion penalties (TDPs) and optional silence."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from jax_sprint.topologies._common import ArcList, Triple, cost, starts, to_automata
from jax_sprint.topologies._words import read_words

if TYPE_CHECKING:
    from jax_sprint.automata import Automata

__all__ = ["ArcClass", "hmm", "hmm_triple"]


class ArcClass(enum.IntEnum):
    """What an arc of `hmm` pays for, and in what kind of state: an index into a vector of TDPs."""

    SPEECH_LOOP = 0
    SPEECH_FORWARD = 1
    SPEECH_SKIP = 2
    SPEECH_EXIT = 3
    SILENCE_LOOP = 4
    SILENCE_FORWARD = 5
    SILENCE_SKIP = 6
    SILENCE_EXIT = 7


@overload
def hmm(
    state_sequences: Any,
    state_lengths: Any = ...,
    *,
    loop: float = ...,
    forward: float = ...,
    skip: float = ...,
    exit: float = ...,
    silence: int | list[int] | None = ...,
    silence_loop: float = ...,
    silence_forward: float = ...,
    silence_skip: float = ...,
    silence_exit: float = ...,
    num_labels: int | None = ...,
    pad_to: Any = ...,
    return_arc_classes: Literal[False] = ...,
) -> Automata: ...


@overload
def hmm(
    state_sequences: Any,
    state_lengths: Any = ...,
    *,
    loop: float = ...,
    forward: float = ...,
    skip: float = ...,
    exit: float = ...,
    silence: int | list[int] | None = ...,
    silence_loop: float = ...,
    silence_forward: float = ...,
    silence_skip: float = ...,
    silence_exit: float = ...,
    num_labels: int | None = ...,
    pad_to: Any = ...,
    return_arc_classes: Literal[True],
) -> tuple[Automata, np.ndarray]: ...


def hmm(
    state_sequences: Any,
    state_lengths: Any = None,
    *,
    loop: float = 0.0,
    forward: float = 0.0,
    skip: float = np.inf,
    exit: float = 0.0,
    silence: int | list[int] | None = None,
    silence_loop: float = 0.0,
    silence_forward: float = 0.0,
    silence_skip: float = np.inf,
    silence_exit: float = 0.0,
    num_labels: int | None = None,
    pad_to: Any = None,
    return_arc_classes: bool = False,
) -> Automata | tuple[Automata, np.ndarray]:
    """Builds the left-to-right HMM of each utterance, given as words of tied HMM states.

    An arc emits the label of the state that it *enters*.  Each frame pays exactly one penalty, and
    each arc has exactly one class: a word (or silence) pays its `exit` once, and that is written
    on the arc that enters it, since every other arc has a penalty of its own already.  Drawn for
    one word of three states ``a b c``; every loop costs `loop`::

                           a             b             c
                          .-.           .-.           .-.
                 a/exit    v |  b/fwd    v |  c/fwd    v |
        ->    0 ----------> 1 ----------> 2 ----------> 3 ->
                            |                           ^
                            '--------- c/skip ----------'

    Between the words ``.. c`` and ``d ..`` there may be silence ``s``, and likewise before the
    first and after the last word::

                                s/sil-loop
                                   .-.
                s/sil-exit         v |         d/exit
            c --------------------> s ---------------------> d
            |                                                ^
            '---------------------- d/exit -----------------'

    Where silence may come last, a path may end in it or in the last word.  Then there is one end
    state more, which no arc leaves, and each arc into those two states is there a second time with
    the end state as its target: of a path's arcs only the last can be such a copy, so that no path
    is counted twice.  Otherwise the last state is the end state and keeps its loop.

    Apart from where penalties are noted these are RASR's path weights, with one difference: RASR
    charges forward and exit between two words, but only the exit after the last word; here it is
    `exit` in both places.  With RASR's default of 0 for forward it comes to the same for speech.

    Args:
        state_sequences: a list of B utterances.  An utterance is a list of words, each a list of
            label indices, one per HMM state; or, as one word, a list of label indices.  An integer
            array `[B, N]` is B utterances of one word each.
        state_lengths: `[B]` integers, number of states of each row of an array; None: rows are
            used whole.  Only an array takes lengths.
        loop: cost (negative natural-log probability) of staying in a state for one more frame.
        forward: cost of going on to the next state of the word.
        skip: cost of jumping over one state; jumps stay within a word.
        exit: cost of leaving a word from its last state, for silence, the next word or the end.
        silence: label of the optional silence before, between and after words, or a list of labels
            for a silence of several states; None: no silence.
        silence_loop: as `loop`, in silence.
        silence_forward: as `forward`, in a silence of several states.
        silence_skip: as `skip`, in a silence of three states or more.
        silence_exit: as `exit`, from silence.
        num_labels: L, the size of the label axis of the log-posteriors; None: not checked here.
        pad_to: padded sizes, handed to `Automata.from_edges`.
        return_arc_classes: also return each arc's class, for learning the penalties.

    Returns:
        The automata of B utterances.  A cost of +inf leaves its arcs out.  Without skips an
        utterance of N states has no path of fewer than N frames; the loss is +inf there.  With
        silence, an utterance without words is silence alone.

        With `return_arc_classes` a pair: the automata, and `[B, E] int32`, in the shape of
        `automata.weights`, the `ArcClass` of each arc (0 in padding, where weights do not count);
        so `automata.with_weights(penalties[arc_classes])` takes its weights from a vector
        `penalties` `[8] float32`.

    Raises:
        TypeError: labels that are no integers, or traced.
        ValueError: an utterance without words and without silence, a word without states, a label
            out of range, a cost that is NaN or -inf.

    Example:
        >>> from jax_sprint import topologies
        >>> automata = topologies.hmm([[[3, 4, 5], [6, 7, 8]]], loop=0.7, forward=0.7, silence=0)
    """
    triple, classes = hmm_triple(
        state_sequences,
        state_lengths,
        loop=loop,
        forward=forward,
        skip=skip,
        exit=exit,
        silence=silence,
        silence_loop=silence_loop,
        silence_forward=silence_forward,
        silence_skip=silence_skip,
        silence_exit=silence_exit,
        num_labels=num_labels,
    )
    automata = to_automata(triple, num_labels=num_labels, pad_to=pad_to)
    if not return_arc_classes:
        return automata
    # The packing decides where an arc's weight lands, so let it place the classes the same way.
    placed = to_automata(
        triple._replace(weights=classes.astype(np.float32)), num_labels=num_labels, pad_to=pad_to
    )
    return automata, np.asarray(placed.weights).astype(np.int32)


def hmm_triple(
    state_sequences: Any,
    state_lengths: Any = None,
    *,
    loop: float = 0.0,
    forward: float = 0.0,
    skip: float = np.inf,
    exit: float = 0.0,
    silence: int | list[int] | None = None,
    silence_loop: float = 0.0,
    silence_forward: float = 0.0,
    silence_skip: float = np.inf,
    silence_exit: float = 0.0,
    num_labels: int | None = None,
) -> tuple[Triple, np.ndarray]:
    """The arcs of `hmm`, not packed, and their classes `[E] int32`."""
    costs = np.asarray(
        [
            cost(loop, "loop"),
            cost(forward, "forward"),
            cost(skip, "skip"),
            cost(exit, "exit"),
            cost(silence_loop, "silence_loop"),
            cost(silence_forward, "silence_forward"),
            cost(silence_skip, "silence_skip"),
            cost(silence_exit, "silence_exit"),
        ]
    )
    units = read_words(state_sequences, state_lengths, silence, num_labels)

    batch, n_units = units.batch, units.sizes.size
    u = np.arange(n_units)
    first = starts(units.sizes)
    last = first + units.sizes - 1
    same = np.zeros(n_units + 2, bool)  # unit u + 1 belongs to the sequence of unit u
    same[: max(n_units - 1, 0)] = units.sequence[1:] == units.sequence[:-1]
    # Optional units never stand side by side, so at most one is passed over.
    over = same[u] & np.append(units.optional, False)[u + 1]
    head = u[~np.append(False, same)[u]]
    passed = head[units.optional[head] & same[head]]
    ending = u[~same[u] | (over & ~same[u + 1])]
    near, far = u[same[u]], u[over & same[u + 1]]

    node = np.arange(int(units.sizes.sum()))
    of_node = np.repeat(u, units.sizes)
    left = last[of_node] - node
    # Every arc as (node left or -1 for the start, node entered, its class in speech).
    moves = [
        (node, node, ArcClass.SPEECH_LOOP),
        (node[left >= 1], node[left >= 1] + 1, ArcClass.SPEECH_FORWARD),
        (node[left >= 2], node[left >= 2] + 2, ArcClass.SPEECH_SKIP),
        (last[near], first[near + 1], ArcClass.SPEECH_EXIT),
        (last[far], first[far + 2], ArcClass.SPEECH_EXIT),
        (np.full(head.size, -1), first[head], ArcClass.SPEECH_EXIT),
        (np.full(passed.size, -1), first[passed + 1], ArcClass.SPEECH_EXIT),
    ]

    sequence = units.sequence[of_node]
    nodes_per = np.bincount(sequence, minlength=batch)
    doubled = np.bincount(units.sequence[ending], minlength=batch) > 1
    sizes = 1 + nodes_per + doubled
    start = starts(sizes)
    end = start + sizes - 1
    state = start[sequence] + 1 + node - starts(nodes_per)[sequence]
    copied = np.zeros(node.size, bool)
    copied[last[ending]] = doubled[units.sequence[ending]]

    arcs = ArcList()
    for source, target, kind in moves:
        tag = kind + 4 * units.silent[of_node[target]]
        keep = costs[tag] < np.inf
        source, target, tag = source[keep], target[keep], tag[keep]
        b, label, weight = sequence[target], units.labels[target], costs[tag]
        come_from = np.where(source < 0, start[b], state[source])
        arcs.add(b, come_from, state[target], label, weight, tag=tag)
        w = copied[target]
        arcs.add(b[w], come_from[w], end[b[w]], label[w], weight[w], tag=tag[w], ends=True)
    return arcs.build(start, end)
