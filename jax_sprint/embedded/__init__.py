"""A host for Sprint control modules that needs no RASR: the embedded Sprint.

`python -m jax_sprint.embedded --config=FILE --*.path.to.parameter=value ...` reads the
configuration, the Bliss corpus and the Bliss lexicon that RASR would read, loads the same control
module, and hands it the same `callback`.  Needs numpy and the standard library only.
"""
