"""The order in which libstdc++'s `std::sort` leaves equal elements.

RASR sorts the arcs it exports with `std::sort`, which is not stable, and then merges equal arcs
where they are neighbours.  Where several arcs connect the same two states, the order among them
decides what is merged.  Facts about libstdc++: introspective sort with median of three, stretches
of up to 16 elements left for a final insertion sort, a heap where the halves stay too unequal.
"""

from __future__ import annotations

__all__ = ["unstable_order"]

_THRESHOLD = 16


def unstable_order(keys: list[int]) -> list[int]:
    """Positions of the elements as `std::sort` by `keys` would leave them.

    Args:
        keys: one per element; may repeat.

    Returns:
        A permutation of ``range(len(keys))``; ``keys[p]`` ascends along it.
    """
    items = [(key, position) for position, key in enumerate(keys)]
    count = len(items)
    if count < 2:
        return list(range(count))
    limit = 2 * (count.bit_length() - 1)
    stack = [(0, count, limit)]
    while stack:
        first, last, depth = stack.pop()
        while last - first > _THRESHOLD:
            if depth == 0:
                items[first:last] = _heap_sorted(items[first:last])
                break
            depth -= 1
            cut = _partition_around_median(items, first, last)
            stack.append((cut, last, depth))
            last = cut
        # The two halves do not touch each other, so their order does not matter.
    _insertion_sort(items)
    return [position for _, position in items]


def _partition_around_median(items: list[tuple[int, int]], first: int, last: int) -> int:
    a, b, c = first + 1, first + (last - first) // 2, last - 1
    ka, kb, kc = items[a][0], items[b][0], items[c][0]
    if ka < kb:
        median = b if kb < kc else c if ka < kc else a
    else:
        median = a if ka < kc else c if kb < kc else b
    items[first], items[median] = items[median], items[first]
    pivot = items[first][0]
    low, high = first + 1, last
    while True:
        while items[low][0] < pivot:
            low += 1
        high -= 1
        while pivot < items[high][0]:
            high -= 1
        if low >= high:
            return low
        items[low], items[high] = items[high], items[low]
        low += 1


def _heap_sorted(heap: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is done with a stretch that the median of three keeps cutting badly."""
    for root in range(len(heap) // 2 - 1, -1, -1):
        _sift(heap, root, len(heap), heap[root])
    for last in range(len(heap) - 1, 0, -1):
        item = heap[last]
        heap[last] = heap[0]
        _sift(heap, 0, last, item)
    return heap


def _sift(heap: list[tuple[int, int]], root: int, count: int, item: tuple[int, int]) -> None:
    """Lets a hole sink from `root` to a leaf by way of the larger children, then `item` rise."""
    hole = root
    while 2 * hole + 2 < count:
        child = 2 * hole + 2
        if heap[child][0] < heap[child - 1][0]:
            child -= 1
        heap[hole] = heap[child]
        hole = child
    if 2 * hole + 2 == count:
        heap[hole] = heap[count - 1]
        hole = count - 1
    while hole > root and heap[(hole - 1) // 2][0] < item[0]:
        heap[hole] = heap[(hole - 1) // 2]
        hole = (hole - 1) // 2
    heap[hole] = item


def _insertion_sort(items: list[tuple[int, int]]) -> None:
    for i in range(1, len(items)):
        item = items[i]
        key = item[0]
        # Below the threshold a new smallest element goes straight to the front; the outcome is
        # that of a plain insertion, which leaves equals alone.
        j = i
        while j > 0 and key < items[j - 1][0]:
            items[j] = items[j - 1]
            j -= 1
        items[j] = item
