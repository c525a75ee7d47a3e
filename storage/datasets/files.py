"""The files of a dataset, listed once; the readers of layouts work on the list."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cascade.storage.datasets.images import is_image
from cascade.storage.datasets.problems import Problem

LINK_MESSAGE = (
    "a link that leads out of the dataset; --set dataset.follow_links=true reads what it leads to, or copy it here"
)


@dataclass(frozen=True)
class FileTree:
    """Every file below a folder, less hidden ones.

    Attributes:
        root: absolute, links resolved.
        files: paths below it, POSIX, sorted.
        problems: links that were not followed, folders that may not be read, hidden images.
    """

    root: Path
    files: tuple[str, ...]
    problems: tuple[Problem, ...] = ()

    @property
    def name(self) -> str:
        """Of the root folder."""
        return self.root.name

    @cached_property
    def images(self) -> tuple[str, ...]:
        """The files that are images by their names."""
        return tuple(path for path in self.files if is_image(path.rpartition("/")[2]))

    @cached_property
    def top_folders(self) -> Mapping[str, tuple[str, ...]]:
        """The images below each folder of the root, by its name."""
        found: dict[str, list[str]] = {}
        for path in self.images:
            folder, slash, _ = path.partition("/")
            if slash:
                found.setdefault(folder, []).append(path)
        return {name: tuple(paths) for name, paths in found.items()}


def list_files(root: Path, *, follow_links: bool = False) -> FileTree:
    """Walk ``root`` (absolute, resolved). Links inside the root are followed, others if ``follow_links``."""
    files: list[str] = []
    problems: list[Problem] = []
    hidden: list[str] = []
    # A folder's path as shown, where it is, and the folders above it, so that links in a circle end.
    waiting = [("", root, frozenset({root}))]
    while waiting:
        prefix, folder, above = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            message = f"this folder cannot be read ({error.strerror}); correct its permissions"
            problems.append(Problem("error", "unreadable-folder", prefix.rstrip("/") or ".", message))
            continue
        for entry in entries:
            path, place, is_folder = prefix + entry.name, folder / entry.name, entry.is_dir(follow_symlinks=False)
            if entry.name.startswith("."):
                if is_image(entry.name[1:]) and not is_folder:
                    hidden.append(path)
                continue
            if entry.is_symlink():
                place = _target(place)
                is_folder = place.is_dir()
                outside = not follow_links and not place.is_relative_to(root)
                if outside and (is_folder or is_image(entry.name)):
                    problems.append(Problem("error", "link", path, LINK_MESSAGE))
                    continue
                if not place.exists() and "." not in entry.name:
                    # What it led to may have been a folder; a lost file is found missing, or is no picture.
                    message = "a link that leads nowhere; correct or remove it"
                    problems.append(Problem("error", "broken-link", path, message))
                    continue
            if not is_folder:
                files.append(path)
            elif place not in above:
                waiting.append((f"{path}/", place, above | {place}))
    if hidden:
        message = f"{len(hidden)} hidden left aside: their names begin with a dot"
        problems.append(Problem("note", "hidden", min(hidden), message))
    return FileTree(root, tuple(sorted(files)), tuple(problems))


def _target(link: Path) -> Path:
    try:
        return link.resolve()
    except (OSError, RuntimeError):  # links that go in a circle lead nowhere
        return link
