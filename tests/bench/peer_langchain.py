"""Rows through LangChain, as researchers write it: peer_langchain.py URL PROMPT_FILE SQLITE_FILE

A chain with its SQLite cache, and chunks of 1,000 rows under a semaphore.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from langchain_community.cache import SQLiteCache
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

CHUNK = 1000


async def main(url: str, prompt: str, cache: str) -> None:
    set_llm_cache(SQLiteCache(database_path=cache))
    model = ChatOpenAI(model="m", base_url=url, api_key="none", temperature=0)
    chain = (
        ChatPromptTemplate.from_template(prompt)
        | model.bind(response_format={"type": "json_object"})
        | JsonOutputParser()
    )
    semaphore = asyncio.Semaphore(64)

    async def ask(row: dict[str, Any]) -> dict[str, Any]:
        async with semaphore:
            answer: dict[str, Any] = await chain.ainvoke({"text": row["text"]})
            return row | answer

    rows = [json.loads(line) for line in sys.stdin]
    for start in range(0, len(rows), CHUNK):
        for answer in await asyncio.gather(*map(ask, rows[start : start + CHUNK])):
            print(json.dumps(answer))


asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text(), sys.argv[3]))
