"""Names in C."""

from __future__ import annotations

import re

from smidgen.errors import SmidgenError

_KEYWORDS = """
    auto break case char const continue default do double else enum extern float for goto if inline int long
    register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while

    alignas alignof and and_eq asm atomic bitand bitor bool catch char16_t char32_t char8_t class co_await co_return
    co_yield compl concept const_cast consteval constexpr constinit decltype delete dynamic_cast explicit export false
    friend generic mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public
    reinterpret_cast requires static_assert static_cast template this thread_local throw true try typeid typename
    typeof typeof_unqual using virtual wchar_t xor xor_eq
"""
"""Of C and C++ to C23 and C++23, where the header may be included."""
_HEADERS = """
    assert complex ctype errno fenv float inttypes iso646 limits locale math setjmp signal stdalign stdarg stdatomic
    stdbit stdbool stdckdint stddef stdint stdio stdlib stdnoreturn string tgmath threads time uchar wchar wctype

    aio cpio dirent dlfcn fcntl fmtmsg fnmatch ftw glob grp iconv langinfo libgen libintl monetary mqueue ndbm netdb
    nl_types poll pthread pwd regex sched search semaphore spawn strings stropts syslog tar termios trace ulimit unistd
    utime utmpx wordexp

    alloca endian features malloc memory values
"""
"""Of C, POSIX and common systems: the files are named after the prefix."""
_WIDTHS = """
    bool char int int16 int32 int64 int8 int_fast16 int_fast32 int_fast64 int_fast8 int_least16 int_least32
    int_least64 int_least8 intmax intptr llong long ptrdiff schar short shrt sig_atomic size uchar uint uint16 uint32
    uint64 uint8 uint_fast16 uint_fast32 uint_fast64 uint_fast8 uint_least16 uint_least32 uint_least64 uint_least8
    uintmax uintptr ullong ulong ushrt wchar wint
"""
"""`limits.h` and `stdint.h` of C23 define a macro of this name and `_WIDTH`, as the exported header does."""
_TAKEN = "main aux con nul prn " + " ".join(f"{device}{number}" for device in ("com", "lpt") for number in range(10))
"""The example program, and devices that Windows has in place of files."""
_MOST = 48


def prefix(name: str | None, trial: str) -> str:
    """The prefix of all public identifiers and files.

    Args:
        name: what the user wants; None makes one from the trial's name.
        trial: its name, as in `mnist-4-strict`.

    Raises:
        SmidgenError: it is not an identifier, a keyword, or taken.
    """
    wanted = re.sub(r"[^A-Za-z0-9]+", "_", trial).strip("_").lower() if name is None else name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", wanted):
        problem = "is not an identifier in C: use a letter, then letters, digits or '_'"
    elif wanted.lower() in _KEYWORDS.split():
        problem = "is a keyword of C or C++"
    elif "__" in wanted or wanted.endswith("_"):
        problem = "would give names with '__', which C++ reserves"
    elif wanted.lower() in (_HEADERS + _WIDTHS + _TAKEN).split():
        problem = "is taken by a standard header, the example program or a device of Windows"
    elif len(wanted) > _MOST:
        problem = f"has more than {_MOST} characters"
    else:
        return wanted
    made = " (made from the trial's name)" if name is None else ""
    raise SmidgenError(f"the C name {wanted!r}{made} {problem}; choose another with --name, as in --name digits")
