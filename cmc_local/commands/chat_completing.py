"""Tab in the chat: slash commands, what follows them, and files. Imports prompt_toolkit.

Knows no command: it asks what may come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class SlashCompleter(Completer):
    """Completes lines that begin with a slash."""

    def __init__(self, words: Callable[[str], Sequence[str]]) -> None:
        """`words` says what may follow a command, and with "" which commands there are."""
        self._words = words
        self._files = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """The rest of the word before the cursor, whichever it may become."""
        line = document.text_before_cursor
        if not line.startswith("/"):
            return
        before, _, begun = line.rpartition(" ")
        before = " ".join(before.split())
        for command in ("/save", "/load", "/adapter add"):
            if line.startswith(f"{command} "):
                path = Document(line[len(command) :].lstrip())
                yield from self._files.get_completions(path, complete_event)
        for word in self._words(before):
            if word.startswith(begun):
                yield Completion(f"{word} ", start_position=-len(begun), display=word)
