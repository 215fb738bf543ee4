"""Units: compared when both answers have one, ignored when one of them has none.

A unit is a sorted tuple of (name, power) pairs, so "square centimeters", "cm^2" and
"\\text{cm}^2" are all (("centimeter", 2),). Words that are in no table count as the unit of what
is being counted ("12 apples"), unless they could change the value ("12 hundred", "5 or more").
"""

from .answers import Node
from .cursor import Cursor
from .limits import Rejected

_SPELLINGS = {
    "centimeter": "cm centimeters centimetre centimetres",
    "millimeter": "mm millimeters millimetre millimetres",
    "kilometer": "km kilometers kilometre kilometres",
    "meter": "m meters metre metres",
    "inch": "in inches",
    "foot": "ft feet",
    "yard": "yd yds yards",
    "mile": "mi miles",
    "gram": "g grams gm",
    "kilogram": "kg kgs kilograms",
    "milligram": "mg milligrams",
    "pound": "lb lbs pounds",
    "ounce": "oz ounces",
    "ton": "tons tonne tonnes",
    "liter": "L l liters litre litres",
    "milliliter": "mL ml milliliters millilitres",
    "gallon": "gal gallons",
    "second": "s sec secs seconds",
    "minute": "min mins minutes",
    "hour": "h hr hrs hours",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "yr yrs years",
    "degree": "deg degrees",
    "radian": "rad rads radians",
    "celsius": "C",
    "fahrenheit": "F",
    "kelvin": "K kelvins",
    "dollar": "dollars USD usd",
    "cent": "cents",
    "euro": "euros EUR",
    "rupee": "rupees Rs",
    "percent": "percents pct",
    "unit": "units",
    "newton": "N newtons",
    "joule": "J joules",
    "watt": "W watts",
    "volt": "V volts",
    "kilowatt": "kW kilowatts",
    "hertz": "Hz",
}
UNITS = {word: name for name, words in _SPELLINGS.items() for word in [name, *words.split()]}
COMPOUND = {"mph": (("hour", -1), ("mile", 1)), "kph": (("hour", -1), ("kilometer", 1))}

# Outside \text, only these short letter runs are units: "2k" or "5m" is a product of variables.
BARE = frozenset("cm mm km kg mg ft lb lbs oz ml mL mph kph hr hrs sec min yd deg rad".split())

SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9,
          "trillion": 10**12, "dozen": 12}

# Words after a number that change or hedge its value; nothing that holds one of them is a unit.
_NOT_UNITS = frozenset(
    "or and not nor no mod modulo remainder half halves third thirds quarter quarters fourth "
    "fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths tenth tenths "
    "hundredth hundredths thousandth thousandths hundreds thousands millions billions dozens pi "
    "times plus minus over divided by squared cubed root factorial choose point negative more less "
    "fewer than greater below above under to through until up down if for when where while except "
    "unless but only approximately about roughly almost nearly around least most exactly base is "
    "are was equals equal as per squares into score pair pairs couple double twice triple some any "
    "all none maybe perhaps probably possibly likely guess approx wrong incorrect false true "
    "correct yes one two three four five six seven eight nine ten".split())


def plural_free(word: str) -> str:
    """The name under which an unknown counting word is compared."""
    word = word.casefold()
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def is_counting_word(word: str) -> bool:
    """Whether an unknown word may be the unit of a count, as in "12 apples"."""
    return len(word) >= 3 and word.casefold() not in _NOT_UNITS and word.casefold() not in SCALES


def base_unit(word: str) -> str | None:
    """The canonical name of a known unit, or None."""
    return UNITS.get(word) or (UNITS.get(word.casefold()) if len(word) > 2 else None)


class UnitReader(Cursor):
    """The part of the parser that reads what follows a number."""

    def trailing_unit(self, node: Node) -> tuple[Node, tuple | None]:
        """Read "\\%", "cm^2", "square feet", "miles per hour", "million dollars" after a number."""
        unit = self.unit
        if self.take("%"):
            return node, (("percent", 1),)
        if self.kind == "money":
            return node, ((self.next(), 1),)
        if self.kind not in ("word", "name"):
            return node, unit
        scale = SCALES.get(self.value.casefold())
        if scale:
            self.next()
            node = ("*", [node, ("n", scale)], [])
        powers: dict[str, int] = {}
        sign, prefix, count = 1, 1, 0
        while True:
            if self.kind in ("word", "name"):
                word = self.value
                lower = word.casefold()
                self_standing = self.kind == "word"
                self.next()
                if lower in ("square", "sq", "cubic", "cu"):
                    prefix = 2 if lower.startswith("sq") else 3
                    continue
                if lower == "per" and powers:
                    sign = -1
                    continue
                if lower in ("squared", "cubed") and powers:
                    last = next(reversed(powers))
                    powers[last] *= 2 if lower == "squared" else 3
                    continue
                if word in COMPOUND:
                    powers.update(COMPOUND[word])
                    continue
                name = base_unit(word)
                if name is None:
                    if not (self_standing and is_counting_word(word)):
                        raise Rejected("not_an_expression")
                    name, count = plural_free(word), count + 1
                    if count > 3:
                        raise Rejected("not_an_expression")
                power = prefix * self.unit_power()
                powers[name] = powers.get(name, 0) + sign * power
                sign = prefix = 1
            elif self.kind == "var" and self.value in ("C", "F") and "degree" in powers:
                powers = {UNITS[self.next()]: 1}  # 25 deg C
            elif self.kind == "/" and powers:
                self.next()
                sign = -1
                if self.kind not in ("word", "name"):
                    raise Rejected("not_an_expression")
            elif self.kind in ("*", "-") and powers and self.tokens[self.position + 1][0] == "word":
                self.next()
            else:
                break
        if sign == -1 or prefix != 1:
            raise Rejected("not_an_expression")
        if "percent" in powers and len(powers) > 1:
            raise Rejected("not_an_expression")
        if "celsius" in powers or "fahrenheit" in powers:  # 20 degrees Celsius
            powers.pop("degree", None)
            unit = None if unit == (("degree", 1),) else unit
        named = tuple(sorted(powers.items()))
        if named == (("unit", 1),):  # "5 units" says no more than 5
            named = ()
        if unit and named and unit != named:
            raise Rejected("not_an_expression")
        return node, named or unit

    def unit_power(self) -> int:
        if not self.take("^"):
            return 1
        braces = self.take("{")
        negative = self.take("-")
        digits = self.expect("num")
        if braces:
            self.expect("}")
        if len(digits) != 1 or not digits.isdigit():
            raise Rejected("not_an_expression")
        return -int(digits) if negative else int(digits)
