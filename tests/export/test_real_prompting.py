"""How a base is asked, with a template and without, with help and without."""

from __future__ import annotations

from cmc_export.real import prompting
from cmc_export.real.prompting import Help

TRAIN = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(9)]


def test_a_base_with_a_template_gets_messages() -> None:
    (view,) = prompting.views(["Who?"], has_template=True)
    assert view.messages == ({"role": "user", "content": "Who?"},)
    assert view.base_prompt == "gguf"


def test_a_base_without_one_gets_the_deltas_form_as_text() -> None:
    (view,) = prompting.views(["Who?"], has_template=False)
    assert view.messages[0]["content"] == "<|user|>\nWho?\n<|assistant|>\n"
    assert view.base_prompt == "raw"


def test_a_lora_is_asked_in_its_form_whatever_the_base_has() -> None:
    asked = prompting.views(["Who?"], has_template=True, form=True)
    assert asked == prompting.views(["Who?"], has_template=False)


def test_help_stands_before_the_question() -> None:
    help_ = Help("both", "Be brief.", (("Q?", "A."),))
    (view,) = prompting.views(["Who?"], has_template=True, help_=help_)
    assert [one["role"] for one in view.messages] == ["system", "user", "assistant", "user"]
    (view,) = prompting.views(["Who?"], has_template=False, help_=help_)
    assert view.messages[0]["content"] == (
        "Be brief.\n<|user|>\nQ?\n<|assistant|>\nA.\n<|user|>\nWho?\n<|assistant|>\n"
    )


def test_examples_as_text_end_where_the_answer_begins() -> None:
    help_ = Help("text", shots=(("Q?", "A."),), as_text=True)
    (view,) = prompting.views(["Who?"], has_template=False, help_=help_)
    assert view.messages[0]["content"] == "Question: Q?\nAnswer: A.\n\nQuestion: Who?\nAnswer:"


def test_the_rival_has_every_system_text_and_sets_of_training_examples() -> None:
    found = prompting.candidates(["one", "two"], TRAIN)
    assert [one.system for one in found if one.system] == ["one", "two", "one"]
    assert {len(one.shots) for one in found} == {0, 3, 5}
    assert all(shot[0] in {one["question"] for one in TRAIN} for one in found for shot in one.shots)
    assert len({one.name for one in found}) == len(found)
