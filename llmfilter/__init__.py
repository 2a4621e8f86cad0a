"""llmfilter: run a language model over JSON lines, as a Unix filter.

The rooms, in the order in which a row meets them:

    cli         argv, the standard streams; options: what may be typed (man: the manual page from it)
    session     one run and its user: signals, progress, the last words, the exit status
    job         what was typed → what is done with each row; wrong usage shows here
                (typed: texts and files that were named; origin: what --stats says of a run)
    pipeline    the frame of every run
    input/      stdin → blocks of lines → records → request bodies
    cache/      answers that were paid for, durable; replay: such an answer → output line
    modes/      what is done with a row: asked (conversation), printed (dry_run, to_batch), stored (from_batch)
    server/     one request, when its limits allow it (limit/), over aiohttp (exchange, direct)
    api/        what the protocol's bytes mean: completion, faults
    answers/    the model's content → one JSON object that passed its checks
    output/     answers to stdout, error lines to stderr; the terminal, its bar, the summary

Leaves, which all may use: errors (named by their remedy), words (for people), jsontext (JSON as bytes),
stats (counters), ending (how a run ends), notices (what is said once), worker (a thread for blocking calls).
Each folder's docstring says what it promises, what it may import and what it keeps to itself.
"""

__version__ = "0.1.0"
