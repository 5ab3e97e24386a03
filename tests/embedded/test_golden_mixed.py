"""Automata of the real RASR for random lexica and configurations that mix everything.

``golden/mixed.npz`` was made by RASR's own graph building sources (HEAD 8fe741b), compiled as they
are into a small program that reads spellings and prints what RASR would export.  Every case has
its lexicon and its configuration in the file.

========================  ==========================================================
``lexicons, configs``     [N] str
``case, orthographies``   [M] which of the N, and the spelling
``num_states``            [M]
``edges, weights``        [3, E] uint32 and [E] float32; automaton m is at
                          ``offsets[m] : offsets[m + 1]``
========================  ==========================================================
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from automaton_compare import Fsa, first_difference

from jax_sprint.embedded.config import Configuration
from jax_sprint.embedded.graph_builder import AllophoneStateGraphBuilder
from jax_sprint.embedded.lexicon import Lexicon

DATA = np.load(Path(__file__).resolve().parent.parent / "golden" / "mixed.npz")
CASES = range(len(DATA["configs"]))


@pytest.mark.parametrize("case", CASES)
def test_mixed_features(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lex.xml").write_text(str(DATA["lexicons"][case]), encoding="utf-8")
    Path("case.config").write_text(str(DATA["configs"][case]), encoding="utf-8")
    exporter = Configuration.from_argv(["--config=case.config"]).select("alignment-fsa-exporter")
    lexicon = Lexicon.from_configuration(exporter.select("model-combination.lexicon"))
    builder = AllophoneStateGraphBuilder(exporter, lexicon)
    mine = np.nonzero(DATA["case"] == case)[0]
    assert len(mine) > 1
    for m in mine:
        text = str(DATA["orthographies"][m])
        part = slice(DATA["offsets"][m], DATA["offsets"][m + 1])
        theirs = Fsa(int(DATA["num_states"][m]), DATA["edges"][:, part], DATA["weights"][part])
        ours = builder.build(text)
        problem = first_difference(Fsa(ours.num_states, ours.edges, ours.weights), theirs)
        assert problem is None, f"{text!r}: {problem}"
        np.testing.assert_array_equal(ours.edges, theirs.edges, err_msg=text)
        np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-5, err_msg=text)


def test_the_cases_mix_what_they_should():
    text = "\n".join(map(str, DATA["configs"]))
    for line in (
        "topology = hmm",
        "topology = ctc",
        "topology = rna",
        "state-tying.type = monophone-eow",
        "state-tying.type = no-tying-dense",
        "state-tying.type = diphone-dense",
        "hmm.across-word-model = yes",
        "hmm.state-repetitions = 2",
        "tdp.applicator-type = legacy",
        "tdp.applicator-type = corrected",
        "allow-for-silence-repetitions = yes",
        "normalize-lemma-sequence-scores = yes",
        "phonology.history-length = 2",
    ):
        assert line in text
