"""Bits within a budget: what each choice costs and is expected to lose, and the best of them."""

from lowbit.allocation.allocate import Allocation, Point, allocate
from lowbit.allocation.budget import Budget

__all__ = ["Allocation", "Budget", "Point", "allocate"]
