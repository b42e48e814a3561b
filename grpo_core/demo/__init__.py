"""A complete small job: the `arithmetic` task and two checkpoints that can start on it.

`habit` has learned to reason and then been taught to answer at once, mostly wrongly; GRPO finds
its way back to reasoning within tens of steps. `plain` has the skill only half learned and no such
habit; GRPO improves it slowly. `warm_start.json` beside each records how good it is.
"""

from importlib.resources import files
from pathlib import Path


def checkpoint(name: str) -> Path:
    """The directory of a bundled checkpoint, for `AutoModelForCausalLM.from_pretrained`.

    FileNotFoundError for a name that does not exist, listing those that do.
    """
    root = Path(str(files(__name__))) / "checkpoints"
    names = sorted(path.name for path in root.iterdir() if (path / "config.json").is_file())
    if name not in names:
        raise FileNotFoundError(
            f"no bundled checkpoint {name!r}; there are: {', '.join(names) or 'none'}"
        )
    return root / name
