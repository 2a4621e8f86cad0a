"""Numbers as people read them."""


def counted(number: int, noun: str) -> str:
    """Return like `1 row` or `2,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Return like 0:07, 12:30 or 3:05:00."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def short(number: int) -> str:
    """Return like 950, 12.3k or 4.56M."""
    # Each unit begins where three digits of the one below would be rounded to a thousand.
    for limit, unit, name in ((999.5e9, 1e12, "T"), (999.5e6, 1e9, "G"), (999.5e3, 1e6, "M"), (1e4, 1e3, "k")):
        if number >= limit:
            return f"{number / unit:.3g}{name}"
    return str(number)
