"""The folder of blocks: its bound under any use, what goes first, and damage on the disk."""

import multiprocessing
import os
import time

import pytest

from cosmos_wds.data.blocks import CHUNK, LEDGER, LOCK, SUFFIX, TEMPORARY, BlockFolder
from cosmos_wds.errors import DataError

SIZE = 3 * CHUNK + 1000  # a block of four chunks, the last one short
LIMIT = 20 * SIZE


def content(number, size=SIZE):
    return bytes((number + i) % 251 for i in range(256)) * (size // 256) + b"z" * (size % 256)


def held(folder):
    """Bytes of all files; those that vanish meanwhile take none."""
    total = 0
    for name in os.listdir(folder):
        try:
            total += os.path.getsize(os.path.join(folder, name))
        except FileNotFoundError:
            continue
    return total


def names(folder):
    return {name.removesuffix(SUFFIX) for name in os.listdir(folder) if name.endswith(SUFFIX)}


def test_blocks_are_kept_and_any_part_read(tmp_path):
    blocks = BlockFolder(tmp_path / "new" / "folder", LIMIT).open()
    assert blocks.get("a", SIZE, 0, SIZE) is None and not blocks.has("a")
    blocks.put("a", content(1))
    assert blocks.has("a")
    for low, high in (
        (0, SIZE),
        (5, 6),
        (CHUNK - 1, CHUNK + 1),
        (SIZE - 3, SIZE),
        (CHUNK, 2 * CHUNK),
    ):
        assert blocks.get("a", SIZE, low, high) == content(1)[low:high]
    blocks.put("a", content(2))  # another thread has fetched it too
    assert blocks.get("a", SIZE, 0, 9) == content(1)[:9]
    BlockFolder(tmp_path / "small", 1000).put("a", content(1))
    assert not (tmp_path / "small").exists()  # it would not fit


def test_the_bound_holds_and_what_was_used_least_lately_goes(tmp_path):
    blocks = BlockFolder(tmp_path, LIMIT).open()
    for number in range(60):
        blocks.put(f"b{number}", content(number))
        assert held(tmp_path) <= LIMIT
        assert blocks.get("b0", SIZE, 0, SIZE) == content(0)  # used all the time
    kept = names(tmp_path)
    assert kept == {"b0", *(f"b{n}" for n in range(60 - len(kept) + 1, 60))}
    assert len(kept) >= 17  # nothing is thrown out without need
    BlockFolder(tmp_path, LIMIT // 4).open()  # another run, with a lower bound
    assert held(tmp_path) <= LIMIT // 4 and "b59" in names(tmp_path)


def test_the_bound_is_exact(tmp_path):
    whole = SIZE + 4 * 4  # with its four checksums
    for extra, kept in ((LEDGER, {"a", "b"}), (LEDGER - 1, {"b"})):
        blocks = BlockFolder(tmp_path / str(extra), 2 * whole + extra).open()
        blocks.put("a", content(1))
        blocks.put("b", content(2))
        assert names(blocks.folder) == kept and held(blocks.folder) <= blocks.limit


@pytest.mark.parametrize("damage", ["byte", "cut", "sum", "longer"])
def test_damage_on_the_disk_is_found(tmp_path, damage, capsys):
    blocks = BlockFolder(tmp_path, LIMIT).open()
    blocks.put("a", content(1))
    path = tmp_path / f"a{SUFFIX}"
    whole = bytearray(path.read_bytes())
    at = {"byte": CHUNK + 7, "sum": SIZE + 5}.get(damage)
    if at:
        whole[at] ^= 1
    path.write_bytes(whole[:-1] if damage == "cut" else whole + b"z" * (damage == "longer"))
    if at:
        assert blocks.get("a", SIZE, 0, CHUNK) == content(1)[:CHUNK]  # another chunk is as it was
    assert blocks.get("a", SIZE, CHUNK, CHUNK + 9) is None
    assert not path.exists()
    assert "damaged on the disk, fetched again" in capsys.readouterr().err


def test_what_a_crash_has_left_is_counted_and_swept(tmp_path):
    blocks = BlockFolder(tmp_path, LIMIT).open()
    for number in range(19):
        blocks.put(f"b{number}", content(number))
    (tmp_path / TEMPORARY).write_bytes(content(1))  # killed while it wrote, room had been made
    (tmp_path / LOCK).write_bytes(b"0000")  # and the count is lost
    blocks.put("c", content(3))
    assert held(tmp_path) <= LIMIT and not (tmp_path / TEMPORARY).exists()
    (tmp_path / TEMPORARY).write_bytes(content(1))
    (tmp_path / "of-the-user.txt").touch()
    blocks.open()
    assert not (tmp_path / TEMPORARY).exists() and (tmp_path / "of-the-user.txt").exists()


def write_many(folder, worker, count):
    blocks = BlockFolder(folder, LIMIT).open()
    for number in range(count):
        name = f"b{number % 30}"
        found = blocks.get(name, SIZE, 0, SIZE)
        assert found in (None, content(number % 30))
        blocks.put(name, content(number % 30))
        blocks.put(f"own{worker}-{number}", content(worker))


def test_several_processes_share_it_and_one_is_killed(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_many, args=(tmp_path, w, 150)) for w in range(3)]
    for worker in workers:
        worker.start()
    most, end = 0, time.monotonic() + 60
    while any(worker.is_alive() for worker in workers):
        assert time.monotonic() < end
        if tmp_path.exists():
            most = max(most, held(tmp_path))
        if most > LIMIT // 2 and workers[2].is_alive():
            workers[2].kill()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[:2]] == [0, 0]
    assert LIMIT // 2 < most <= LIMIT
    assert held(tmp_path) <= LIMIT


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"the cache cannot be written: .*choose another \[data\] ca"
    ):
        BlockFolder(tmp_path / "file" / "cache", LIMIT).open()
