"""The formats of JSON Schema that a grammar can hold a string to."""

from __future__ import annotations

from functools import cache

from specx.engine.text.schema.automaton import Automaton
from specx.engine.text.schema.pattern_automaton import matching

__all__ = ["FORMATS", "of_format"]

_LONG = "(0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])"
_SHORT = "(0[469]|11)-(0[1-9]|[12]\\d|30)"
_FEBRUARY = "02-(0[1-9]|1\\d|2[0-8])"
_YEAR = "(\\d{3}[1-9]|\\d{2}[1-9]\\d|\\d[1-9]\\d{2}|[1-9]\\d{3})"  # 0001 to 9999
_LEAP = "(\\d{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = f"({_YEAR}-({_LONG}|{_SHORT}|{_FEBRUARY})|{_LEAP}-02-29)"
_TIME = "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,9})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"

_BYTE = "(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"
_IPV4 = f"{_BYTE}(\\.{_BYTE}){{3}}"
_GROUP = "[0-9a-fA-F]{1,4}"
_LAST = f"({_GROUP}:{_GROUP}|{_IPV4})"  # the last 32 bits


def _ipv6() -> str:
    whole = [f"({_GROUP}:){{6}}{_LAST}"]
    for before in range(7):  # groups before the :: and those after it, of which one at least is left out
        head = _groups(before)
        after = 7 - before
        tails = [f"{_GROUP}(:{_GROUP}){{0,{after - 1}}}"]
        if after >= 2:
            tails.append(f"({_GROUP}:){{0,{after - 2}}}{_IPV4}")
        whole.append(f"{head}::({'|'.join(tails)})?")
    whole.append(f"{_groups(7)}::")
    return "|".join(whole)


def _groups(count: int) -> str:
    return f"{_GROUP}(:{_GROUP}){{{count - 1}}}" if count else ""


_LABEL = "[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_HOST = f"{_LABEL}(\\.{_LABEL})*"
_ATOM = "[a-zA-Z0-9!#$%&'*+/=?^_`{|}~-]+"
_PART = "[a-zA-Z0-9]+(-+[a-zA-Z0-9]+)*"  # a label whose length is not counted: that takes many states
_EMAIL = f"{_ATOM}(\\.{_ATOM})*@{_PART}(\\.{_PART})+"

_CODED = "%[0-9a-fA-F]{2}"
_PCHAR = f"([a-zA-Z0-9._~!$&'()*+,;=:@-]|{_CODED})"
_PATH = f"(/{_PCHAR}*)*"
_USER = f"([a-zA-Z0-9._~!$&'()*+,;=:-]|{_CODED})*@"
_AUTHORITY = f"({_USER})?([a-zA-Z0-9._~!$&'()*+,;=-]|{_CODED})*(:\\d{{0,5}})?"
_AFTER = f"(\\?({_PCHAR}|[/?])*)?(#({_PCHAR}|[/?])*)?"
_URI = f"[a-zA-Z][a-zA-Z0-9+.-]*:(//{_AUTHORITY}{_PATH}|/?({_PCHAR}+{_PATH})?){_AFTER}"

_NO_COLON = f"([a-zA-Z0-9._~!$&'()*+,;=@-]|{_CODED})"  # in a first segment it would end a scheme
_RELATIVE = f"(//{_AUTHORITY}{_PATH}|/({_PCHAR}+{_PATH})?|{_NO_COLON}+{_PATH})?{_AFTER}"
_NAME = f"([a-zA-Z0-9_]|{_CODED})+(\\.([a-zA-Z0-9_]|{_CODED})+)*(:[1-9]\\d{{0,3}}|\\*)?"
_TEMPLATE = f"([!#$&()*+,./0-9:;=?@A-Z\\[\\]_a-z~-]|{_CODED}|\\{{[+#./;?&]?{_NAME}(,{_NAME})*\\}})*"

_TIMES = "([*+?]|\\{\\d{1,2}\\})\\??"
_LITERAL = "([a-zA-Z0-9 _,:;=@#%&~\"'!<>/-]|\\\\[dDwWsS.*+?()\\[\\]{}|^$/\\\\])"
_ONE = f"({_LITERAL}|\\.|\\[\\^?(a-z|A-Z|0-9|\\\\[dws]|[a-zA-Z0-9_.])+\\])({_TIMES})?"
_BRANCH = f"({_ONE}|\\((\\?:)?({_ONE})+(\\|({_ONE})+)*\\)({_TIMES})?)*"

_DAY_TIME = "T(\\d+H(\\d+M(\\d+S)?)?|\\d+M(\\d+S)?|\\d+S)"
_DAYS = "(\\d+D|\\d+M(\\d+D)?|\\d+Y(\\d+M(\\d+D)?)?)"
_POINTER = "(/([^/~]|~[01])*)*"

FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": f"P({_DAYS}({_DAY_TIME})?|{_DAY_TIME}|\\d+W)",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "hostname": _HOST,
    "email": _EMAIL,
    "uri": _URI,
    "uri-reference": f"{_URI}|{_RELATIVE}",
    "uri-template": _TEMPLATE,
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9]\\d*)(#|{_POINTER})",
    "regex": f"\\^?{_BRANCH}(\\|{_BRANCH})*\\$?",  # groups within groups are left out
    # Those of all of Unicode are held to their part in ASCII.
    "idn-hostname": _HOST,
    "idn-email": _EMAIL,
    "iri": _URI,
    "iri-reference": f"{_URI}|{_RELATIVE}",
}


@cache
def of_format(name: str) -> Automaton | None:
    """The strings of a format, or None if it is not known: then it is a remark, as JSON Schema has it."""
    return matching(FORMATS[name]) if name in FORMATS else None
