"""Rows through openai-python, as its users write it. peer_openai.py URL PROMPT_FILE"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI


async def main(url: str, prompt: str) -> None:
    client = AsyncOpenAI(base_url=url, api_key="none")
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

    await asyncio.gather(*[ask(json.loads(line)) for line in sys.stdin])


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text()))
