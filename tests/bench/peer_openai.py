"""Rows through openai-python, as its users write it. peer_openai.py URL PROMPT_FILE [RETRIES]

A row that fails is left out.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, OpenAIError


async def main(url: str, prompt: str, retries: int = 2) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=retries)
    semaphore = asyncio.Semaphore(64)

    async def ask(row: dict[str, Any]) -> None:
        async with semaphore:
            completion = await client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": prompt.replace("{text}", row["text"])}],
                temperature=0,
                response_format={"type": "json_object"},
            )
        print(json.dumps(row | json.loads(completion.choices[0].message.content or "")))

    for error in await asyncio.gather(*[ask(json.loads(line)) for line in sys.stdin], return_exceptions=True):
        if isinstance(error, BaseException) and not isinstance(error, OpenAIError):
            raise error


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text(), *map(int, sys.argv[3:])))
