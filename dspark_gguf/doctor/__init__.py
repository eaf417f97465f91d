"""What is the matter with this machine, this build and this pair: one screen for an issue."""

from dspark_gguf.doctor.examine import examine
from dspark_gguf.doctor.report import Report

__all__ = ["Report", "examine"]
