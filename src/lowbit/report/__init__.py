"""Tables, plots and pages from run folders; reads files only."""

from __future__ import annotations

from lowbit.report.page import write_report
from lowbit.report.plots import plot_run
from lowbit.report.run import Run, read_run
from lowbit.report.table import render, table

__all__ = ["Run", "plot_run", "read_run", "render", "table", "write_report"]
