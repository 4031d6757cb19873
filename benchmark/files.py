"""Files that other processes see whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Generator[BinaryIO, None, None]:
    """A file to write, which takes the place of another once it is complete; an error leaves that as it was.

    Args:
        path: of the other, which need not exist; its folder must.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # a temporary file is its owner's alone, but caches and results are shared
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
