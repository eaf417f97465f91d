"""Tests that load models."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick(short_profile):
    """No time is spent on precise profiles."""
