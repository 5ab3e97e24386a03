"""The folder that Sprint gets as its `pymod-path`: what lies here runs inside Sprint's own Python.

Nothing in it may import jax or the rest of the package.
"""
