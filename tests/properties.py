"""Hypothesis where it is installed; without it, property tests are skipped."""

from __future__ import annotations

import os

import pytest

try:
    from hypothesis import HealthCheck, assume, example, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:

    class _Anything:
        """Stands for strategies and settings, which nobody uses then."""

        def __getattr__(self, name):
            return self

        __or__ = lambda self, other: self  # noqa: E731

        def __call__(self, *args, **options):
            return self

    HealthCheck = st = assume = _Anything()

    def given(*args, **options):
        """Skip the test."""

        def skipped(test):
            def without():
                pytest.skip("hypothesis is not installed")

            without.__name__, without.__doc__ = test.__name__, test.__doc__
            return without

        return skipped

    def example(*args, **options):
        """Nothing to try."""
        return lambda test: test

    settings = example
else:  # no clock in a test, and the same examples everywhere
    searches = bool(os.environ.get("TESTS_SEARCH"))
    settings.register_profile("ours", deadline=None, derandomize=not searches)
    settings.load_profile("ours")

__all__ = ["HealthCheck", "assume", "example", "given", "settings", "st"]
