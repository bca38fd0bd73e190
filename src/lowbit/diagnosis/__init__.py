"""Which layer breaks, why, and what to do.

Measurements of a prepared network beside the float network, and what follows.
"""

from __future__ import annotations

from lowbit.diagnosis.diagnose import diagnose
from lowbit.diagnosis.kinds import Kind
from lowbit.diagnosis.result import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "Kind", "diagnose"]
