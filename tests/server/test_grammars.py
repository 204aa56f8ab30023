"""How many places llama.cpp keeps in mind, and which grammars have no end."""

from __future__ import annotations

import time

import pytest

from cmc_local.server.gbnf import Unreadable, read_grammar, read_pattern
from cmc_local.server.grammars import places

JSON = r"""
root ::= value
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}))* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""
SUMS = """
root ::= sum "=" sum
sum ::= term ([-+] term)*
term ::= [a-z]+ ws | "(" ws sum ")" ws
ws ::= [ ]*
"""


def of(grammar: str) -> int:
    return places(read_grammar(grammar))


def of_pattern(pattern: str) -> int:
    return places({"pattern": read_pattern(pattern)})


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("^[0-9a-f]{8}-[0-9a-f]{4}$", 1),
        ("^[^,]{0,99}(,[^,]{0,99}){0,99}$", 1),  # a comma decides
        ("^(a|b){0,1000}$", 1),
        ("^a{0,7}a$", 2),  # within the repetition, or behind it
        ("^a{0,7}a{0,5}$", 6),  # within the first, or at any of five places of the second
        ("^(a{0,7}){0,5}$", 35),
        ("^(.{0,7},){0,5}$", 40),  # (7 + 1) * 5: a comma may as well be one of the seven
        ("^(a{0,7}a)b{0,5}$", 7),  # 2, and then the b may have begun at any of five
        ("^(a+)+$", 4),  # 2 * 2
        ("^(a*)*$", 1),  # the same place whichever round it is
        ("^(ab|ac)$", 2),
    ],
)
def test_what_the_next_character_leaves_open_is_counted(pattern: str, expected: int) -> None:
    assert of_pattern(pattern) == expected


def test_rules_count_wherever_they_are_named() -> None:
    doubling = "".join(f"r{n} ::= r{n + 1} r{n + 1}\n" for n in range(20))
    assert of(doubling + 'r20 ::= "x"') == 1
    assert of(doubling + 'r20 ::= "x"?') == 2**20
    alike = "".join(f"r{n} ::= r{n + 1} | r{n + 1}\n" for n in range(20))
    assert of(alike + 'r20 ::= "x"') == 2**20


@pytest.mark.parametrize("grammar", [JSON, SUMS])
def test_rules_that_hold_themselves_are_fine_where_the_next_character_decides(grammar: str) -> None:
    assert of(grammar) <= 3


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= a\na ::= ([a-z]+ a?)+",
        'root ::= "a" (root? root?)',
        "root ::= [a-z] a\na ::= root? root? root?",
        "root ::= ([a-z]+ list)\nlist ::= root*",
    ],
)
def test_rules_that_hold_themselves_are_refused_where_it_leaves_that_open(grammar: str) -> None:
    with pytest.raises(Unreadable, match="holds itself"):
        of(grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= root "a" | "b"',
        'root ::= a\na ::= b "x"\nb ::= a | "c"',
        'root ::= x root "c" | "b"\nx ::= "a"?',
        'root ::= x* root "c" | "b"\nx ::= y\ny ::= "a" | ',
    ],
)
def test_a_rule_that_begins_with_itself_has_no_end(grammar: str) -> None:
    with pytest.raises(Unreadable, match="begin with itself"):
        of(grammar)


def test_rules_that_are_not_there_are_left_to_llama_cpp() -> None:
    assert of("root ::= a b") == 1
    assert of("") == 0


def test_counting_takes_no_time() -> None:
    """However deep rules name each other; a recursion would end at a thousand."""
    begun = time.perf_counter()
    assert of("".join(f"r{n}::=r{n + 1}\n" for n in range(5000)) + 'r5000::="a"') == 1
    with pytest.raises(Unreadable):
        of("".join(f'r{n}::="b" r{n * 7919 % 4000}|r{n + 1}?\n' for n in range(3000)) + "x::=r0 r0")
    assert time.perf_counter() - begun < 3.0
