"""The decimal digits of floats, as C's printf has them, for compiled loops.

A float times a power of ten is computed to 106 bits, as an unevaluated sum of two doubles (T. J.
Dekker, A floating-point technique for extending the available precision, 1971), so nearly always it
is certain which integer is the nearest.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from shardserve.router.compiled import part
from shardserve.router.servable import Array

#: The largest power of ten that is used, and (negative) the smallest.
_POWERS = 306

#: Of those up to this one, a double holds each exactly.
_EXACT_POWERS = 22

#: Outside of these, products with powers of ten overflow, or lose bits.
SMALLEST, LARGEST = 1e-270, 1e285

#: Digits that are tried before all of them.
SHORT = 6

#: All that a float32 needs.
NINE = 9

#: The smallest float32 that has all its bits.
_NORMAL = 2.0**-126

#: A float32 times a power of ten up to this one is a double exactly.
_EXACT_FOR_SINGLE = 12


def _power_table() -> tuple[Array, Array]:
    exact = [Fraction(10) ** power for power in range(-_POWERS, _POWERS + 1)]
    high = [float(value) for value in exact]
    low = [float(value - Fraction(h)) for value, h in zip(exact, high, strict=True)]
    return np.array(high), np.array(low)


_HIGH, _LOW = _power_table()


@part
def _times_power(value, power):  # type: ignore[no-untyped-def]
    """value * 10**power as high + low."""
    high, low = _HIGH[power + _POWERS], _LOW[power + _POWERS]
    product = value * high
    split = 134217729.0 * value
    upper = split - (split - value)
    lower = value - upper
    split = 134217729.0 * high
    upper_power = split - (split - high)
    lower_power = high - upper_power
    error = upper * upper_power - product
    error += upper * lower_power
    error += lower * upper_power
    error += lower * lower_power
    return product, error + value * low


@part
def _nearest(value, power, digits):  # type: ignore[no-untyped-def]
    """The integer nearest to value * 10**power, of so many digits, and whether that is certain."""
    if digits <= 9:
        # A plain product is off by less than 1e-6 then.
        product = value * _HIGH[power + _POWERS]
        whole = np.floor(product)
        part = product - whole
        if abs(part - 0.5) > 1e-6:
            return np.uint64(np.int64(whole) + (part > 0.5)), True
    product, error = _times_power(value, power)
    whole = np.floor(product)
    fraction = product - whole
    rest = fraction + error
    more = np.floor(rest)
    number = np.uint64(np.int64(whole) + np.int64(more))
    part = rest - more
    if abs(part - 0.5) > 1e-9:
        return number + np.uint64(part > 0.5), True
    # A tie goes to the even one, as in printf, if it is one exactly.
    is_exact = 0 <= power <= _EXACT_POWERS and rest - fraction == error and part == 0.5
    return number + (number & np.uint64(1)), is_exact


@part
def _least_exponent(power_of_two):  # type: ignore[no-untyped-def]
    """The decimal exponent of 2**power_of_two, exact for every double.

    Of what lies between that and its double it is the exponent too, or one less.
    """
    return (power_of_two * 78913) >> 18


@part
def rounded(value, digits, least):  # type: ignore[no-untyped-def]
    """The digits of a positive float as one integer, its exponent, and whether that is certain.

    `least` is the smallest integer of so many digits.
    """
    _, power_of_two = math.frexp(value)
    exponent = _least_exponent(power_of_two - 1)
    number, certain = np.uint64(0), False
    for _ in range(2):
        number, certain = _nearest(value, digits - 1 - exponent, digits)
        if number < least * np.uint64(10):
            break
        exponent += 1
    return number, exponent, certain


@part
def digits_of_single(value):  # type: ignore[no-untyped-def]
    """What is written of a positive float32, given as a double.

    The digits as an integer of nine, its exponent, and how many of them count: SHORT if they read
    back, else NINE, and 0 if that is not certain by plain products, which are off by 3e-7 at most.
    """
    exponent = _least_exponent((np.float64(value).view(np.int64) >> 52) - 1023)
    product = value * _HIGH[NINE - 1 - exponent + _POWERS]
    if product >= 1e9:
        exponent += 1
        product = value * _HIGH[NINE - 1 - exponent + _POWERS]
    number = np.int64(product + 0.5)
    if abs(product - number) > 0.5 - 1e-6:
        if not 0 <= NINE - 1 - exponent <= _EXACT_FOR_SINGLE:
            return number, exponent, 0
        # A tie goes to the even one, as in printf.
        number -= number & (number - product == 0.5)
    if number == 1000000000:
        return number, exponent, 0
    short = ((number + 500) * 274877907) >> 38  # Over 1000.
    rest = abs(number - short * 1000)
    # Half of the way to the next float32 is less than 60 if it has all its bits.
    if rest > 60 and value >= _NORMAL:
        return number, exponent, NINE
    if rest == 500:
        return number, exponent, 0
    back = short * _HIGH[exponent - SHORT + 1 + _POWERS]
    below, above = np.float32(back * (1 - 1e-15)), np.float32(back * (1 + 1e-15))
    if below != above:
        return number, exponent, 0
    if below != value:
        return number, exponent, NINE
    if short == 1000000:
        return 100000000, exponent + 1, SHORT
    return short * 1000, exponent, SHORT


@part
def reads_back(value, number, exponent):  # type: ignore[no-untyped-def]
    """1 if `SHORT` digits with that exponent read as a double, 0 if not, -1 if not certain."""
    product, error = _times_power(float(number), exponent - SHORT + 1)
    difference = (product - value) + error
    mantissa, power = math.frexp(value)
    # Half of the way to the next double, and to the one before, which is nearer to powers of two.
    half = math.ldexp(0.5, power - 53)
    if difference < 0 and mantissa == 0.5:
        half /= 2
    ratio = abs(difference) / half
    if abs(ratio - 1) < 1e-6:
        return -1
    return 1 if ratio < 1 else 0
