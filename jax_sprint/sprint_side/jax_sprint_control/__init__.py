"""The module that Sprint's embedded Python loads (`--*.pymod-path`, `--*.pymod-name`).

It runs inside Sprint, in whatever Python >= 3.8 Sprint was built with, and needs numpy and nothing
else; it must not import the rest of the package.  Sprint calls what is defined here by keyword:

* `init(...)` at start, giving a `control.PythonControl`;
* `getSegmentList(...)` with `--*.python-segment-order=true`: the order of segments is the order in
  which the parent process asks for them;
* `SprintNnPythonLayer(config=...)` for a network layer of type `python`: its output is what the
  parent sent, and the error signal that arrives at it is what the parent gets.

One process has one parent, so these share one `PythonControl`, whoever is called first.
"""

from .control import PythonControl
from .layer import SprintNnPythonLayer
from .settings import Settings

__all__ = ["SprintNnPythonLayer", "getSegmentList", "init"]


def init(
    config="",
    name="",
    sprint_unit=None,
    reference=None,
    callback=None,
    version_number=None,
    **_ignored,
):
    """Called by Sprint's PythonControl.

    Args:
        config: the string of `--*.pymod-config`; see `settings.Settings`.
        name: "Sprint.PythonControl".
        sprint_unit: which part of Sprint calls.
        reference: Sprint's own handle.
        callback: function `callback(command, ...)` by which Sprint can be asked.
        version_number: of Sprint's PythonControl interface.

    Returns:
        The object whose methods Sprint calls from now on.

    Raises:
        ValueError: the config string lacks something or makes no sense.
    """
    control = PythonControl.shared(Settings.parse(config))
    control.attach(callback, version_number)
    return control


def getSegmentList(corpusName="", segmentList=(), segmentsInfo=None, config="", **_ignored):
    """Called by Sprint's python segment order.

    Args:
        corpusName: name of the corpus.
        segmentList: full names of its segments, in the order of the file.
        segmentsInfo: dict by name, or None.
        config: the string of `--*.python-segment-order-config`, the same as for `init`.

    Returns:
        Iterator over full names: each is what the parent asks for next.  While Sprint answers a
        question of ours it only wants to know which segments there are (to look one up, it walks
        through the whole corpus, in our order); then it is `segmentList` itself.
    """
    control = PythonControl.shared(Settings.parse(config))
    if control.asking:
        return iter(segmentList)
    return control.segment_names(segmentList)
