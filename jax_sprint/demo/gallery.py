"""Which segments the demo's pictures show."""

from __future__ import annotations

import numpy as np

from jax_sprint import SprintInstancePool
from jax_sprint.demo import pictures
from jax_sprint.demo.dataset import Part
from jax_sprint.demo.evaluation import Evaluator
from jax_sprint.demo.report import Outcome

__all__ = ["draw_all"]

_CANDIDATES = 40
_FEWEST_STATES = 7
_ALIGNED_WORDS = 3


def draw_all(outcome: Outcome, evaluator: Evaluator, part: Part, pool: SprintInstancePool) -> None:
    """Draws losses, one automaton and one alignment, and notes the files in the outcome.

    Args:
        outcome: of the trainings; its last route's model gives the alignment.
        evaluator: of `part`.
        part: the held-out part, from which segments are taken.
        pool: Sprint, for the automaton.
    """
    _draw_losses(outcome)
    _draw_automaton(outcome, part, pool)
    _draw_alignment(outcome, evaluator, part)


def _draw_losses(outcome: Outcome) -> None:
    figure = pictures.new_figure(8, 5.5 if len(outcome.routes) > 1 else 4)
    losses = {name: trained.loss for name, (trained, _) in outcome.routes.items()}
    pictures.draw_losses(figure, losses, "Training loss")
    pictures.save(figure, outcome.picture("losses"))


def _draw_automaton(outcome: Outcome, part: Part, pool: SprintInstancePool) -> None:
    """Takes a segment with a small automaton, but not the smallest ones, which show little."""
    by_words = sorted(range(len(part.tags)), key=lambda index: len(part.utterances[index].words))
    candidates = by_words[:_CANDIDATES]
    edges, weights, ends = pool.get_automata_for_batch([part.tags[index] for index in candidates])
    states = (ends[1] - ends[0] + 1).astype(np.int64)
    chosen = int(np.argmin(np.where(states < _FEWEST_STATES, states + 10**6, states)))
    own = edges[3] == chosen
    edges = edges[:3, own].astype(np.int64)
    edges[:2] -= int(ends[0, chosen])
    end_state = int(ends[1, chosen] - ends[0, chosen])
    words = " ".join(part.utterances[candidates[chosen]].words)
    figure = pictures.new_figure(max(6.0, 1.05 * end_state), 3.2)
    pictures.draw_automaton(
        figure.subplots(),
        edges,
        weights[own],
        end_state,
        part.labels,
        f"Sprint's automaton of “{words}” (– is the blank)",
    )
    pictures.save(figure, outcome.picture("automaton"))


def _draw_alignment(outcome: Outcome, evaluator: Evaluator, part: Part) -> None:
    def distance(index: int) -> int:
        return abs(len(part.utterances[index].words) - _ALIGNED_WORDS)

    index = min(range(len(part.utterances)), key=distance)
    utterance = part.utterances[index]
    name, (trained, _) = list(outcome.routes.items())[-1]
    posteriors, alignment = evaluator.align(trained.parameters, index)
    figure = pictures.new_figure(9, 6)
    pictures.draw_alignment(
        figure,
        part.features[index],
        posteriors,
        alignment,
        part.labels,
        f"“{' '.join(utterance.words)}”, {utterance.speaker}, aligned (route {name})",
    )
    pictures.save(figure, outcome.picture("alignment"))
