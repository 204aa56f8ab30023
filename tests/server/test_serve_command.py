"""`cmc-local serve`: what is refused before anything is loaded, and what its options become."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import cmc_local
import cmc_local.server
from cmc_local.commands import main
from cmc_local.commands.serve import address, chosen_key, chosen_policy, is_loopback
from cmc_local.errors import CmcError, InputError, UsageError
from cmc_local.server.origins import LOOPBACK
from cmc_local.server.running import listen


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMC_API_KEY", raising=False)


def run(*words: str) -> Result:
    return CliRunner().invoke(main, ["serve", "--port", "0", *words])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "box.lan"])
def test_another_address_needs_a_key(host: str, bundled_models: Path) -> None:
    result = run("--host", host)
    assert result.exit_code == 2
    assert "--api-key-file" in result.output
    assert len(result.output.splitlines()) == 1
    policy = chosen_policy(host, "k", (), ())
    assert policy.any_address
    assert policy.key == "k"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_this_machine_needs_none(host: str) -> None:
    policy = chosen_policy(host, None, (), ())
    assert policy.key is None
    assert not policy.any_address
    assert policy.hosts >= LOOPBACK | {host}


def test_only_loopback_is_this_machine() -> None:
    assert not is_loopback("localhost.example")
    assert not is_loopback("")


def test_names_and_origins_are_checked() -> None:
    policy = chosen_policy("::1", None, ("Box.LAN",), ("https://App.example:8443",))
    assert policy.hosts == LOOPBACK | {"box.lan"}
    assert policy.origins == {"https://app.example:8443"}
    for hosts, origins in ((("box:80",), ()), (("a b",), ()), ((), ("app.example",)), ((), ("*",))):
        with pytest.raises(UsageError, match="--allow-"):
            chosen_policy("::1", None, hosts, origins)


def test_the_key_comes_from_the_option_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    assert chosen_key(None, None) is None
    monkeypatch.setenv("CMC_API_KEY", "from-environment")
    assert chosen_key(None, None) == "from-environment"
    assert chosen_key(None, file) == "from-file"
    assert chosen_key("given", None) == "given"
    with pytest.raises(UsageError, match="exclude each other"):
        chosen_key("given", file)
    with pytest.raises(InputError, match="cannot read"):
        chosen_key(None, tmp_path / "absent")


@pytest.mark.parametrize("key", ["", " ", "two words", "schlüssel", "a\nb"])
def test_a_key_is_one_plain_word(key: str) -> None:
    with pytest.raises(UsageError, match="one word") as error:
        chosen_key(key, None)
    assert not key.strip() or key not in str(error.value)


def test_a_port_in_use_is_one_line(bundled_models: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--port", str(port)])
        assert result.exit_code == 1
        assert f"port {port}" in result.output and "--port" in result.output
        assert len(result.output.splitlines()) == 1


def test_an_address_that_is_none_here_is_one_line() -> None:
    with pytest.raises(CmcError, match=r"cannot listen on 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_addresses_as_in_a_url() -> None:
    assert address(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert address(("::1", 80, 0, 0)) == "[::1]:80"


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, bundled_models: Path
) -> None:
    # The package knows its part too, and would keep the one that is imported below.
    monkeypatch.setattr(cmc_local, "server", cmc_local.server)
    for name in [one for one in sys.modules if one.startswith("cmc_local.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run()
    assert result.exit_code == 1
    assert 'pip install "cmc-local[serve]"' in result.output
    assert len(result.output.splitlines()) == 1
