"""`python -m client classify`: what is in pictures; many are under way at a time."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from client.classification import MODEL, PHOTO_MODEL, Label
from client.errors import ServerError, Unreachable
from client.image_files import find_images, read_image
from client.sync import Client

Outcome = tuple[str, tuple[Label, ...] | Exception]
_AHEAD = 4  # images read for each that is under way: memory stays bounded in a folder of any size


def run_classify(options: Namespace) -> int:
    """Classify the files and folders of the command line.

    Returns:
        0; 1 if a file could not be read or classified; 2 if a path does not exist.

    Raises:
        ServerError: what would fail for every file: no server, no such model.
    """
    try:
        files = find_images(options.paths)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = 0
    with Client(options.url) as client, _progress() as progress:
        model = options.model or _model_for_photos(client)
        task = progress.add_task("classifying", total=len(files), visible=len(files) > 1)
        for file, found in _outcomes(client, files, model, options):
            if isinstance(found, Exception):
                failed += 1
            _write(progress, file, found, as_json=options.json, alone=len(files) == 1)
            progress.advance(task)
    if len(files) > 1:
        print(f"{len(files) - failed} classified, {failed} failed", file=sys.stderr)
    return 1 if failed else 0


def _model_for_photos(client: Client) -> str:
    """The model that knows what photos show, where the server has it: ResNet-50 may have been trained on anything."""
    return PHOTO_MODEL if client.models().get(PHOTO_MODEL) == "READY" else MODEL


def _progress() -> Progress:
    """A bar on the terminal; results go to standard output, above it."""
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("left"))
    return Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
        disable=not console.is_terminal,
    )


def _outcomes(client: Client, files: Sequence[str], model: str, options: Namespace) -> Iterator[Outcome]:
    """Labels or an error for each file, in the order of the files."""

    def classify(file: str) -> tuple[Label, ...] | Exception:
        try:
            return client.classify(read_image(file), top_k=options.top_k, model=model, timeout=options.timeout)
        except Unreachable:
            raise
        except ServerError as error:
            if error.status == "NOT_FOUND":
                raise ServerError(
                    f"{error.message}; are its engines built? (`make engine-vision`)", error.status
                ) from None
            return error
        except OSError as error:
            return error

    pool = ThreadPoolExecutor(options.concurrency)
    running: deque[tuple[str, Future[tuple[Label, ...] | Exception]]] = deque()
    try:
        for file in files:
            running.append((file, pool.submit(classify, file)))
            if len(running) >= options.concurrency * _AHEAD:
                oldest, future = running.popleft()
                yield oldest, future.result()
        for file, future in running:
            yield file, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _write(progress: Progress, file: str, found: tuple[Label, ...] | Exception, *, as_json: bool, alone: bool) -> None:
    if isinstance(found, Exception):
        reason = found.message if isinstance(found, ServerError) else str(found)
        if as_json:
            print(json.dumps({"file": file, "error": reason}, ensure_ascii=False), flush=True)
        else:
            progress.console.print(f"error: {file}: {reason}", markup=False, highlight=False, soft_wrap=True)
    elif as_json:
        labels = [{"label": label.name, "score": label.score} for label in found]
        print(json.dumps({"file": file, "labels": labels}, ensure_ascii=False), flush=True)
    elif alone:
        print("\n".join(f"{label.score:7.1%}  {label.name}" for label in found), flush=True)
    else:
        print(f"{file}: " + ", ".join(f"{label.name} {label.score:.1%}" for label in found), flush=True)
