"""How long a Sprint will take for a request, by what it took for those before."""

from __future__ import annotations

import math

__all__ = ["Forecast"]

# What an answer counts for when the next one has come: some fifteen are remembered, and how wrong
# the last five forecasts were.
_MEMORY, _MEMORY_OF_ERRORS = 0.85, 0.7
# Of the variance of the costs, relative to their mean's square: below, no slope can be told.
_LEVEL = 1e-3


class Forecast:
    """A line through the last answers: so much for any request, and so much for each frame.

    Attributes:
        error: seconds by which forecasts were wrong lately, on average; inf while there are none.
    """

    def __init__(self) -> None:
        self.error = math.inf
        # Sums over the answers, each worth less the longer ago: 1, cost, its square, seconds, and
        # cost times seconds.
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)

    def learn(self, cost: float, seconds: float, count: int) -> None:
        """So many requests of that cost on average took so long, all together."""
        each = seconds / count
        memory = _MEMORY**count
        if self._sums[0]:
            error = abs(each - self.seconds(cost))
            before = each if self.error == math.inf else self.error
            self.error = error + (before - error) * _MEMORY_OF_ERRORS**count
        weight = (1.0 - memory) / (1.0 - _MEMORY)
        known, costs, squares, took, products = self._sums
        self._sums = (
            memory * known + weight,
            memory * costs + weight * cost,
            memory * squares + weight * cost * cost,
            memory * took + weight * each,
            memory * products + weight * cost * each,
        )

    def seconds(self, cost: float) -> float:
        """How long a request of that cost will take; 0 while nothing is known."""
        count, costs, squares, took, products = self._sums
        if not count:
            return 0.0
        mean, each = costs / count, took / count
        variance = squares / count - mean * mean
        if variance <= _LEVEL * mean * mean:
            return each
        slope = max(0.0, (products / count - mean * each) / variance)
        return max(0.0, each + slope * (cost - mean))
