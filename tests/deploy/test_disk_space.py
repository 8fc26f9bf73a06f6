"""A disk that is full: each command that writes says the folder and the remedy, and leaves nothing half-made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deploy.cli import run
from deploy.disk_space import room_in
from deploy.servers.ports import free_port
from streams.folder.spool import Spool
from tests.support.disks import SmallDisk, small_disk
from tests.support.folders import START_S, item, write_folder

pytestmark = pytest.mark.servers


def write_bytes(folder: Path) -> None:
    (folder / "file").write_bytes(b"x" * 10_000_000)


def write_tensors(folder: Path) -> None:
    save_file({"a": torch.zeros(10_000_000)}, folder / "file")


def write_array(folder: Path) -> None:
    np.save(folder / "file.npy", np.zeros(10_000_000))


def write_rows(folder: Path) -> None:
    spool = Spool(folder)
    for number in range(100_000):
        spool.add("contexts", number, "oslo", number, b"x" * 1_000)


@pytest.mark.parametrize("write", [write_bytes, write_tensors, write_array, write_rows])
def test_whatever_writes_the_folder_and_the_remedy_are_said(tmp_path: Path, write: object) -> None:
    assert callable(write)
    with small_disk(tmp_path) as disk:
        said = f"no space left in {disk.folder}: free some, then start again"
        with pytest.raises(OSError, match=said), room_in(tmp_path, disk.folder):
            write(disk.folder)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), room_in(tmp_path / "new"):
        (tmp_path / "no" / "file").read_bytes()


def test_a_full_folder_is_refused_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path) as disk:
        disk.fill()
        assert run(["up", "--state", str(disk.folder / "state"), "--api-port", str(free_port())]) == 1
        said = capsys.readouterr()
        assert said.err == f"perseid: no space left in {disk.folder / 'state'}: free some, then start again\n"
        assert said.out == ""
        assert not (disk.folder / "state").exists()


def table(path: Path, rows: int) -> Path:
    lines = (f"u{n},i{n % 7},view,{START_S + n}" for n in range(rows))
    path.write_text("user,item,kind,time\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("begun", [False, True])
def test_a_conversion_leaves_no_half_made_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    """The disk is full from the start, or in the midst of the events."""
    events, shop = table(tmp_path / "events.csv", 200_000), tmp_path / "shop.toml"
    shop.write_text('[events.fields]\nuser_id = "user"\nitem_id = "item"\nkind = "kind"\ntime = "time"\n')
    with small_disk(tmp_path, "100k" if begun else "4m") as disk:
        if not begun:
            disk.fill()
        out = disk.folder / "data" / "shop"
        assert run(["convert", "table", "--events", str(events), "--map", str(shop), str(out)]) == 1
        assert f"no space left in {out}: free some, then start again" in capsys.readouterr().err
        assert not (disk.folder / "data").exists()


@pytest.mark.slow
def test_a_training_says_where_there_is_no_room(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [(f"u{user}", f"i{(user + step) % 5}", "view", START_S + step) for step in range(20) for user in range(20)]
    data = write_folder(tmp_path / "data", rows, [item(f"i{n}", title=f"thing {n}") for n in range(5)])
    with small_disk(tmp_path, "100k") as disk:
        out, texts = disk.folder / "models", tmp_path / "texts"
        arguments = ["--out", str(out), "--texts", str(texts), "--epochs", "1", "--without", "text", "--quiet"]
        assert run(["train", str(data), *arguments]) == 1
        assert f"perseid: no space left in {out}: free some, then start again" in capfd.readouterr().err


def test_a_small_disk_is_small(tmp_path: Path) -> None:
    with small_disk(tmp_path) as disk:
        assert isinstance(disk, SmallDisk) and 0 < disk.free <= 4 << 20
        disk.fill()
        assert disk.free == 0
        disk.clear()
        assert disk.free > 0
