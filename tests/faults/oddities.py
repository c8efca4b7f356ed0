"""What a hostile recipe is made of: characters, bytes, signs, numbers, words and values that have broken readers of YAML before."""

from typing import Any

ODD = (  # characters that look like nothing, turn text around, join, or are no characters at all
    *"\0\x07\x08\x1b\x7f\x85\xa0\xad\u0300\u0489\u061c\u180e\u200b\u200d\u200e\u200f\u2028\u2029\u202a\u202e\u2060\u2066\u2069",
    *"\ufeff\ufffd\ufffe\uffff\ue000\u0661\u0430\uff1a\u2014\u201c\u20ac\U0001f600\U000e0041\U0010ffff",
    "e\u0301", "\U0001f468\u200d\U0001f469", "Z\u0351\u036b\u0343" * 5, "\x1b[31m", "\x1b]0;title\x07",
)  # fmt: skip
RAW = (  # bytes that are no UTF-8
    b"\xff", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xfe\xff", b"\x80", b"\xc3",
)  # fmt: skip
YAML = (
    *"%@`,[]{}#\"'\t\r\n\\~=", "&a ", "*a", "!!python/object/apply:os.system ", "!!str ", "! ", "!<tag:x> ", "<<: ", "<<: *a\n", "&a [*a]",
    "? ", "| ", "> ", "- ", ": ", "---\n", "...\n", "%YAML 1.1\n---\n", "\n\n", "  ",
)  # fmt: skip
NUMBERS = (
    "0", "-1", "-0", "0.0", "+1", "--1", "1.", ".5", "1.5", "1,5", "0.1e+1", "1e", "1e-3", "1e308", "1e309", "-1e999", "1e-400", "5e-324",
    ".inf", "-.inf", ".nan", ".NaN", "inf", "nan", "65536", "16385", "2147483648", "4294967296", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "1" + "0" * 400, "9" * 5000, "0x10", "0o17", "010", "1_000", "12:30:45",
)  # fmt: skip
WORDS = (
    "", " ", "null", "~", "True", "yes", "on", "None", "0", "-1", "1e3", "2026-01-01", "stages", "kind", "__class__", "__proto__",
    "../../../etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/", ".", "..", "-", "-rf", "--help", "--set", "~root", "*", "**/*",
    "[", "$HOME", "${HOME}", "$(id)", "`id`", "%s%s%n", "{0.__class__}", "{{7*7}}", "{split}", "<script>alert(1)</script>", "'; drop table",
    "file:///etc/passwd", "http://127.0.0.1/x", "C:\\x", "\\\\host\\x", "CON", "a" * 300, "a/" * 300, "x" * 5000, "a\nb", "a\tb",
    "\xe9", "\u202egnp", "\u043aind",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e300, 1e-300, 2**62, 2**63 - 1, -(2**63), "", "data", "student", "null", "x" * 1000,
    [], [[]], [None], [0], [1, 2], [16, 16], [-1, -1], [2**40, 2**40], [1, 2, 3], ["data", "data"], ["x"] * 500, [{}], [{"kind": "cwd"}, 1],
    {}, {"kind": None}, {"kind": "tiny"}, {"kind": ["tiny"]}, {"kind": {"kind": 1}}, {"kind": "train"}, {"a": {"b": {}}}, {"": ""},
)  # fmt: skip
