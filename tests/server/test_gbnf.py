"""Grammars and patterns as they are read: their shape, and where they are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmc_local.server.gbnf import (
    EMPTY,
    Choice,
    Literal,
    Name,
    Part,
    Repeat,
    Unreadable,
    read_grammar,
    read_pattern,
)

ANY = 2**129 - 1


def letters(text: str) -> Literal:
    return Literal(sum(1 << ord(one) for one in text))


def rule(*parts: Part) -> Choice:
    return Choice((parts,))


A, B = letters("a"), letters("b")


@pytest.mark.parametrize(
    ("grammar", "shape"),
    [
        ('root ::= "ab" b', rule(A, Name("b"))),
        ('root ::= "a" | "b"*', Choice(((A,), (Repeat(B, 0, None),)))),
        ('root ::= ("a"? |\n "b"+)', rule(Choice(((Repeat(A, 0, 1),), (Repeat(B, 1, None),))))),
        ('root ::= "a"{2}"b"{ 2 , }', rule(Repeat(A, 2, 2), Repeat(B, 2, None))),
        ('root ::= "a"{2,3}', rule(Repeat(A, 2, 3))),
        ("root ::= [a-c] [-a] [^\\x00-\\x60b-\\U0010FFFF]", rule(letters("abc"), letters("-a"),
         Literal(1 << 97 | 1 << 128))),
        ('root ::= "\\"a" "\\n" # "b"\n', rule(letters('"'), letters("\n"))),
        ('root ::= "" [] . "\u20ac" <[5]> !<x>', rule(EMPTY, EMPTY, Literal(ANY),
         Literal(1 << 128), Literal(ANY), Literal(ANY))),
        ("root ::=", Choice(((),))),
    ],
)  # fmt: skip
def test_a_rule_is_read(grammar: str, shape: Choice) -> None:
    assert read_grammar(grammar) == {"root": shape}


def test_rules_are_read_and_the_later_one_counts() -> None:
    assert read_grammar('a ::= b\nb::="b"\n\na ::= "a"') == {"a": rule(A), "b": rule(B)}


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        ('root ::= "a"{3,2}', "at least 3 and at most 2"),
        ('root ::= "a"{1,99999999999}', "write a repetition"),
        ('root ::= "a"{,2}', "write a repetition"),
        ("root ::= *", "nothing to repeat"),
        ('root ::= "a"***', "three times over"),
        ('root ::= "a', "line 1, at '\"a'"),
        ("root ::= [a", "line 1, at '.a'"),
        ('\nroot ::= ("a"', "line 2: a parenthesis is not closed"),
        ('root ::= "a")', "line 1, at '.'"),
        ("root", "begins with its name"),
        ('root ::= "a"\0', "NUL"),
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "deeper than 128"),
    ],
)
def test_what_llama_cpp_cannot_bear_is_none(grammar: str, told: str) -> None:
    with pytest.raises(Unreadable, match=told):
        read_grammar(grammar)


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("^a$", rule(EMPTY, A, EMPTY)),
        ("(a|b)?", rule(Repeat(Choice(((A,), (B,))), 0, 1))),
        (r"\d\.[a-b]{2}", rule(Literal(ANY), letters("."), Repeat(letters("ab"), 2, 2))),
        (".", rule(Literal(ANY))),
    ],
)
def test_a_pattern_is_read(pattern: str, shape: Choice) -> None:
    assert read_pattern(pattern) == shape


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "\\", "a{2", "a{3,1}", "(" * 500 + ")" * 500])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(Unreadable):
        read_pattern(pattern)


@given(st.text(alphabet='ab:= "[](){}|*+?,23\\^-#\n<>!.$', max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_grammar, read_pattern):
        try:
            read("root ::= " + text if read is read_grammar else text)
        except Unreadable as error:
            assert "\n" not in str(error)
