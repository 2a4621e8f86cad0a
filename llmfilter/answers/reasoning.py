"""Reasoning that comes in the content, where the server has no parser for it. Pure.

One table for JSON and text answers. A tag that is data is left alone: inside of a JSON string, or in the
midst of a text.
"""

import re
from collections.abc import Callable

# Opening tag → closing tag, and whose models write it.
TAGS = {
    "<think>": "</think>",  # DeepSeek R1, Qwen, GLM
    "<thinking>": "</thinking>",  # prompts and fine-tunes after Anthropic's way
    "<thought>": "</thought>",  # Gemini's compatible endpoint
    "<seed:think>": "</seed:think>",  # ByteDance Seed-OSS
    "<mm:think>": "</mm:think>",  # MiniMax
    "<longcat_think>": "</longcat_think>",  # Meituan LongCat
    "[THINK]": "[/THINK]",  # Mistral's Magistral
    "◁think▷": "◁/think▷",  # Kimi
    "<|channel>thought": "<channel|>",  # Gemma 4 (its model card)
}
_OPENING = re.compile(rf"\s*({'|'.join(map(re.escape, TAGS))})")
_CLOSING = re.compile("|".join(map(re.escape, TAGS.values())))
# gpt-oss (openai/harmony, docs/format.md). The answer follows the last `final` channel's message token.
_HARMONY = re.compile(
    r"\s*(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary|final)\b|(?s:.*)<\|start\|>assistant<\|channel\|>"
)
_FINAL = re.compile(r"<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_MESSAGE_END = re.compile(r"<\|(?:end|return|start|call)\|>")
# The same from servers that leave out special tokens (mlx-lm, TensorRT-LLM, LM Studio).
_BARE_HARMONY = re.compile(r"\s*(?:assistant)?(?:analysis|commentary)(?s:.*)assistantfinal")


def drop_reasoning(content: str, ends_at: Callable[[str, int], bool]) -> str | None:
    """Return a content without the reasoning that it begins with; None where nothing else is there.

    ends_at: tells whether a closing tag that ends at a place and was never opened (templates swallow the
    opening one) ends reasoning, or is data.
    """
    if _HARMONY.match(content):
        finals = list(_FINAL.finditer(content))
        return _MESSAGE_END.split(content[finals[-1].end() :])[0] if finals else None
    if bare := _BARE_HARMONY.match(content):
        return content[bare.end() :]
    rest = content
    while opened := _OPENING.match(rest):
        _, closed, rest = rest.partition(TAGS[opened[1]])
        if not closed:
            return None
    if rest is content and (closing := _CLOSING.search(content)) and ends_at(content, closing.end()):
        return content[closing.end() :]
    return rest
