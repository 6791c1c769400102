"""Names in C."""

from __future__ import annotations

import re

from smidgen.errors import SmidgenError

_KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while

    alignas alignof and and_eq asm atomic bitand bitor bool catch class compl concept const_cast constexpr
    decltype delete dynamic_cast explicit export false friend generic mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public reinterpret_cast requires static_assert static_cast
    template this thread_local throw true try typeid typename using virtual wchar_t xor xor_eq
"""
"""Of C99, and of C11 and C++, where the header may be included."""
_TAKEN = """
    main assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdarg stdbool
    stddef stdint stdio stdlib string tgmath time wchar wctype
    convolution_8 convolution_16 average_pool_8 average_pool_16
"""
"""The example program and C's own headers, as the files are named after the prefix; and what would come to the name
of a function in the source file."""
_MOST = 48


def prefix(name: str | None, trial: str) -> str:
    """What all public identifiers and the files begin with.

    Args:
        name: what the user wants; None makes one from the trial's name.
        trial: its name, as in `mnist-4-strict`.

    Raises:
        SmidgenError: it is no identifier, a keyword, or taken.
    """
    wanted = re.sub(r"[^A-Za-z0-9]+", "_", trial).strip("_").lower() if name is None else name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", wanted):
        problem = "is not an identifier in C: use a letter, then letters, digits or '_'"
    elif wanted.lower() in _KEYWORDS.split():
        problem = "is a keyword of C or C++"
    elif wanted.lower() in _TAKEN.split():
        problem = "is taken"
    elif len(wanted) > _MOST:
        problem = f"has more than {_MOST} characters"
    else:
        return wanted
    made = " (made from the trial's name)" if name is None else ""
    raise SmidgenError(f"the C name {wanted!r}{made} {problem}; choose another with --name, as in --name digits")
