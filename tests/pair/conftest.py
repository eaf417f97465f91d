"""Tests on the demo pair."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick(short_profile):
    """No time is spent on precise profiles."""


@pytest.fixture
def dspark(demo_files, dspark):
    """As elsewhere; the demo models are made already."""
    return dspark
