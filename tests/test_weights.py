from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import open_clip
import pytest

from cascade.storage.errors import ConfigError, WeightsError
from cascade.storage.weights import REGISTRY, SHIPPED_FOLDER, WeightsEntry, fetch, file_sha256, locate, weights_table

CONTENT = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[:-1] + b"\x00"
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves ``CONTENT``, or misbehaves, by the directory of the request; counts the requests."""

    daemon_threads = True
    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        behaviour = self.path.split("/")[1]
        if behaviour == "absent" or not self.path.endswith("/tiny.pth"):
            self.send_error(404)
            return
        body = {"altered": OTHER, "short": CONTENT[:1000]}.get(behaviour, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        # A closed connection before the announced length is what a network failure looks like.
        self.wfile.write(body[: len(body) // 2] if behaviour == "interrupted" else body)

    def log_message(self, *args: object) -> None:
        """Keep the test output clean."""


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def server(running_server: Server) -> Server:
    running_server.requests = 0
    return running_server


@pytest.fixture
def registry(server: Server) -> dict[str, WeightsEntry]:
    tiny = WeightsEntry(
        name="tiny",
        filename="tiny.pth",
        sha256=SHA256,
        size=len(CONTENT),
        url=f"{server.url}/origin/tiny.pth",
        license="CC0-1.0",
        note="for tests",
    )
    unsized = replace(tiny, name="unsized/tag", size=None)
    shipped = replace(tiny, name="shipped", filename="no_such_file.safetensors", url=None)
    return {entry.name: entry for entry in (tiny, unsized, shipped)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "weights"


def put(folder: Path, content: bytes, name: str = "tiny.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(content)
    return path


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_fetch_brings_the_file_and_locate_finds_it(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    path = fetch("tiny", folder=folder, registry=registry)
    assert path.read_bytes() == CONTENT
    assert [entry.name for entry in folder.iterdir()] == ["tiny.pth"]
    located = locate("tiny", folder=folder, registry=registry)
    assert (located.path, located.sha256, located.source) == (path, SHA256, "folder")


def test_fetch_makes_a_file_as_readable_as_any_other(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    path = fetch("tiny", folder=folder, registry=registry)
    assert path.stat().st_mode == put(folder, b"", "ordinary").stat().st_mode


def test_a_mirror_replaces_all_of_the_url_but_the_file_name(
    folder: Path, server: Server, registry: dict[str, WeightsEntry]
) -> None:
    unreachable = {"tiny": replace(registry["tiny"], url="https://weights.invalid/a/b/tiny.pth")}
    path = fetch("tiny", folder=folder, base_url=f"{server.url}/mirror/", registry=unreachable)
    assert path.read_bytes() == CONTENT


def test_progress_is_drawn_on_standard_error_only_if_wanted(
    folder: Path, registry: dict[str, WeightsEntry], capsys: pytest.CaptureFixture[str]
) -> None:
    fetch("tiny", folder=folder, registry=registry)
    assert capsys.readouterr() == ("", "")
    fetch("tiny", folder=folder / "again", progress=True, registry=registry)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err


def test_a_valid_file_is_not_downloaded_again(folder: Path, server: Server, registry: dict[str, WeightsEntry]) -> None:
    put(folder, CONTENT)
    fetch("tiny", folder=folder, registry=registry)
    fetch("unsized/tag", folder=folder, registry=registry)
    assert server.requests == 0


@pytest.mark.parametrize("damaged", [OTHER, CONTENT[:100]], ids=["altered", "cut"])
def test_a_damaged_file_is_replaced(
    folder: Path, server: Server, registry: dict[str, WeightsEntry], damaged: bytes
) -> None:
    path = put(folder, damaged)
    assert fetch("tiny", folder=folder, registry=registry) == path
    assert path.read_bytes() == CONTENT
    assert server.requests == 1


@pytest.mark.parametrize(
    ("name", "behaviour", "expected"),
    [
        ("tiny", "altered", [SHA256, OTHER_SHA256]),
        ("tiny", "short", ["1000 bytes", str(len(CONTENT))]),
        ("unsized/tag", "short", [SHA256]),
        ("tiny", "absent", ["404", "tiny.pth"]),
        ("tiny", "interrupted", ["could not be downloaded"]),
    ],
)
def test_a_failed_download_leaves_nothing_behind(
    folder: Path, server: Server, registry: dict[str, WeightsEntry], name: str, behaviour: str, expected: list[str]
) -> None:
    with pytest.raises(WeightsError) as error:
        fetch(name, folder=folder, base_url=f"{server.url}/{behaviour}", registry=registry)
    message = one_line(error)
    assert all(part in message for part in [*expected, server.url])
    assert list(folder.iterdir()) == []


def test_a_failed_download_keeps_what_was_there(
    folder: Path, server: Server, registry: dict[str, WeightsEntry]
) -> None:
    path = put(folder, OTHER)
    with pytest.raises(WeightsError):
        fetch("tiny", folder=folder, base_url=f"{server.url}/interrupted", registry=registry)
    assert path.read_bytes() == OTHER
    assert list(folder.iterdir()) == [path]


def test_an_unreachable_server_is_named(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    with pytest.raises(WeightsError) as error:
        fetch("tiny", folder=folder, base_url="http://127.0.0.1:1", registry=registry)
    assert "http://127.0.0.1:1/tiny.pth could not be downloaded" in one_line(error)
    assert str(folder) in one_line(error)


def test_a_folder_that_cannot_be_made_is_a_weights_error(tmp_path: Path, registry: dict[str, WeightsEntry]) -> None:
    blocked = put(tmp_path, b"a file", "occupied") / "weights"
    with pytest.raises(WeightsError, match="cannot make the weights folder"):
        fetch("tiny", folder=blocked, registry=registry)


def test_missing_weights_say_where_what_and_how(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    with pytest.raises(WeightsError) as error:
        locate("unsized/tag", folder=folder, registry=registry)
    message = one_line(error)
    assert str(folder / "tiny.pth") in message
    assert SHA256 in message
    assert message.endswith("cascade weights fetch unsized/tag")
    assert error.value.exit_code == 4


def test_missing_shipped_weights_are_not_to_be_fetched(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    for find in (locate, fetch):
        with pytest.raises(WeightsError, match="ships with the package") as error:
            find("shipped", folder=folder, registry=registry)
        assert "weights fetch" not in one_line(error)


def test_a_wrong_digest_shows_both(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    put(folder, OTHER)
    with pytest.raises(WeightsError) as error:
        locate("tiny", folder=folder, registry=registry)
    message = one_line(error)
    assert SHA256 in message
    assert OTHER_SHA256 in message
    assert message.endswith("cascade weights fetch tiny")


def test_a_wrong_size_is_reported_without_hashing(
    folder: Path, registry: dict[str, WeightsEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, CONTENT[:10])
    monkeypatch.setattr(
        "cascade.storage.weights.file_sha256", lambda path: pytest.fail("hashed a file of the wrong size")
    )
    with pytest.raises(WeightsError, match=f"10 bytes instead of {len(CONTENT)}"):
        locate("tiny", folder=folder, registry=registry)


def test_an_unknown_name_suggests_the_nearest(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    for find in (locate, fetch):
        with pytest.raises(ConfigError, match="did you mean 'tiny'") as error:
            find("tinny", folder=folder, registry=registry)
        assert "unsized/tag" in one_line(error)
    with pytest.raises(ConfigError, match="did you mean 'ViT-L-14-336/openai'"):
        locate("ViT-L-14-336/opena", folder=folder)


def test_a_path_of_the_users_own_needs_no_digest(tmp_path: Path, folder: Path) -> None:
    path = put(tmp_path, CONTENT, "own")
    located = locate(str(path), folder=folder)
    assert (located.path, located.sha256, located.source) == (path, SHA256, "path")
    assert locate(str(path), folder=folder, sha256=SHA256.upper()).sha256 == SHA256


def test_a_path_must_have_the_digest_that_was_asked_for(tmp_path: Path, folder: Path) -> None:
    path = put(tmp_path, OTHER)
    with pytest.raises(WeightsError) as error:
        locate(str(path), folder=folder, sha256=SHA256)
    assert SHA256 in one_line(error)
    assert OTHER_SHA256 in one_line(error)


@pytest.mark.parametrize("given", ["models/sam.pth", "/no/such/checkpoint", "~/no_such.safetensors"])
def test_a_missing_path_is_not_mistaken_for_a_name(given: str, folder: Path) -> None:
    with pytest.raises(WeightsError, match="no checkpoint at"):
        locate(given, folder=folder)


def test_a_name_and_another_digest_contradict(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    put(folder, CONTENT)
    assert locate("tiny", folder=folder, sha256=SHA256, registry=registry).sha256 == SHA256
    with pytest.raises(ConfigError) as error:
        locate("tiny", folder=folder, sha256=OTHER_SHA256, registry=registry)
    assert SHA256 in one_line(error)
    assert OTHER_SHA256 in one_line(error)


def test_a_rewritten_file_is_hashed_anew(tmp_path: Path) -> None:
    path = put(tmp_path, CONTENT)
    assert file_sha256(path) == SHA256
    path.write_bytes(OTHER[:-1])
    assert file_sha256(path) == hashlib.sha256(OTHER[:-1]).hexdigest()


def test_the_table_tells_what_is_there(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    def states(verify: bool) -> dict[str, str]:
        return {row.name: row.state for row in weights_table(folder, verify=verify, registry=registry)}

    assert states(verify=True) == {"tiny": "missing", "unsized/tag": "missing", "shipped": "missing"}
    put(folder, OTHER)
    assert states(verify=False) == {"tiny": "present", "unsized/tag": "present", "shipped": "missing"}
    assert states(verify=True) == {"tiny": "damaged", "unsized/tag": "damaged", "shipped": "missing"}
    put(folder, CONTENT[:7])
    assert states(verify=False) == {"tiny": "damaged", "unsized/tag": "present", "shipped": "missing"}
    put(folder, CONTENT)
    assert states(verify=True) == {"tiny": "verified", "unsized/tag": "verified", "shipped": "missing"}


def test_the_table_shows_sizes_and_places(folder: Path, registry: dict[str, WeightsEntry]) -> None:
    tiny, unsized, shipped = weights_table(folder, registry=registry)
    assert (tiny.size, unsized.size) == (len(CONTENT), None)
    assert tiny.path == folder / "tiny.pth"
    assert SHIPPED_FOLDER in shipped.path.parents
    put(folder, CONTENT[:7])
    assert weights_table(folder, registry=registry)[0].size == 7


def test_every_registered_checkpoint_is_pinned() -> None:
    for name, entry in REGISTRY.items():
        assert entry.name == name
        assert len(bytes.fromhex(entry.sha256)) == 32
        if entry.url:
            url = urlsplit(entry.url)
            assert url.scheme == "https"
            assert url.path.endswith(f"/{entry.filename}")


def test_the_origin_of_clip_is_that_of_open_clip() -> None:
    entry = REGISTRY["ViT-L-14-336/openai"]
    assert entry.url == open_clip.get_pretrained_url("ViT-L-14-336", "openai")


def test_every_shipped_checkpoint_is_there_and_pinned(folder: Path) -> None:
    digests = json.loads((SHIPPED_FOLDER / "digests.json").read_text())
    assert {path.relative_to(SHIPPED_FOLDER).as_posix() for path in SHIPPED_FOLDER.rglob("*.safetensors")} == set(
        digests
    )
    for filename, sha256 in digests.items():
        located = locate(Path(filename).stem, folder=folder)
        assert (located.path, located.sha256, located.source) == (SHIPPED_FOLDER / filename, sha256, "shipped")


def test_shipped_checkpoints_are_small_and_have_a_card() -> None:
    files = list(SHIPPED_FOLDER.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert all((path.parent / "MODEL_CARD.md").is_file() for path in files)
