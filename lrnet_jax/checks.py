"""Checks of numbers that several constructors share; errors name the value and the mend."""


def check_positive(name: str, number: object, besides: str = "") -> None:
    """Raises unless `number` is an int of at least 1; `besides` tells what else is allowed."""
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1{besides}, got {number}")


def check_odd(name: str, number: int) -> None:
    """Raises unless `number` is an odd int of at least 1."""
    check_positive(name, number)
    if number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}; use {number - 1} or {number + 1}")
