"""The tokenizer of the bundled checkpoints: small, and able to encode any text."""

import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PAD, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

VOCABULARY_LIMIT = 288
"""256 bytes, 7 added tokens and room for the merges that spell the words of the chat template and
of the task (18 exist). Measured: a prompt of 4 operations is 22 tokens with them, 38 when the
merges are spent on the spelling of the added tokens instead."""


def chat_text(question: str, completion: str) -> str:
    """One question and its answer, as the chat template writes them."""
    return (
        f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n{completion}{TURN_END}\n"
    )


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template, trained on chat-templated texts.

    Its end token closes a turn (`<|im_end|>`); padding goes to the left, as sampling needs it.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(token, special=True) for token in (PAD, TURN_START, TURN_END)]
    # The tags are added but not special: special tokens vanish under skip_special_tokens=True,
    # and every reward that reads the tags would then be 0.
    tags = [AddedToken(tag, special=False, normalized=False) for tag in TAGS]
    tokenizer.add_special_tokens(specials)
    tokenizer.add_tokens(tags)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_LIMIT - len(TAGS),
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Added tokens are cut out first: the trainer does not know them and would spend its few
    # merges on their spelling.
    added = "|".join(re.escape(token) for token in (PAD, TURN_START, TURN_END, *TAGS))
    pieces = (piece for text in texts for piece in re.split(added, text) if piece)
    tokenizer.train_from_iterator(pieces, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
