"""Diagnose the machine, the build and a pair, in one screen for a bug report."""

from dspark_gguf.doctor.examine import examine
from dspark_gguf.doctor.report import Report

__all__ = ["Report", "examine"]
