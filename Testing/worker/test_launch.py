from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from medssl.client import LocalCommand, SshCommand, WorkerClient
from medssl.errors import InputError, WorkerDied
from medssl.home import runs_folder
from medssl.prompts import Reference, SlicePrompt
from medssl.results import SliceMask
from medssl.volume import Volume

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")
PATIENCE_S = 120.0

# Takes what OpenSSH takes: options, a host, a command for the remote shell, which here is this machine's.
LIKE_SSH = """#!/bin/sh
echo "$@" > "{log}"
while [ "${{1#-}}" != "$1" ]; do
  case "$1" in -o) shift 2 ;; *) shift ;; esac
done
[ "$1" = "radiologist@gpu-server" ] || exit 255
shift
PATH="{folder}/remote:$PATH" exec sh -c "$*"
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a script in place of ssh on the PATH; what it was called with is in the file that comes back."""

    def install(script: str) -> Path:
        ssh, log = tmp_path / "ssh", tmp_path / "called_with"
        ssh.write_text(script.format(folder=tmp_path, log=log))
        ssh.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return log

    return install


@pytest.fixture
def remote_medssl(tmp_path: Path) -> Path:
    """A `medssl` command that only the host at the other end has."""
    command = tmp_path / "remote" / "medssl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\n[ "$*" = worker ] && exec "{sys.executable}" "{FAKE_WORKER}"\n')
    command.chmod(0o755)
    return command


def test_a_worker_on_another_machine_answers_like_one_here(
    stand_in: Callable[[str], Path], remote_medssl: Path, volume: Volume, click: SlicePrompt
) -> None:
    log = stand_in(LIKE_SSH)
    with WorkerClient(SshCommand(host="radiologist@gpu-server")) as client:
        answers = [event for event in client.predict(volume, click).events() if isinstance(event, SliceMask)]
    assert [answer.index for answer in answers] == [4]
    called_with = log.read_text()
    assert "BatchMode=yes" in called_with
    assert called_with.strip().endswith("radiologist@gpu-server medssl worker")


def test_a_worker_on_another_machine_can_be_named_by_its_path(
    stand_in: Callable[[str], Path], remote_medssl: Path
) -> None:
    stand_in(LIKE_SSH)
    remote_medssl.rename(remote_medssl.with_name("my medssl"))
    program = str(remote_medssl.with_name("my medssl"))
    with WorkerClient(SshCommand(host="radiologist@gpu-server", program=program)) as client:
        assert client.hello().result(PATIENCE_S).pid


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "#!/bin/sh\necho 'ssh: connect to host gpu-server port 22: No route to host' >&2\nexit 255\n",
            r"connection to gpu-server failed \(ssh: connect to host gpu-server port 22: No route to host\); see that"
            " `ssh gpu-server` works without asking",
        ),
        (
            "#!/bin/sh\necho 'me@gpu-server: Permission denied (publickey).' >&2\nexit 255\n",
            r"connection to gpu-server failed \(me@gpu-server: Permission denied \(publickey\)\)",
        ),
        (
            "#!/bin/sh\necho 'sh: medssl: command not found' >&2\nexit 127\n",
            r"gpu-server cannot run the command 'medssl' \(sh: medssl: command not found\); install medssl there",
        ),
        (
            "#!/bin/sh\nexit 1\n",
            "worker on gpu-server ended with exit status 1; see that `ssh gpu-server medssl --version` works",
        ),
        ("#!/bin/sh\nkill -TERM $$\n", "connection to gpu-server was ended by SIGTERM"),
        (
            "#!/bin/sh\necho 'Welcome to the GPU server! Be nice.'\nexec sleep 60\n",
            "No worker answered .*not a message; it begins with b'Welcome to the.*greeting at login, silence that",
        ),
        ("#!/bin/sh\nprintf '\\223MSSL\\n\\001'\n", "No worker answered .*cut short: 7 of 20 bytes"),
    ],
)
def test_a_host_that_fails_is_explained_in_one_sentence(
    stand_in: Callable[[str], Path], script: str, sentence: str
) -> None:
    stand_in(script)
    with WorkerClient(SshCommand(host="gpu-server")) as client, pytest.raises(WorkerDied, match=sentence):
        client.info().result(PATIENCE_S)


def test_a_line_that_breaks_under_a_request_keeps_what_had_come_and_the_next_request_connects_again(
    stand_in: Callable[[str], Path], remote_medssl: Path, volume: Volume, reference: Reference
) -> None:
    stand_in(LIKE_SSH.replace('exec sh -c "$*"', 'sh -c "$*"; echo "Connection reset by peer" >&2; exit 255'))
    with WorkerClient(SshCommand(host="radiologist@gpu-server")) as client:
        ticket = client.propagate(volume, [reference])
        arrived = list(itertools.islice((e for e in ticket.events() if isinstance(e, SliceMask)), 3))
        pid = client.status.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="connection to radiologist@gpu-server failed"):
            ticket.result(PATIENCE_S)
        assert [mask.index for mask in arrived] == [0, 1, 2]
        again = client.propagate(volume, [reference])
        assert sum(isinstance(event, SliceMask) for event in again.events()) == len(volume.voxels_kji)


def test_a_machine_without_ssh_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    client = WorkerClient(SshCommand(host="gpu-server"))
    with pytest.raises(WorkerDied, match="'ssh' does not run"):
        client.info().result(PATIENCE_S)


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=reboot", "me@-host", "a b", "host;reboot", "host\n", "@h"]
)
def test_what_is_not_a_host_is_refused_before_ssh_sees_it(host: str) -> None:
    with pytest.raises(InputError, match="is not a host"):
        SshCommand(host=host)


@pytest.mark.parametrize("host", ["server", "me@server.example.org", "10.0.0.7", "fe80::1", "my_gpu-1"])
def test_ordinary_hosts_are_accepted(host: str) -> None:
    assert SshCommand(host=host).argv()[-2] == host


def test_a_local_worker_imports_this_copy_of_the_package() -> None:
    command = LocalCommand(threads=3, base_environment={"PYTHONPATH": "/elsewhere", "HOME": "/home/me"})
    assert command.argv()[1:] == ["-m", "medssl.worker", "--threads", "3"]
    environment = command.environment()
    first, second = environment["PYTHONPATH"].split(":")
    assert (Path(first) / "medssl" / "worker.py").is_file()
    assert second == "/elsewhere"
    assert environment["HOME"] == "/home/me"


def test_a_users_folder_named_from_here_is_the_same_one_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in the background works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    assert (
        LocalCommand(base_environment={"MEDSSL_HOME": "data"}).environment()["MEDSSL_HOME"]
        == f"{tmp_path}/data"
    )
    monkeypatch.setenv("MEDSSL_HOME", "data")
    assert runs_folder() == tmp_path / "data" / "runs"
    monkeypatch.setenv("MEDSSL_HOME", "~/data")
    assert runs_folder() == Path.home() / "data" / "runs"
