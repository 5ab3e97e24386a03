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
    """What an arc of `hmm` does, and in which kind of state: an index into a vector of 8 TDPs."""

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

    An arc emits the label of the state that it *leaves* and carries the penalty of that state's
    transition; so each frame pays exactly one penalty, and each arc has exactly one class.  Drawn
    for one word of three states ``a b c``; every loop costs `loop`, and E is the end state::

            a/loop        b/loop        c/loop
             .-.           .-.           .-.
             v |  a/fwd    v |  b/fwd    v |  c/exit
        ->    0 ----------> 1 ----------> 2 ----------> E
              |                           ^
              '--------- a/skip ----------'

    The arcs that leave a word, drawn for the words ``.. c`` and ``d ..`` with optional silence
    ``s`` between them; the same silence may stand before the first and after the last word::

                          s/sil-loop
                             .-.
                c/exit       v |  s/sil-exit
            c ------------->  s ------------> d
            |                                 ^
            '------------- c/exit ------------'

    Where silence may come first, there are two states to begin with; they are joined to one start
    state that has a copy of the arcs leaving either, and that no arc enters, so that no path is
    counted twice.

    The path weights are those of RASR up to where a penalty is noted: RASR writes the transition
    from one state to the next on the arc that *enters* the next state (free for the first), and
    its exit comes on top of forward within an utterance and alone at the end.  With RASR's default
    forward of 0 for speech, `exit` is the same number in both.

    Args:
        state_sequences: a list of B utterances.  An utterance is a list of words, each a list of
            label indices, one per HMM state; or, as one word, a list of label indices.  An integer
            array `[B, N]` is B utterances of one word each.
        state_lengths: `[B]` integers, number of states of each row of an array; None: rows are
            used whole.  Only an array takes lengths.
        loop: cost (negative natural-log probability) of staying in a state for one more frame.
        forward: cost of going on to the next state of the word.
        skip: cost of jumping over one state; jumps stay within a word.
        exit: cost of leaving a word's last state, for silence, the next word or the end.
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

        With `return_arc_classes` a pair: the automata, and an int32 array in the shape of
        `automata.weights` that holds `ArcClass` values (0 in padding, where weights are not used),
        such that `penalties[arc_classes]` of a vector `penalties` `[8] float32` can be handed to
        `automata.with_weights`.

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
    values = np.asarray(placed.weights)
    return automata, np.where(np.isfinite(values), values, 0).astype(np.int32)


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
    first = starts(units.sizes)
    last = first + units.sizes - 1
    same = np.zeros(n_units + 2, bool)  # unit u + 1 belongs to the sequence of unit u
    same[: max(n_units - 1, 0)] = units.sequence[1:] == units.sequence[:-1]
    optional = np.concatenate([units.optional, [False, False]])
    u = np.arange(n_units)
    # Optional units never stand side by side, so at most one is passed over.
    over = same[u] & optional[u + 1]

    of_node = np.repeat(u, units.sizes)
    left = units.sizes[of_node] - 1 - (np.arange(of_node.size) - first[of_node])
    node = np.arange(of_node.size)
    head = np.flatnonzero(np.r_[True, ~same[: n_units - 1]]) if n_units else u
    doubled = optional[head] & same[head]  # of each sequence: two units may come first

    # Every arc as (node left, node entered or -1 for the end, ArcClass of speech).
    far = u[over & same[u + 1]]
    near = u[same[u]]
    ending = u[~same[u] | (over & ~same[u + 1])]
    moves = [
        (node, node, ArcClass.SPEECH_LOOP),
        (node[left >= 1], node[left >= 1] + 1, ArcClass.SPEECH_FORWARD),
        (node[left >= 2], node[left >= 2] + 2, ArcClass.SPEECH_SKIP),
        (last[near], first[near + 1], ArcClass.SPEECH_EXIT),
        (last[far], first[far + 2], ArcClass.SPEECH_EXIT),
        (last[ending], np.full(ending.size, -1), ArcClass.SPEECH_EXIT),
    ]

    nodes_per = np.bincount(units.sequence[of_node], minlength=batch)
    sizes = nodes_per + 1 + doubled
    start = starts(sizes)
    end = start + sizes - 1
    state = node - starts(nodes_per)[units.sequence[of_node]]
    state += (start + doubled)[units.sequence[of_node]]
    begins = np.zeros(n_units, bool)
    begins[head[doubled]] = True
    begins[head[doubled] + 1] = True
    initial = np.zeros(node.size, bool)
    initial[first[begins]] = True

    arcs = ArcList()
    for source, target, kind in moves:
        tag = kind + 4 * units.silent[of_node[source]]
        keep = costs[tag] < np.inf
        source, target, tag = source[keep], target[keep], tag[keep]
        sequence = units.sequence[of_node[source]]
        to = np.where(target < 0, end[sequence], state[target])
        label = units.labels[source]
        for where, come_from in (
            (np.ones(source.size, bool), state[source]),
            (initial[source], start[sequence]),
        ):
            for ends in (False, True):
                w = where & ((target < 0) == ends)
                arcs.add(
                    sequence[w], come_from[w], to[w], label[w], costs[tag[w]], tag=tag[w], ends=ends
                )
    return arcs.build(start, end)
