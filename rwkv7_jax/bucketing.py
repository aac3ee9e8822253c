"""Lengths and numbers of rows that programs are compiled for, so that few shapes occur."""


def next_power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least `n`; 1 for `n` below 1."""
    return 1 << max(0, n - 1).bit_length()


def padded_length(length: int) -> int:
    """Returns the smallest of 16, 32, 48, 64, 96, 128, 192, ... that holds `length` tokens.

    These lengths are the same for all data, and leave at most a third of padding above 32.
    """
    power = max(16, next_power_of_two(length))
    return power * 3 // 4 if power >= 64 and length <= power * 3 // 4 else power


def padded_prompt_length(length: int) -> int:
    """Returns a power of two from 16 to 256, from there on one of four lengths an octave."""
    if length <= 256:
        return max(16, next_power_of_two(length))
    quarter = next_power_of_two(length) // 8
    return -(-length // quarter) * quarter
