"""The life of a run: how it starts, is watched, stops and resumes. A program of ours says which library it lacks."""

import sys
from pathlib import Path
from types import TracebackType


def _without_library(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """End as `launch.errors.run` does, which comes too late for what is imported."""
    name = error.name if isinstance(error, ModuleNotFoundError) else None
    if not name or "." in name:  # a part of a library, or of ours: a bug
        sys.__excepthook__(kind, error, trace)
        return
    cure = "`make setup`, then `source .venv/bin/activate`"
    print(f"error: {name} is not installed for {sys.executable}: {cure}", file=sys.stderr)
    sys.exit(2)


# Run by `python -m`, which looks for its module still, or as a script beside this room; not where others import it.
_SCRIPT = Path(sys.argv[0]).resolve()
if sys.argv[0] == "-m" or (_SCRIPT.suffix == ".py" and _SCRIPT.parent == Path(__file__).resolve().parents[1]):
    sys.excepthook = _without_library
