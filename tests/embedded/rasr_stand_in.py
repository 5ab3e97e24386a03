# ruff: noqa: UP031
"""Calls a control module exactly as RASR does, without being RASR: for tests only.

Runs in any Python >= 3.8 with numpy, as Sprint's Python would.  What RASR's callback refuses is
refused here; where RASR's process would end, this one ends with status 1.  Modes, by
`--*.action=`:

* `python-control`: the control loop, or `iterate-corpus`;
* `train`: a trainer with a layer of type python, as for lattice-based criteria.

The "criterion" is a fixed function of the log-posteriors, so that the other side can check it.
"""

import importlib
import sys

import numpy as np

SEGMENTS = {
    "c/r/one": "hello world ",
    "c/r/two": "bob ",
    "c/r/lost": "hello ",
    "c/r/three": "",
}
SKIPPED = "c/r/lost"
LABELS = 5


def read_arguments(arguments):
    values = {}
    for argument in arguments:
        if not argument.startswith("--*."):
            sys.exit("unexpected argument %r" % argument)
        name, _, value = argument[4:].partition("=")
        values[name] = value
    return values


VALUES = read_arguments(sys.argv[1:])


def get_segment_list(names):
    """RASR's python segment order."""
    if VALUES.get("python-segment-order") != "true":
        return iter(names)
    module = importlib.import_module(VALUES["python-segment-order-pymod-name"])
    found = module.getSegmentList(
        corpusName="c",
        segmentList=list(names),
        segmentsInfo=None,
        config=VALUES["python-segment-order-config"],
    )
    return iter(found)


def need_str(value):
    if not isinstance(value, str):
        raise TypeError("argument must be str, not %s" % type(value).__name__)
    return value


ORTHOGRAPHIES = {}


def orthography(name):
    # RASR walks through its corpus to find out, and that asks for the segment order.
    if not ORTHOGRAPHIES:
        for known in get_segment_list(SEGMENTS):
            ORTHOGRAPHIES[known] = SEGMENTS[known]
    if need_str(name) not in ORTHOGRAPHIES:
        raise KeyError("PythonControl: unknown segment name '%s'" % name)
    return ORTHOGRAPHIES[name]


def automaton(text):
    words = len(text.split())
    if words == 0:
        sys.exit("segmentation fault")
    edges = np.array([range(words), range(1, words + 1), range(words)], dtype=np.uint32)
    return words + 1, words, edges.reshape(-1), np.full(words, 0.5, dtype=np.float32)


def calculate_criterion(
    posteriors,
    orthography=None,
    alignment=None,
    output_error_type="none",
    segment_name=None,
):
    if orthography is not None:
        need_str(orthography)
    need_str(output_error_type)
    if (
        type(posteriors) is not np.ndarray
        or posteriors.dtype != np.float32
        or posteriors.ndim != 2
        or posteriors.shape[0] != LABELS
    ):
        sys.exit("numpy2nnMatrix failed")
    if alignment is not None:
        if orthography is not None:
            raise ValueError("either an alignment, or the orthography, but not both")
        if alignment.dtype != np.float32:
            sys.exit("numpy2nnVector failed")
    if output_error_type == "error-signal":
        sys.exit("Generic CrossEntropyCriterion::getErrorSignal not implemented yet.")
    if segment_name == SKIPPED:
        return None, None
    return float(posteriors.sum()), np.asfortranarray(2 * posteriors)


def callback(command, *args, **kwargs):
    need_str(command)
    if command == "version":
        return "<version>stand-in</version>"
    if command == "version_number":
        return int(VALUES.get("version", 5))
    if command == "export_allophone_state_fsa_by_segment_name":
        return automaton(orthography(*args, **kwargs))
    if command == "get_orthography_by_segment_name":
        return orthography(*args, **kwargs)
    if command == "calculate_criterion":
        return calculate_criterion(*args, **kwargs)
    raise ValueError("PythonControl callback(): unknown command '%s'" % command)


def iterate_corpus(control):
    first = True
    for name in get_segment_list(SEGMENTS):
        if name not in SEGMENTS:
            sys.exit("segment '%s' not found" % name)
        if first:
            control.init_processing(input_dim=-1, output_dim=-1)
            first = False
        alignment = None
        if VALUES.get("extract-alignments") == "true":
            alignment = np.zeros(4, dtype=np.uint32)
        control.process_segment(
            name=name,
            orthography=SEGMENTS[name].encode("utf-8"),
            speaker_name="spk",
            features=None,
            alignment=alignment,
            soft_alignment=None,
        )


def train(control, module):
    layer = module.SprintNnPythonLayer(config=VALUES["pymod-config"])
    layer.setOutputDimension(size=LABELS)
    layer.setInputDimension(stream=0, size=3)
    layer.initializeNetworkParameters()
    if layer.isTrainable() is not True or layer.getNumberOfFreeParameters() != 0:
        sys.exit("bad layer")
    frames = int(VALUES["frames"])
    for name in get_segment_list(SEGMENTS):
        if name not in SEGMENTS:
            sys.exit("segment '%s' not found" % name)
        control.init_segment(segment_name=name)
        if name == SKIPPED:
            continue
        output = layer.forward(input=[np.ones((3, frames), dtype=np.float32)])
        if output.dtype != np.float32 or output.shape != (LABELS, frames):
            sys.exit("bad output %s %s" % (output.dtype, output.shape))
        loss, error = float(output.sum()), np.asfortranarray(2 * output)
        if name == "c/r/one":
            control.notify_segment_loss(segment_name=name, loss=loss)
            back = layer.backpropagate(errorSignalIn=error)
        else:
            back = layer.backpropagate(errorSignalIn=error)
            control.notify_segment_loss(segment_name=name, loss=loss)
        error[:] = np.nan  # RASR reuses its memory
        if not isinstance(back, tuple) or [b.shape for b in back] != [(3, frames)]:
            sys.exit("bad result of backpropagate")
    layer.saveNetworkParameters(filename="x")
    layer.finalize()


def main():
    print("<?xml version='1.0'?><sprint>noise on standard output", flush=True)
    sys.path.insert(0, VALUES["pymod-path"])
    module = importlib.import_module(VALUES["pymod-name"])
    control = module.init(
        name="Sprint.PythonControl",
        sprint_unit="stand-in",
        reference=object(),
        callback=callback,
        version_number=int(VALUES.get("version", 5)),
        config=VALUES["pymod-config"],
    )
    if control is None:
        sys.exit("init() returned None")
    if VALUES.get("action") == "train":
        train(control, module)
    elif VALUES.get("python-control-loop-type") == "iterate-corpus":
        iterate_corpus(control)
    else:
        control.run_control_loop(callback=callback)
    control.exit()
    print("</sprint>")


if __name__ == "__main__":
    main()
