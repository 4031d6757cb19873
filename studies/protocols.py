"""The protocols by which a study may choose, by the names that files, tables and trackers have for them."""

from __future__ import annotations

from typing import Final, Literal

Protocol = Literal["validation", "first-k", "plasticity-first", "two-dataset", "test-oracle"]
VALIDATION: Final = "validation"
FIRST_K: Final = "first-k"
PLASTICITY_FIRST: Final = "plasticity-first"
TWO_DATASET: Final = "two-dataset"
TEST_ORACLE: Final = "test-oracle"
