"""Contrast of colours as WCAG 2.2 counts it, and colours of a stylesheet."""

from __future__ import annotations

import re

AA = 4.5
"""What text needs, by success criterion 1.4.3."""


def luminance(colour: str) -> float:
    """Relative luminance of ``#rgb`` or ``#rrggbb``."""
    digits = colour.lstrip("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """From 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def themes(page: str) -> list[dict[str, str]]:
    """The variables of the light theme and of the dark one, which are those of a page's first two ``:root`` rules."""
    found = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})\b", rule))
        for rule in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    ]
    light, dark = found[:2]
    return [light, light | dark]
