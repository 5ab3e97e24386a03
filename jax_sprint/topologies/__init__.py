"""Automata built in Python from label sequences, without Sprint.

`ctc`, `rna`, `linear` and `hmm` build one automaton per sequence, for the numerator of a training
criterion; `ngram` builds one automaton over all sequences, for the denominator.  All of them are
acceptors with a label on each arc, one start state, one end state and no epsilon arcs; weights are
costs, that is negative natural-log probabilities.  They are built with numpy on the host, outside
of `jit`.
"""

from jax_sprint.topologies._ctc import ctc
from jax_sprint.topologies._hmm import ArcClass, hmm
from jax_sprint.topologies._linear import linear
from jax_sprint.topologies._ngram import ngram
from jax_sprint.topologies._rna import rna

__all__ = ["ArcClass", "ctc", "hmm", "linear", "ngram", "rna"]
