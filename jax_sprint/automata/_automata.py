"""`Automata`: a batch of weighted automata as one pytree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_sprint.automata._packing import NODE_LEAVES, pack
from jax_sprint.automata._sizes import SIZES
from jax_sprint.automata._sliced import Sliced, slice_automaton
from jax_sprint.automata._states import group_states
from jax_sprint.automata._validate import check_edge_list, check_marks, check_start_end

__all__ = ["Automata"]

Array = Any  # numpy until used, jax.Array afterwards, a tracer under a transformation

_LEAVES = (
    "weights",
    "edge_from",
    "edge_to",
    "edge_emission",
    "edge_position",
    "state_ids",
    "num_states",
    "start_states",
    "start_weights",
    "end_states",
    "end_weights",
    *NODE_LEAVES,
    "sliced",
)

_SMALL_TABLE = 8
"""Entries per edge up to which a shared automaton keeps the padded tables of a batch."""

_LEARNT = ("weights", "start_weights", "end_weights")


@partial(jax.tree_util.register_dataclass, data_fields=_LEAVES, meta_fields=("num_labels", "band"))
@dataclasses.dataclass(frozen=True)
class Automata:
    """A batch of weighted finite automata, padded so that ragged batches share few shapes.

    Made by `from_edges`; not to be constructed by hand.  Every leaf leads with the batch axis B, so
    that one `PartitionSpec("batch")` fits the whole tree.  Leaves are numpy arrays until a
    computation uses them.  Below, E, S, A, Z, N, U, K, O and J are padded sizes (see `sizes`).

    Attributes:
        weights: [B, E] float32, cost of each edge in nats (-log), in the order in which
            `from_edges` got the edges of that sequence; 0 on padding, where it is ignored.  May be
            learnt: see `with_weights`.
        edge_from, edge_to: [B, E] int32, states numbered within the sequence; 0 on padding.
        edge_emission: [B, E] int32, label that the edge emits; 0 on padding.
        edge_position: [B, E] int32, column of the edge in the list given; -1 on padding.
        state_ids: [B, S] uint32, the states' numbers in the list given; 0 on padding.
        num_states: [B] int32.
        start_states: [B, A] int32, start states, numbered within the sequence; -1 on padding.
        start_weights: [B, A] float32, cost of starting there, in nats; 0 on padding, where it is
            ignored.  May be learnt.
        end_states, end_weights: [B, Z], likewise.
        node_label: [B, N] int32, label of each node (state and emission); -1 for the first A
            nodes, those of the start states, and on padding.
        node_start: [B, N] int32, place in `start_states` where the node is a start; else -1.
        node_end: [B, N] int32, place in `end_states` of the node's state; -1 if it is none.
        node_slot: [B, N] int32, place of the node's label in `slot_label`; U where there is none.
        slot_label: [B, U] int32, the distinct labels of the sequence; -1 on padding.
        in_arc: [B, K, N] int32, edge by which slot k enters the node; -1 where there is none.
        in_node: [B, K, N] int32, node from which slot k comes; None in a band, where it is v - k.
        out_arc, out_node: [B, O, N] int32, the same arcs by the node that they leave; None in a
            band.
        last_arc: [B, J, N] int32, edges that lead from the node into an end state that no edge
            leaves; -1 where there is none.
        last_end, last_slot: [B, J, N] int32, place of that end state in `end_states` and of the
            edge's label in `slot_label` (U where there is none).
        sliced: of a `shared` automaton the tables that all sequences use, else None; see
            `jax_sprint.automata._sliced`.  The node tables above may then be None.
        num_labels: number of labels L that the posteriors must have, or None: not checked.
        band: width of the band, or 0 where the arcs form none.
    """

    weights: Array
    edge_from: Array
    edge_to: Array
    edge_emission: Array
    edge_position: Array
    state_ids: Array
    num_states: Array
    start_states: Array
    start_weights: Array
    end_states: Array
    end_weights: Array
    node_label: Array
    node_start: Array
    node_end: Array
    node_slot: Array
    slot_label: Array
    in_arc: Array
    in_node: Array | None
    out_arc: Array | None
    out_node: Array | None
    last_arc: Array
    last_end: Array
    last_slot: Array
    sliced: Sliced | None
    num_labels: int | None
    band: int

    @classmethod
    def from_edges(
        cls,
        edges: Any,
        weights: Any,
        start_end_states: Any = None,
        *,
        start_states: Any = None,
        start_weights: Any = None,
        end_states: Any = None,
        end_weights: Any = None,
        num_labels: int | None = None,
        pad_to: Mapping[str, int] | Automata | None = None,
        shared: bool = False,
    ) -> Automata:
        """Packs a batch of automata, as `SprintInstancePool.get_automata_for_batch` returns them.

        Args:
            edges: [4, E] uint32: from state, to state, emission label, sequence.  States are
                numbered across the batch, with gaps if need be, and no two sequences share one.
                Edges of several sequences may be interleaved.
            weights: [E] float32, cost of each edge in nats; +inf forbids an edge.
            start_end_states: [2, B] uint32, the start and the end state of each sequence.
            start_states: in place of `start_end_states`, [2, A] uint32, any number of start states
                (row 0) of the sequences (row 1).
            start_weights: [A] float32, cost of starting there in nats; None: 0.
            end_states: [2, Z] uint32, likewise; given if and only if `start_states` is.
            end_weights: [Z] float32, cost of ending there; None: 0.
            num_labels: number of labels L of the posteriors; checked here against the emissions,
                and against the posteriors when a kernel is traced.
            pad_to: padded sizes by name, as in `sizes`, or an `Automata` whose sizes to take; for
                where several hosts, or batches, must agree on shapes.  Names left out are bucketed.
            shared: give the one automaton of a batch of one in its `shared` form, without ever
                building the padded tables of a batch, which are large where degrees differ much.

        Returns:
            The batch.

        Raises:
            ValueError: wrong dtype, rank or length, a sequence or emission index out of range, an
                end state before its start state, an edge that does not belong to its sequence, a
                weight that is NaN or -inf, a sequence without a start or an end state, or a size
                in `pad_to` that is too small or unknown.
        """
        if (start_end_states is None) == (start_states is None) or (
            (start_states is None) != (end_states is None)
        ):
            raise ValueError(
                "give either start_end_states, one start and one end state per sequence, or "
                "start_states and end_states"
            )
        if start_states is None:
            if start_weights is not None or end_weights is not None:
                raise ValueError("start_weights and end_weights need start_states and end_states")
            marks = check_start_end(start_end_states)
            limits = np.asarray(start_end_states)
        else:
            marks = check_marks(start_states, start_weights, end_states, end_weights)
            limits = None
        edges, weights = check_edge_list(edges, weights, marks.num_sequences, num_labels)
        if isinstance(pad_to, Automata):
            pad_to = pad_to.sizes
        sizes = dict(pad_to or {})
        unknown = sorted(set(sizes) - set(SIZES))
        if unknown:
            raise ValueError(f"pad_to has unknown sizes {unknown}; known: {list(SIZES)}")
        if shared and marks.num_sequences != 1:
            raise ValueError(f"shared=True needs one automaton, got {marks.num_sequences}")
        grouped = group_states(edges, marks, limits)
        leaves = pack(grouped, marks, edges, weights, sizes, tables=not shared)
        packed = cls(**leaves, sliced=None, num_labels=num_labels)
        return packed.shared() if shared else packed

    def to_edges(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The inverse of `from_edges`.

        Returns:
            `edges` [4, E] uint32, `weights` [E] float32, `start_end_states` [2, B] uint32: bit for
            bit what `from_edges` got.  A batch that was made by `index` or `concat` is numbered
            afresh, as a pool would: edges by sequence, states of a sequence after those of the
            sequences before it.

        Raises:
            ValueError: if the leaves are traced, or a sequence has several start or end states, or
                one at a cost, which this layout cannot express; see `to_arguments`.
        """
        arguments = self.to_arguments()
        states = []
        for kind in ("start", "end"):
            given, costs = arguments[f"{kind}_states"], arguments[f"{kind}_weights"]
            counts = np.bincount(given[1], minlength=1)
            if (counts > 1).any() or (costs != 0).any():
                at = (
                    int(np.argmax(counts > 1))
                    if (counts > 1).any()
                    else int(given[1, np.argmax(costs != 0)])
                )
                raise ValueError(
                    f"sequence {at} has several {kind} states, or one at a cost: to_edges() cannot "
                    "express that; take to_arguments()"
                )
            states.append(given[0])
        return arguments["edges"], arguments["weights"], np.stack(states)

    def to_arguments(self) -> dict[str, np.ndarray]:
        """What `from_edges` takes, by name, with `start_states` and so on.

        Returns:
            `edges`, `weights`, `start_states`, `start_weights`, `end_states` and `end_weights`, the
            edges in the order in which `from_edges` got them, starts and ends by sequence.

        Raises:
            ValueError: if the leaves are traced.
        """
        try:
            position = np.asarray(self.edge_position)
        except Exception as error:
            raise ValueError("to_edges needs concrete leaves; call it outside of jit") from error
        if position.ndim == 1:
            alone = dataclasses.replace(self, sliced=None)
            return jax.tree_util.tree_map(lambda leaf: leaf[None], alone).to_arguments()
        b, e = np.nonzero(position >= 0)
        order = np.argsort(position[b, e], kind="stable")
        b, e = b[order], e[order]
        ids = np.asarray(self.state_ids)
        result = {
            "edges": np.stack(
                [
                    ids[b, np.asarray(self.edge_from)[b, e]],
                    ids[b, np.asarray(self.edge_to)[b, e]],
                    np.asarray(self.edge_emission)[b, e].astype(np.uint32),
                    b.astype(np.uint32),
                ]
            ),
            "weights": np.asarray(self.weights)[b, e],
        }
        for kind in ("start", "end"):
            states = np.asarray(getattr(self, f"{kind}_states"))
            b, place = np.nonzero(states >= 0)
            result[f"{kind}_states"] = np.stack([ids[b, states[b, place]], b.astype(np.uint32)])
            result[f"{kind}_weights"] = np.asarray(getattr(self, f"{kind}_weights"))[b, place]
        return result

    @property
    def batch_size(self) -> int:
        """Number of sequences B; 1 where the automaton is `shared`."""
        return self.weights.shape[0] if np.ndim(self.weights) == 2 else 1

    @property
    def sizes(self) -> dict[str, int]:
        """The padded sizes by name: what `pad_to` takes."""
        sizes = {
            "edges": self.weights.shape[-1],
            "states": self.state_ids.shape[-1],
            "starts": self.start_states.shape[-1],
            "ends": self.end_states.shape[-1],
        }
        if self.node_label is not None:
            sizes |= {
                "nodes": self.node_label.shape[-1],
                "slots": self.slot_label.shape[-1],
                "band": self.band,
                "last_arcs": self.last_arc.shape[-2],
            }
        if self.out_arc is not None:
            sizes |= {"in_arcs": self.in_arc.shape[-2], "out_arcs": self.out_arc.shape[-2]}
        return sizes

    def with_weights(self, weights: Array) -> Automata:
        """The same automata with other weights, which may be traced: learnable transitions.

        Args:
            weights: [B, E] like the leaf `weights`, or [E] in the order of the edges given to
                `from_edges`; float, costs in nats.

        Returns:
            Automata that share every other leaf.  The loss is differentiable with respect to the
            weights.

        Raises:
            ValueError: a shape that is neither.
        """
        shape = tuple(np.shape(weights))
        if shape == tuple(np.shape(self.weights)):
            return dataclasses.replace(self, weights=weights)
        if len(shape) != 1:
            raise ValueError(
                f"weights has shape {shape}, but must have {tuple(np.shape(self.weights))} like "
                "the leaf, or [E] in edge order"
            )
        position = self.edge_position
        if not isinstance(position, jax.core.Tracer):
            count = int(np.max(np.asarray(position), initial=-1)) + 1
            if shape[0] != count:
                raise ValueError(f"weights has {shape[0]} entries, but there are {count} edges")
        if shape[0] == 0:
            return self
        position, weights = jnp.asarray(position), jnp.asarray(weights)
        spread = weights.at[jnp.maximum(position, 0)].get(mode="clip")
        weights = jnp.where(position >= 0, spread, jnp.zeros((), weights.dtype))
        return dataclasses.replace(self, weights=weights)

    def shared(self) -> Automata:
        """One automaton for a whole batch, such as a denominator: leaves without a batch axis.

        On the host this builds tables that all sequences use (`sliced`), of a size linear in the
        edges.  The padded tables of a batch stay beside them where they are small too.

        Raises:
            ValueError: if this is not a batch of one.
        """
        if np.ndim(self.weights) == 1:
            return self
        if self.batch_size != 1:
            raise ValueError(f"shared() needs a batch of one automaton, got {self.batch_size}")
        one = jax.tree_util.tree_map(lambda leaf: leaf[0], self)
        names = ("edge_from", "edge_to", "edge_emission", "start_states", "end_states")
        parts = [getattr(one, name) for name in (*names, "edge_position", "num_states")]
        if any(isinstance(part, jax.core.Tracer) for part in parts):
            return one
        parts = [np.asarray(part) for part in parts]
        num_edges = int(np.sum(parts[5] >= 0))
        sources, targets, emissions, starts, ends, _, num_states = parts
        sliced = slice_automaton(
            sources, targets, emissions, num_edges, starts, ends, int(num_states)
        )
        tables: dict[str, Any] = {}
        small = one.in_arc is not None and one.in_arc.size <= _SMALL_TABLE * (num_edges + 256)
        if not small:
            tables = dict.fromkeys(NODE_LEAVES) | {"slot_label": sliced.slot_label, "band": 0}
        return dataclasses.replace(one, sliced=sliced, **tables)

    def index(self, which: Any) -> Automata:
        """Some sequences of the batch, with the padding that they have.

        Args:
            which: a slice, or indices or a mask of sequences as numpy takes them; an int gives a
                batch of one.

        Returns:
            A batch of those.  `automata[which]` is the same.
        """
        if np.ndim(self.weights) == 1:
            raise ValueError("a shared automaton has no batch axis to index")
        if isinstance(which, (int, np.integer)):
            if not -self.batch_size <= which < self.batch_size:
                raise IndexError(f"sequence {which} of a batch of {self.batch_size}")
            which = np.array([which])
        elif isinstance(which, (list, tuple)):
            which = np.asarray(which, dtype=bool if which and isinstance(which[0], bool) else int)
        elif isinstance(which, jax.Array):
            return jax.tree_util.tree_map(lambda leaf: jnp.asarray(leaf)[which], self)
        picked = jax.tree_util.tree_map(lambda leaf: leaf[which], self)
        return picked._renumbered()

    def __getitem__(self, which: Any) -> Automata:
        return self.index(which)

    def __len__(self) -> int:
        return self.batch_size

    def _renumbered(self) -> Automata:
        """Numbers edges and states afresh where these leaves are concrete."""
        if not all(
            isinstance(leaf, np.ndarray)
            for leaf in (self.edge_position, self.state_ids, self.num_states)
        ):
            return self
        real = self.edge_position >= 0
        counts = real.sum(axis=1)
        first = np.cumsum(counts) - counts
        position = np.where(real, np.arange(real.shape[1]) + first[:, None], -1).astype(np.int32)
        offset = np.cumsum(self.num_states) - self.num_states
        column = np.arange(self.state_ids.shape[1])
        ids = np.where(
            column < self.num_states[:, None], column + offset[:, None].astype(np.int64), 0
        ).astype(np.uint32)
        return dataclasses.replace(self, edge_position=position, state_ids=ids)

    @classmethod
    def concat(
        cls, batches: Iterable[Automata], *, pad_to: Mapping[str, int] | Automata | None = None
    ) -> Automata:
        """One batch after another.

        Args:
            batches: at least one; their `num_labels` must agree.
            pad_to: as in `from_edges`.

        Returns:
            A batch of all sequences, packed anew.  Traced or learnt weights are kept.

        Raises:
            ValueError: no batch, different `num_labels`, or a shared automaton.
        """
        batches = list(batches)
        if not batches:
            raise ValueError("concat needs at least one batch of automata")
        if any(np.ndim(batch.weights) == 1 for batch in batches):
            raise ValueError("concat of a shared automaton, which has no batch axis")
        labels = {batch.num_labels for batch in batches}
        if len(labels) > 1:
            raise ValueError(f"concat of automata with different num_labels: {labels}")
        parts: list[dict[str, np.ndarray]] = []
        sequences = offset = 0
        for batch in batches:
            traced: dict[str, Any] = {
                name: np.zeros(np.shape(getattr(batch, name)), np.float32) for name in _LEARNT
            }
            part = dataclasses.replace(batch, **traced)[:].to_arguments()
            part["edges"] += np.array([[offset], [offset], [0], [sequences]], np.uint32)
            for name in ("start_states", "end_states"):
                part[name] += np.array([[offset], [sequences]], np.uint32)
            parts.append(part)
            sequences += batch.batch_size
            offset += int(np.sum(batch.num_states))
        joined: dict[str, Any] = {
            name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]
        }
        packed = cls.from_edges(**joined, num_labels=labels.pop(), pad_to=pad_to)
        learnt: dict[str, Any] = {}
        for name in _LEARNT:
            width = getattr(packed, name).shape[1]
            concrete = all(isinstance(getattr(batch, name), np.ndarray) for batch in batches)
            xp = np if concrete else jnp
            rows = [getattr(batch, name)[:, :width] for batch in batches]
            rows = [xp.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows]
            learnt[name] = xp.concatenate(rows, axis=0)
        return dataclasses.replace(packed, **learnt)
