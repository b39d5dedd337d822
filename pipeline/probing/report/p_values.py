"""p-values of resampling tests as text."""

from __future__ import annotations

import math

from pipeline.probing.significance import smallest_p_value


def p_value_text(p_value: float, test: str, digits: int = 2) -> str:
    """Return "p = 0.041", or "p < 0.0001" if no draw of the test was as extreme as what was found.

    A test with random draws cannot have a smaller p-value than that, however large the difference.

    Args:
        p_value: The p-value; nan is written as such.
        test: Name of the test, as `paired_test` gives it.
        digits: Significant digits.
    """
    floor = smallest_p_value(test)
    if floor and p_value <= floor * (1 + 1e-9):
        digits = math.floor(-math.log10(floor))
        return f"p < {10**-digits:.{digits}f}"
    return f"p = {p_value:.{digits}g}"
