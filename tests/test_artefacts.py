from __future__ import annotations

import hashlib
import json
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cascade.storage.artefacts import ArraySpec, Artefact, Store
from cascade.storage.errors import CorruptItem, StoreError
from cascade.storage.keys import StageKey

KEY = StageKey("embed", 1, {"side": 4, "words": "naïve"}, {}, {"sam": "ab" * 32})
SPECS = {"values": ArraySpec((2, 3), "float16"), "counts": ArraySpec((8,), "uint32", compress=True)}
NAMES = ("a", "b/with words", "ü")

WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from cascade.storage.artefacts import ArraySpec, Store
from cascade.storage.keys import StageKey
key = StageKey("embed", 1, {"side": 4, "words": "naïve"}, {}, {"sam": "ab" * 32})
specs = {"values": ArraySpec((2, 3), "float16"), "counts": ArraySpec((8,), "uint32", compress=True)}
artefact = Store(Path(sys.argv[1])).artefact(key)
def content(seed):
    rng = np.random.default_rng(seed)
    return {"values": rng.random((2, 3)).astype(np.float16), "counts": rng.integers(0, 9, 8).astype(np.uint32)}
def wait(word):
    print(word, flush=True)
    sys.stdin.readline()
"""


def content(seed: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return {"values": rng.random((2, 3)).astype(np.float16), "counts": rng.integers(0, 9, 8).astype(np.uint32)}


def record(seed: int) -> dict[str, Any]:
    return {"seed": seed, "score": seed / 7, "points": [[1.5, seed]], "none": None, "text": "é\n\"'"}


def write(artefact: Artefact, **seeds: int) -> None:
    with artefact.writing(seeds, SPECS):
        for item, seed in seeds.items():
            artefact.write(item, content(seed), record(seed))


def assert_holds(artefact: Artefact, item: str, seed: int) -> None:
    read = artefact.read(item)
    assert read.record == record(seed)
    assert set(read.arrays) == set(SPECS)
    for name, value in content(seed).items():
        assert read.arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(read.arrays[name], value)


def chunks(artefact: Artefact, name: str = "values") -> list[Path]:
    """Chunk files in the order of their rows."""
    return sorted(path for path in (artefact.path / name / "c").rglob("*") if path.is_file())


def ledger(artefact: Artefact) -> Path:
    return artefact.path / "ledger.jsonl"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def artefact(store: Store) -> Artefact:
    return store.artefact(KEY)


@pytest.fixture
def reopened(store: Store) -> Callable[[], Artefact]:
    """Another process' view: an object that remembers nothing."""
    return lambda: store.artefact(KEY)


def test_an_artefact_is_nothing_on_disk_until_it_is_written(store: Store, artefact: Artefact) -> None:
    assert not artefact.exists
    assert artefact.done() == {}
    assert artefact.missing(["a", "b"]) == {"a", "b"}
    assert not store.root.exists()
    assert store.stored() == []


def test_items_come_back_as_they_were_written(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    seeds = {name: number for number, name in enumerate(NAMES)}
    write(artefact, **seeds)
    for view in (artefact, reopened()):
        for item, seed in seeds.items():
            assert_holds(view, item, seed)
            assert view.record(item) == record(seed)
        assert view.done() == {item: record(seed) for item, seed in seeds.items()}
        assert view.missing([*NAMES, "z"]) == {"z"}


def test_zeros_are_stored_and_are_not_absence(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    zeros = {"values": np.zeros((2, 3), np.float16), "counts": np.zeros(8, np.uint32)}
    with artefact.writing(["a"], SPECS):
        artefact.write("a", zeros, {})
    assert len(chunks(artefact, "values")) == len(chunks(artefact, "counts")) == 1
    read = reopened().read("a")
    np.testing.assert_array_equal(read.arrays["values"], zeros["values"])
    assert read.record == {}


def test_an_item_may_have_some_arrays_or_none(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    with artefact.writing(["none", "some"], SPECS):
        artefact.write("none", {}, {"no_prompt": True})
        artefact.write("some", {"counts": content(3)["counts"]}, {})
    assert reopened().read("none").arrays == {}
    assert reopened().read("none").record == {"no_prompt": True}
    assert set(reopened().read("some").arrays) == {"counts"}


def test_an_artefact_may_have_no_array_at_all(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    with artefact.writing(["a"], {}):
        artefact.write("a", {}, record(1))
    assert reopened().read("a").record == record(1)


def test_a_partial_read_opens_only_what_is_named(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1)
    for path in chunks(artefact, "counts"):
        path.unlink()
    read = reopened().read("a", only=["values", "absent"])
    assert set(read.arrays) == {"values"}
    with pytest.raises(CorruptItem, match="counts"):
        reopened().read("a", only=["counts"])


def test_growth_keeps_the_bytes_of_earlier_items(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1, b=2)
    before = {path: path.read_bytes() for name in SPECS for path in chunks(artefact, name)}
    lines = ledger(artefact).read_bytes()
    write(reopened(), c=3, a=1, d=4)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert ledger(artefact).read_bytes().startswith(lines)
    for item, seed in {"a": 1, "b": 2, "c": 3, "d": 4}.items():
        assert_holds(reopened(), item, seed)


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_an_item_not_done(artefact: Artefact, reopened: Callable[[], Artefact], kept: int) -> None:
    write(artefact, a=1, b=2)
    whole = ledger(artefact).read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    end = start + kept if kept > 0 else len(whole) + kept - 1
    ledger(artefact).write_bytes(whole[:end])
    assert set(reopened().done()) == {"a"}
    write(reopened(), b=2, c=3)
    for item, seed in {"a": 1, "b": 2, "c": 3}.items():
        assert_holds(reopened(), item, seed)


def test_an_item_can_be_forgotten_behind_a_torn_line(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1, b=2)
    ledger(artefact).write_bytes(ledger(artefact).read_bytes()[:-9])
    reopened().forget("a")
    assert reopened().done() == {}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("array", SPECS)
@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
def test_a_damaged_chunk_is_never_read_as_other_numbers(
    artefact: Artefact, reopened: Callable[[], Artefact], array: str, damage: Callable[[Path], None]
) -> None:
    write(artefact, a=1, b=2, c=3)
    damage(chunks(artefact, array)[1])
    with pytest.raises(CorruptItem, match=array) as error:
        reopened().read("b")
    assert (error.value.artefact, error.value.item) == (f"embed/{KEY.digest}", "b")
    assert "\n" not in str(error.value)
    assert_holds(reopened(), "a", 1)
    assert_holds(reopened(), "c", 3)


def test_another_items_chunk_is_not_taken_for_ones_own(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1, b=2)
    first, second = chunks(artefact)
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptItem):
        reopened().read("a")


def edit_line(artefact: Artefact, item: str, **changes: Any) -> None:
    lines = [json.loads(line) for line in ledger(artefact).read_text(encoding="utf-8").splitlines()]
    edited = [line | changes if line["item"] == item else line for line in lines]
    ledger(artefact).write_text("".join(json.dumps(line) + "\n" for line in edited), encoding="utf-8")


@pytest.mark.parametrize("changes", [{"record": record(5)}, {"row": 1}, {"arrays": {}}, {"digest": "0" * 32}])
def test_an_edited_ledger_line_is_damage(
    artefact: Artefact, reopened: Callable[[], Artefact], changes: dict[str, Any]
) -> None:
    write(artefact, a=1, b=2)
    edit_line(artefact, "a", **changes)
    with pytest.raises(CorruptItem):
        reopened().read("a")
    assert_holds(reopened(), "b", 2)


def test_digests_of_the_first_kind_are_still_checked(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    """A ledger line as it was written when arrays had BLAKE2b digests, in the same order of bytes."""
    write(artefact, a=1, b=2)
    digests = {
        name: hashlib.blake2b(
            f"a|{name}|{value.dtype.str}|{value.shape}|".encode() + value.tobytes(), digest_size=16
        ).hexdigest()
        for name, value in content(1).items()
    }
    whole = json.dumps(["a", record(1), digests], sort_keys=True, separators=(",", ":")).encode()
    edit_line(artefact, "a", arrays=digests, digest=hashlib.blake2b(whole, digest_size=16).hexdigest())
    assert_holds(reopened(), "a", 1)
    first, second = chunks(artefact)
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptItem, match="differs from its digest"):
        reopened().read("a")


def test_a_record_is_verified_without_its_arrays_too(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1)
    edit_line(artefact, "a", record=record(5))
    with pytest.raises(CorruptItem):
        reopened().record("a")


def test_a_forgotten_item_is_computed_again(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    write(artefact, a=1, b=2)
    flip(chunks(artefact)[0])
    artefact.forget("a")
    for view in (artefact, reopened()):
        assert view.missing(["a", "b"]) == {"a"}
        with pytest.raises(StoreError, match="not in the store"):
            view.read("a")
    write(reopened(), a=7)
    assert_holds(reopened(), "a", 7)
    assert_holds(reopened(), "b", 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_record_with_nan_is_refused_and_leaves_no_line(
    artefact: Artefact, reopened: Callable[[], Artefact], value: float
) -> None:
    with artefact.writing(["a", "b"], SPECS):
        with pytest.raises(ValueError, match="JSON"):
            artefact.write("a", content(1), {"score": value})
        artefact.write("b", content(2), record(2))
    assert set(artefact.done()) == set(reopened().done()) == {"b"}
    assert len(ledger(artefact).read_text(encoding="utf-8").splitlines()) == 1


def test_the_callback_follows_every_write(artefact: Artefact) -> None:
    seen: list[set[str]] = []
    artefact.on_write = lambda: seen.append(set(artefact.done()))
    write(artefact, a=1, b=2)
    assert seen == [{"a"}, {"a", "b"}]


def test_threads_may_write_different_items(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    items = {f"item {number}": number for number in range(24)}
    with artefact.writing(items, SPECS):

        def work(part: int) -> None:
            for item, seed in list(items.items())[part::4]:
                artefact.write(item, content(seed), record(seed))

        threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for item, seed in items.items():
        assert_holds(reopened(), item, seed)


def as_in_another_process(worker: Artefact) -> Artefact:
    return cast("Artefact", pickle.loads(pickle.dumps(worker)))


def test_workers_write_rows_of_their_own_and_the_coordinator_takes_over_their_lines(
    artefact: Artefact, reopened: Callable[[], Artefact]
) -> None:
    with artefact.writing(NAMES, SPECS):
        workers = [as_in_another_process(artefact.for_worker([name])) for name in reversed(NAMES)]
        for seed, (worker, name) in enumerate(zip(workers, reversed(NAMES), strict=True)):
            worker.write(name, content(seed), record(seed))
        assert len(chunks(artefact)) == 3
        assert len(list(artefact.path.glob("ledger.*.jsonl"))) == 3
        assert set(reopened().done()) == set(NAMES)
    assert not list(artefact.path.glob("ledger.*.jsonl"))
    assert [json.loads(line)["item"] for line in ledger(artefact).read_text().splitlines()] == list(NAMES)
    for seed, name in enumerate(reversed(NAMES)):
        assert_holds(artefact, name, seed)
        assert_holds(reopened(), name, seed)


def test_a_worker_may_write_only_what_was_allotted_to_it(artefact: Artefact) -> None:
    with artefact.writing(NAMES, SPECS):
        worker = as_in_another_process(artefact.for_worker(["a"]))
        with pytest.raises(KeyError):
            worker.write("ü", content(0), record(0))


def test_what_workers_finished_before_the_coordinator_was_killed_is_kept(
    artefact: Artefact, reopened: Callable[[], Artefact]
) -> None:
    with artefact.writing(["a", "ü"], SPECS):
        pass
    with artefact.writing(["a", "ü"], SPECS):
        worker = as_in_another_process(artefact.for_worker(["a", "ü"]))
        worker.write("a", content(1), record(1))
        worker.write("ü", content(2), record(2))
        (part,) = artefact.path.glob("ledger.*.jsonl")
        left = part.read_bytes()[:-9]  # the second line torn, as by a kill
    part.write_bytes(left)
    ledger(artefact).write_bytes(b"")
    assert set(reopened().done()) == {"a"}
    write(reopened(), ü=5)
    assert not part.exists()
    assert_holds(reopened(), "a", 1)
    assert_holds(reopened(), "ü", 5)


def test_an_item_in_a_workers_ledger_can_be_forgotten(artefact: Artefact, reopened: Callable[[], Artefact]) -> None:
    with artefact.writing(["a"], SPECS):
        as_in_another_process(artefact.for_worker(["a"])).write("a", content(1), record(1))
        left = next(artefact.path.glob("ledger.*.jsonl")).read_bytes()
    (artefact.path / "ledger.0.jsonl").write_bytes(left)
    ledger(artefact).write_bytes(b"")
    reopened().forget("a")
    assert not reopened().done()


def test_a_writer_that_is_killed_leaves_finished_items_and_no_lock(
    store: Store, artefact: Artefact, reopened: Callable[[], Artefact]
) -> None:
    # The third item's arrays are on disk and its line is not when the kill comes.
    script = WRITER + (
        "class Slow(dict):\n"
        "    def items(self):\n"
        "        yield from super().items()\n"
        "        wait('payload written')\n"
        "with artefact.writing(['a', 'b', 'c'], specs):\n"
        "    artefact.write('a', content(1), {'seed': 1})\n"
        "    artefact.write('b', content(2), {'seed': 2})\n"
        "    artefact.write('c', Slow(content(3)), {'seed': 3})\n"
    )
    with child(script, store.root) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "payload written\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    FileLock(artefact.path.with_suffix(".lock")).acquire(timeout=0).lock.release()
    assert reopened().missing("abc") == {"c"}
    for item, seed in {"a": 1, "b": 2}.items():
        np.testing.assert_array_equal(reopened().read(item).arrays["values"], content(seed)["values"])
    write(reopened(), c=5)
    assert_holds(reopened(), "c", 5)
    assert reopened().read("a").record == {"seed": 1}


def child(script: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_second_writer_waits_and_keeps_what_the_first_wrote(
    store: Store, artefact: Artefact, reopened: Callable[[], Artefact]
) -> None:
    script = WRITER + (
        "with artefact.writing(['a', 'b'], specs):\n"
        "    wait('holding')\n"
        "    artefact.write('a', content(1), {'by': 'child'})\n"
        "    artefact.write('b', content(2), {'by': 'child'})\n"
    )
    artefact.done()  # the knowledge of before the child wrote
    entered = threading.Event()

    def second() -> None:
        with artefact.writing(["b", "c"], SPECS):
            entered.set()
            for item in artefact.missing(["b", "c"]):
                artefact.write(item, content(3), {"by": "parent"})

    with child(script, store.root) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "holding\n"
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
        process.stdin.write("go\n")
        process.stdin.flush()
        thread.join()
        assert process.wait() == 0
    writers = {item: line["by"] for item, line in reopened().done().items()}
    assert writers == {"a": "child", "b": "child", "c": "parent"}
    for item, seed in {"a": 1, "b": 2, "c": 3}.items():
        np.testing.assert_array_equal(reopened().read(item).arrays["values"], content(seed)["values"])


def test_a_folder_that_holds_another_key_is_refused(store: Store, artefact: Artefact) -> None:
    write(artefact, a=1)
    other = StageKey("embed", 2, KEY.config, KEY.upstream, KEY.weights)
    artefact.path.rename(store.root / "embed" / other.digest)
    with pytest.raises(StoreError, match="another key"):
        write(store.artefact(other), a=1)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "not JSON",
        '{"attributes": {}}',
        '{"attributes": {"schema": 999, "key": {}}, "zarr_format": 3, "node_type": "group"}',
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(store: Store, artefact: Artefact, text: str) -> None:
    artefact.path.mkdir(parents=True)
    (artefact.path / "zarr.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match="move it"):
        write(artefact, a=1)
    with pytest.raises(StoreError, match="move it"):
        store.stored()
    assert [path.name for path in artefact.path.iterdir()] == ["zarr.json"]
    assert (artefact.path / "zarr.json").read_text(encoding="utf-8") == text


def test_the_store_lists_what_it_holds_and_says_what_changed(store: Store, artefact: Artefact) -> None:
    write(artefact, a=1)
    (listed,) = store.stored()
    assert listed.key == KEY
    assert listed.path == artefact.path
    assert listed.nbytes() > 0
    changed = StageKey("embed", 1, dict(KEY.config) | {"side": 8}, KEY.upstream, KEY.weights)
    assert store.explain_missing(changed) == f"changed: {changed.stage}.side: 4 → 8"
    assert store.explain_missing(StageKey("score", 1, {})) == "nothing of this stage is stored yet"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 9)),
        st.tuples(st.just("forget"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("reopen"), st.just(""), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_an_artefact_behaves_like_a_dict(steps: list[tuple[str, str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        artefact = store.artefact(KEY)
        expected: dict[str, int] = {}
        for action, item, seed in steps:
            if action == "reopen":
                artefact = store.artefact(KEY)
            elif action == "write":
                write(artefact, **{item: seed})
                expected[item] = seed
            elif expected.pop(item, None) is not None:
                artefact.forget(item)
            assert artefact.missing(NAMES) == set(NAMES) - set(expected)
        assert set(store.artefact(KEY).done()) == set(expected)
        for item, seed in expected.items():
            assert_holds(artefact, item, seed)
