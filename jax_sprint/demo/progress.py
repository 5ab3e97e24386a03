"""Progress of long work: a bar where somebody looks on, a few lines elsewhere."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["shown"]

_Item = TypeVar("_Item")

_LINES = 4
_SECONDS_BETWEEN_LINES = 2.0
_DETAILS_EVERY = 10
# Without the rate, so that the details fit into 80 columns.
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


def shown(
    items: Iterable[_Item],
    what: str,
    *,
    total: int,
    unit: str,
    details: Callable[[], str] | None = None,
    enabled: bool = True,
) -> Iterator[_Item]:
    """Iterates, and shows on standard error how far it is.

    In a terminal and in a notebook that is a bar; elsewhere, such as in a log file, up to four
    lines.

    Args:
        items: what to iterate over.
        what: is being done.
        total: number of items.
        unit: of the items, in the plural.
        details: what else to tell.
        enabled: whether to show anything.

    Yields:
        The items.
    """
    if not enabled:
        yield from items
    elif _in_notebook() or _in_terminal():
        yield from _with_bar(items, what, total, unit, details)
    else:
        yield from _with_lines(items, what, total, unit, details)


def _with_bar(
    items: Iterable[_Item], what: str, total: int, unit: str, details: Callable[[], str] | None
) -> Iterator[_Item]:
    form = {} if details is None else {"bar_format": _BAR}
    with _kind_of_bar()(desc=what, total=total, unit=f" {unit}", mininterval=0.2, **form) as bar:
        for number, item in enumerate(items, 1):
            yield item
            if details is not None and number % _DETAILS_EVERY == 0:
                bar.set_postfix_str(details(), refresh=False)
            bar.update()


def _with_lines(
    items: Iterable[_Item], what: str, total: int, unit: str, details: Callable[[], str] | None
) -> Iterator[_Item]:
    told, told_at = 0, time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        part = number * _LINES // max(total, 1)
        now = time.monotonic()
        if number == total or (part > told and now > told_at + _SECONDS_BETWEEN_LINES):
            told, told_at = part, now
            more = "" if details is None else f", {details()}"
            print(f"{what}: {number:,} of {total:,} {unit}{more}", file=sys.stderr, flush=True)


def _in_terminal() -> bool:
    return sys.stderr.isatty()


def _in_notebook() -> bool:
    # Who runs in a notebook's kernel has imported IPython before.
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and hasattr(shell, "kernel")


def _kind_of_bar() -> Any:
    if _in_notebook() and importlib.util.find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    # Where a terminal does not know its size tqdm would show nothing.
    size = shutil.get_terminal_size()
    return partial(tqdm, ncols=size.columns, nrows=size.lines)
