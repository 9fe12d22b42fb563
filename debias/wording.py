"""Counts and times in sentences: every text that a person reads says `1 run` and `2 runs`."""

from __future__ import annotations

from datetime import UTC, datetime

MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]  # whatever the locale


def plural(number: float, one: str, many: str = "") -> str:
    """The form of a word that goes with a number; `many` where it is not `one` with an s, as in `is` and `are`."""
    return one if number == 1 else many or f"{one}s"


def counted(number: float, one: str, many: str = "") -> str:
    """A number with its noun, as in `1 run` and `2,310 runs`."""
    return f"{number:,.0f} {plural(number, one, many)}"


def day(iso: str) -> str:
    """The day of a time in ISO 8601, as in `27 Nov 2026`; another text as it is."""
    time = _time(iso)
    return f"{time.day} {MONTHS[time.month - 1]} {time.year}" if time else iso


def moment(iso: str) -> str:
    """A time in ISO 8601 as people write it, as in `27 Nov 2026, 08:04 UTC`; another text as it is."""
    time = _time(iso)
    return f"{day(iso)}, {time:%H:%M} UTC" if time else iso


def seconds(iso: str) -> float | None:
    """A time in ISO 8601 as a number to sort by; None for another text."""
    time = _time(iso)
    return time.timestamp() if time else None


def _time(iso: str) -> datetime | None:
    try:
        return datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:  # nothing, or a damaged file
        return None
