"""A chat that needs no network: a folder with a model and an adapter, and this file.

my-app/model.gguf      any GGUF model
my-app/adapter/        the adapter that steers it (cmc-local export)

python offline_app.py my-app
"""

import sys
from pathlib import Path

from cmc_local import CmcError, Sampling, SteeredModel
from cmc_local.text.prompts import Message

SAMPLING = Sampling(temperature=0, max_tokens=200)


def answer(model: SteeredModel, messages: list[Message]) -> None:
    """Write the answer as it comes, and put it behind the messages."""
    reply = ""
    for piece in model.stream(messages, SAMPLING):
        if piece.notice:
            print(piece.notice, file=sys.stderr)
        print(piece.text, end="", flush=True)
        reply += piece.text
    print()
    messages.append(Message(role="assistant", content=reply))


def main(folder: Path) -> None:
    with SteeredModel.load(folder / "model.gguf", [folder / "adapter"]) as model:
        messages: list[Message] = []
        while True:
            try:
                question = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                return
            if not question:
                messages.clear()  # an empty line begins a new conversation
                continue
            messages.append(Message(role="user", content=question))
            try:
                answer(model, messages)
            except KeyboardInterrupt:  # stops the answer, not the app
                print()
                messages.pop()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python offline_app.py FOLDER (with model.gguf and adapter/ in it)")
    try:
        main(Path(sys.argv[1]))
    except CmcError as error:
        sys.exit(str(error))
