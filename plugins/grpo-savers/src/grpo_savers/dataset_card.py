"""The card of a data set of rollouts."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData

from grpo_savers.card_text import code, table

logger = logging.getLogger(__name__)


def is_whole(path: Path) -> bool:
    """Whether a file can be read: a single one that cannot makes readers refuse all of them."""
    try:
        pq.read_schema(path)
    except (OSError, ValueError) as error:
        logger.warning("%s is left out, since it cannot be read: %s", path, error)
        return False
    return True


def dataset_card(example: Path, *, model: str) -> str:
    """What the files are, from the schema of one of them."""
    schema = pq.read_schema(example)
    data = DatasetCardData(
        configs=[
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
        ],
        tags=["grpo", "grpo-core", "rollouts"],
    )
    body = "\n\n".join(
        [
            "# Rollouts",
            f"Everything that was sampled while {code(model)} was trained: one row per completion, "
            "one file per step, with token ids, log-probs, rewards and advantages.",
            'Load them with `datasets.load_dataset("...", split="train")`.',
            table(
                ("column", "type"),
                ([code(field.name), code(str(field.type))] for field in schema),
            ),
        ]
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))
