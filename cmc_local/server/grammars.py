"""How much a grammar makes of llama.cpp: whether it ends, and how many places it keeps in mind.

llama.cpp follows every way to read what was written so far at once, each as a place in the grammar:
up to `m * n` in `([a-z]{0,m}){0,n}`, and more with each letter in `a ::= ([a-z]+ a?)+`. It goes on
for ever where a rule begins with itself behind what may be empty. Here is told apart what the next
character decides from what it leaves open; only the latter counts. That is an estimate, which does
not see everything: in `a ::= "x" a "y" | "x" a "z" | "x"` there are more places with each letter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from cmc_local.server.gbnf import Choice, Literal, Name, Part, Repeat, Unreadable

_PASSES = 30


def places(rules: Mapping[str, Choice]) -> int:
    """How many places at most are kept in mind. Raises Unreadable for a grammar without end."""
    shapes = _Shapes(rules)
    return _Places(rules, shapes).most()


class _Shapes:
    """What each part may begin with, and what it may go on with where it may as well end.

    Sets of characters are the bits of a number, as `Literal.first`.
    """

    def __init__(self, rules: Mapping[str, Choice]) -> None:
        self._rules = rules
        self._empty: set[str] = set()
        self._first: dict[str, int] = {}
        self._more: dict[str, int] = {}
        self._any: dict[str, int] = {}
        self.order, _ = _post_order(rules, lambda name: _names(rules[name]))
        self._settle(self._find_empty)
        begins, circle = _post_order(rules, lambda name: self._first_names(rules[name]))
        if circle is not None:
            raise Unreadable(f"the rule {circle} can begin with itself")
        for name in begins:
            self._first[name] = self.first(rules[name])
        self._settle(lambda name: self._widen(self._any, name, self.anywhere))
        self._settle(lambda name: self._widen(self._more, name, self.more))

    def empty(self, part: Part) -> bool:
        """Whether it may be empty."""
        match part:
            case Name(name):
                return name in self._empty
            case Repeat(inner, least, _):
                return not least or self.empty(inner)
            case Choice(options):
                return any(all(map(self.empty, option)) for option in options)
        return False

    def first(self, part: Part) -> int:
        """The characters that it may begin with."""
        match part:
            case Literal(first):
                return first
            case Name(name):
                return self._first.get(name, 0)
            case Repeat(inner):
                return self.first(inner)
            case Choice(options):
                return _union(map(self.first_of, options))

    def first_of(self, parts: Iterable[Part]) -> int:
        """The characters that a sequence may begin with."""
        found = 0
        for part in parts:
            found |= self.first(part)
            if not self.empty(part):
                break
        return found

    def more(self, part: Part) -> int:
        """The characters that it may go on with where it may as well have ended."""
        match part:
            case Name(name):
                return self._more.get(name, 0)
            case Repeat(inner, least, most):
                varies = least != most or self.empty(inner)
                return self.more(inner) | (self.first(inner) if varies else 0)
            case Choice(options):
                found = _union(map(self._more_of, options))
                if self.empty(part):
                    found |= self.first(part)
                if self.alike(options):  # one may be how another begins
                    found |= self.anywhere(part)
                return found
        return 0

    def anywhere(self, part: Part) -> int:
        """All characters in it, literals' first ones."""
        match part:
            case Name(name):
                return self._any.get(name, 0)
            case Repeat(inner):
                return self.anywhere(inner)
            case Choice(options):
                return _union(self.anywhere(one) for option in options for one in option)
        return self.first(part)

    def alike(self, options: Iterable[Iterable[Part]]) -> bool:
        """Whether two of them may begin with the same character."""
        seen = 0
        for first in map(self.first_of, options):
            if seen & first:
                return True
            seen |= first
        return False

    def _more_of(self, parts: tuple[Part, ...]) -> int:
        found = 0
        for part in reversed(parts):
            found |= self.more(part)
            if not self.empty(part):
                break
            found |= self.first(part)
        return found

    def _first_names(self, part: Part) -> Iterator[str]:
        """The rules that it may begin with."""
        match part:
            case Name(name):
                yield name
            case Repeat(inner):
                yield from self._first_names(inner)
            case Choice(options):
                for option in options:
                    for one in option:
                        yield from self._first_names(one)
                        if not self.empty(one):
                            break

    def _find_empty(self, name: str) -> bool:
        if name in self._empty or not self.empty(self._rules[name]):
            return False
        self._empty.add(name)
        return True

    def _widen(self, known: dict[str, int], name: str, look: Callable[[Part], int]) -> bool:
        before, known[name] = known.get(name, 0), look(self._rules[name])
        return known[name] != before

    def _settle(self, change: Callable[[str], bool]) -> None:
        """Repeat a change until none is left: rules may hold themselves."""
        for _ in range(_PASSES):
            changed = [name for name in self.order if change(name)]
            if not changed:
                return
        raise Unreadable("its rules name each other in too many ways")


class _Places:
    """The numbers of places. Rules come after those that they name, unless they hold themselves."""

    def __init__(self, rules: Mapping[str, Choice], shapes: _Shapes) -> None:
        self._rules, self._shapes = rules, shapes
        self._all: dict[str, int] = {}
        self._together: dict[str, int] = {}
        self._loose: dict[str, bool] = {}
        self._endless: set[str] = set()

    def most(self) -> int:
        for name in self._shapes.order:
            rule = self._rules[name]
            # A name that has not been met yet is one of a rule around this one: it holds itself.
            if any(one in self._endless or one not in self._all for one in _names(rule)):
                self._endless.add(name)
            self._all[name] = self._all_of(rule)
            self._together[name] = self._of(rule)
            self._loose[name] = self._is_loose(rule)
        return max(self._together.values(), default=0)

    def _all_of(self, part: Part) -> int:
        """All places within it: as many as may be in mind if it is entered again and again."""
        match part:
            case Name(name):
                return self._all.get(name, 1)
            case Repeat(inner, least, most):
                return self._all_of(inner) * (least + 1 if most is None else most)
            case Choice(options):
                return sum(self._all_of(one) for option in options for one in option)
        return 1

    def _of(self, part: Part) -> int:
        """The places that are in mind together if it is entered once."""
        match part:
            case Name(name):
                return self._together.get(name, 1)
            case Repeat(inner):
                return self._all_of(part) if self._is_loose(part) else self._of(inner)
            case Choice(options):
                each = map(self._of_sequence, options)
                return sum(each) if self._shapes.alike(options) else max(each)
        return 1

    def _of_sequence(self, parts: tuple[Part, ...]) -> int:
        most = together = 0
        loose = False
        for part, open_before in zip(parts, self._open(parts), strict=True):
            loose = loose or open_before
            if loose:
                together += self._all_of(part)
            else:
                together = max(self._of(part), together if self._shapes.empty(part) else 0)
            most = max(most, together)
            loose = loose or self._is_loose(part)
        return most

    def _is_loose(self, part: Part) -> bool:
        """Whether it leaves open where in it a text has come, so that it may end at many places."""
        match part:
            case Name(name):
                return self._loose.get(name, False)
            case Repeat(inner, _, most):
                again = self._shapes.more(inner) & self._shapes.first(inner)
                if again and most != 1:
                    self._refuse_endless(inner)
                    return True
                return self._is_loose(inner)
            case Choice(options):
                return any(
                    any(self._open(option)) or any(map(self._is_loose, option))
                    for option in options
                )
        return False

    def _open(self, parts: tuple[Part, ...]) -> list[bool]:
        """For each part whether it may begin with what the ones before it may go on with."""
        found, more = [], 0
        for part in parts:
            found.append(bool(more & self._shapes.first(part)))
            if found[-1]:
                self._refuse_endless(part)
            more = self._shapes.more(part) | (more if self._shapes.empty(part) else 0)
        return found

    def _refuse_endless(self, part: Part) -> None:
        """Entered at many places of a text, a rule that holds itself has more with each letter."""
        if any(name in self._endless or name not in self._all for name in _names(part)):
            told = "a rule that holds itself begins where what is before it may also go on"
            raise Unreadable(f"{told}: let the next character decide")


def _union(sets: Iterable[int]) -> int:
    found = 0
    for one in sets:
        found |= one
    return found


def _names(part: Part) -> Iterator[str]:
    """All rules that a part names."""
    match part:
        case Name(name):
            yield name
        case Repeat(inner):
            yield from _names(inner)
        case Choice(options):
            for option in options:
                for one in option:
                    yield from _names(one)


def _post_order(
    rules: Mapping[str, Choice], following: Callable[[str], Iterable[str]]
) -> tuple[list[str], str | None]:
    """The names, each after those that follow from it; and one that follows from itself.

    Without recursion: rules may name each other thousands deep.
    """
    order: list[str] = []
    circle = None
    state = dict.fromkeys(rules, "new")
    for first in rules:
        path: list[tuple[str, Iterator[str]]] = []
        after: str | None = first
        while True:
            if after is not None and state.get(after) == "new":
                state[after] = "open"
                path.append((after, iter(following(after))))
            elif after is not None and state.get(after) == "open":
                circle = after
            if not path:
                break
            after = next(path[-1][1], None)
            if after is None:
                order.append(path[-1][0])
                state[path.pop()[0]] = "done"
    return order, circle
