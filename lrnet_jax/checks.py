"""Checks of numbers that several constructors share. Errors give the value and the mend."""


def check_positive(name: str, number: object, alternative: str = "") -> None:
    """Raises unless `number` is an int of at least 1; `alternative` ends that part of the message.

    Raises:
      TypeError: it is not an int.
      ValueError: it is less than 1.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1{alternative}, got {number}")


def check_odd(name: str, number: object) -> None:
    """Raises unless `number` is an odd int of at least 1.

    Raises:
      TypeError: it is not an int.
      ValueError: it is even or less than 1.
    """
    check_positive(name, number)
    if isinstance(number, int) and number % 2 == 0:
        raise ValueError(f"{name} must be odd, got {number}; use {number - 1} or {number + 1}")
