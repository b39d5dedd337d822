"""Checks of encoders that others write: `pytest -p pipeline.testing.encoders --encoder X:NAME`.

In: an encoder, or a definition from `register_encoder`. Out: an AssertionError that says what is
wrong. `checks.py` holds the checks, which Strata's own tests call, and does not need pytest;
`encoders.py` is the plugin for pytest, and `suite.py` the tests that it collects.
"""
