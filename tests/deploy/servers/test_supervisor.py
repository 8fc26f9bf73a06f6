"""Children of ours: started, watched, stopped in order, and gone when the process that started them is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.servers import supervisor as processes
from deploy.servers.supervisor import Role, StartError, Supervisor, kill, log_tail, spawn, terminate

pytestmark = pytest.mark.servers

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


def until(happened: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        threading.Event().wait(0.01)


def is_alive(pid: int) -> bool:
    """Also false for a zombie: an orphan of ours may wait for the reaper of its new parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def role(name: str, code: str, folder: Path) -> Role:
    return Role(name, (sys.executable, "-c", code), folder / f"{name}.log")


def has_said(path: Path, text: str) -> Callable[[], bool]:
    return lambda: text in log_tail(path)


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    with Supervisor() as supervisor:
        yield supervisor


def test_a_role_writes_to_its_log_and_sees_only_the_environment_it_was_given(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    code = "import os, sys; print(sorted(os.environ)); sys.stderr.write('and errors')"
    log = tmp_path / "deep" / "a.log"
    supervisor.start(Role("a", (sys.executable, "-c", code), log, {"ONLY": "this", "LC_ALL": "C"}))
    until(has_said(log, "and errors"))
    assert "'ONLY'" in log.read_text()
    assert "'HOME'" not in log.read_text()


def test_waiting_returns_when_the_check_is_true(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(role("a", SLEEPER, tmp_path))
    supervisor.wait_ready("a", has_said(tmp_path / "a.log", "up"), 10)
    assert supervisor.crash() is None


def test_waiting_ends_at_once_when_the_role_ends_first(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(role("a", "raise SystemExit('no such topic')", tmp_path))
    with pytest.raises(StartError, match=r"(?s)a ended with status 1 .*no such topic"):
        supervisor.wait_ready("a", lambda: False, 30)


def test_waiting_ends_at_its_deadline_with_the_last_lines(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(role("a", SLEEPER, tmp_path))
    until(has_said(tmp_path / "a.log", "up"))
    with pytest.raises(StartError, match=r"(?s)a was not ready within 0.05 s.*up"):
        supervisor.wait_ready("a", lambda: False, 0.05)


def test_the_first_crash_is_kept_and_shows_the_end_of_this_runs_log_only(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    (tmp_path / "b.log").write_text("an earlier run\n")
    supervisor.start(role("a", SLEEPER, tmp_path))
    supervisor.start(role("b", "for i in range(100): print('line', i)\nraise SystemExit(3)", tmp_path))
    until(lambda: supervisor.crash() is not None)
    crash = supervisor.crash()
    assert crash is not None
    assert (crash.name, crash.status) == ("b", 3)
    assert crash.tail.splitlines()[0] == "line 80"
    assert "an earlier run" not in str(crash)
    supervisor.stop_role("a")
    assert supervisor.crash() is crash


def test_a_role_that_says_why_it_ends_is_reported_by_that_sentence(supervisor: Supervisor, tmp_path: Path) -> None:
    code = "import sys; print('Traceback …'); print('  File'); print('perseid: no such topic'); sys.exit(1)"
    supervisor.start(role("a", code, tmp_path))
    until(lambda: supervisor.crash() is not None)
    assert str(supervisor.crash()) == f"a ended with status 1: no such topic (log: {tmp_path / 'a.log'})"


def test_a_role_killed_from_outside_is_reported_with_its_signal(supervisor: Supervisor, tmp_path: Path) -> None:
    pid = supervisor.start(role("a", SLEEPER, tmp_path))
    until(has_said(tmp_path / "a.log", "up"))
    os.kill(pid, signal.SIGKILL)
    until(lambda: supervisor.crash() is not None)
    assert "a was killed by signal 9" in str(supervisor.crash())


def test_roles_stop_together_and_a_stubborn_one_is_killed(tmp_path: Path) -> None:
    """Each of the polite ones waits for the other: one after the other they would not end in time."""
    polite = (
        "import pathlib, signal, time\n"
        "def end(*_):\n"
        f"    folder = pathlib.Path({str(tmp_path)!r})\n"
        "    (folder / 'NAME.asked').touch()\n"
        "    while len(list(folder.glob('*.asked'))) < 2:\n"
        "        time.sleep(0.01)\n"
        "    raise SystemExit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)"
    )
    supervisor = Supervisor()
    for name, code in (("first", polite), ("stubborn", STUBBORN), ("last", polite)):
        supervisor.start(role(name, code.replace("NAME", name), tmp_path))
        supervisor.wait_ready(name, has_said(tmp_path / f"{name}.log", "up"), 10)
    assert supervisor.stop(grace_s=5.0) == {"last": 0, "stubborn": -9, "first": 0}
    assert supervisor.crash() is None
    assert supervisor.stop() == {}


def test_killing_a_child_takes_what_it_started_with_it(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    child = spawn([sys.executable, "-c", code], log=tmp_path / "a.log")
    until(has_said(tmp_path / "a.log", "up"))
    grandchild = int((tmp_path / "a.log").read_text().split()[0])
    assert kill(child) == -signal.SIGKILL
    until(lambda: not is_alive(grandchild))


def test_names_are_unique_and_unknown_ones_are_refused(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.start(role("a", SLEEPER, tmp_path))
    with pytest.raises(ValueError, match="'a' is running already"):
        supervisor.start(role("a", SLEEPER, tmp_path))
    with pytest.raises(ValueError, match="no role 'b' is running; running: a"):
        supervisor.stop_role("b")


def test_an_unknown_program_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such program"):
        spawn(["/no/such/program"], log=tmp_path / "log")
    with pytest.raises(ValueError, match="no such program"):
        spawn([], log=tmp_path / "log")


def test_children_may_only_be_started_from_the_main_thread(tmp_path: Path) -> None:
    errors: list[str] = []

    def start() -> None:
        try:
            spawn([sys.executable, "-c", SLEEPER], log=tmp_path / "log")
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert "main thread" in errors[0]


def test_standard_input_is_given_and_closed(tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.read()[::-1])"
    child = spawn([sys.executable, "-c", code], log=tmp_path / "log", stdin=b"abc")
    assert child.wait(10) == 0
    assert log_tail(tmp_path / "log") == "cba"
    assert terminate(child, 1) == 0


@pytest.mark.parametrize("mode", ["exec", "watch"])
def test_a_child_dies_when_its_parent_is_killed(mode: str, tmp_path: Path) -> None:
    """The parent is a process of its own that starts a child through the guard, in both of the guard's ways."""
    pid_file = tmp_path / "pid"
    child = f"import os, time; open({str(pid_file)!r} + '~', 'w').write(str(os.getpid())); "
    child += f"os.rename({str(pid_file)!r} + '~', {str(pid_file)!r}); time.sleep(60)"
    guard = [sys.executable, processes.__file__, mode]
    parent_code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([*{guard!r}, str(os.getpid()), '15', sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    until(pid_file.exists)
    pid = int(pid_file.read_text())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    until(lambda: not is_alive(pid))


def test_the_watching_guard_passes_signals_and_the_exit_status_on(tmp_path: Path) -> None:
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print('up', flush=True); time.sleep(9)"
    with (tmp_path / "log").open("wb") as log:
        guard = subprocess.Popen(
            [sys.executable, processes.__file__, "watch", str(os.getpid()), "9", sys.executable, "-c", code], stdout=log
        )
    until(has_said(tmp_path / "log", "up"))
    guard.send_signal(signal.SIGTERM)
    assert guard.wait(10) == 7


def test_the_guard_starts_nothing_for_a_parent_that_is_gone(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    argv = [sys.executable, processes.__file__, "exec", "1", "9", sys.executable, "-c", f"open({str(touched)!r}, 'w')"]
    assert subprocess.run(argv, check=False).returncode == 1
    assert not touched.exists()
