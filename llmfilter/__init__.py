"""llmfilter: run a language model over JSON lines, as a Unix filter.

The modules, in the order in which a row meets them:

    cli         argv, environment, streams, signals, exit status
    options     the command line: what may be typed (man: the manual page from it)
    job         what was typed → what is done with each row; wrong usage shows here (endpoint: where to)
    pipeline    one run, every stage in order
    rows        stdin → blocks of lines → records
    prompt      record → request body
    cache       LMDB: answers that were paid for
    replay      such an answer → output line
    preview     what is printed instead of being sent: -n, --to-batch
    inflight    requests under way: who shares one, who has a slot, which line is the first unfinished
    conversation  sent, sent again, asked again, until an answer passes (breaker, budget: what ends a run)
    chat        one request, when the server's limits allow it (faults: what an error means; limit)
    wire        aiohttp: one request out, one bounded answer in (quick: its fast way; deadlines: its timeout)
    completion  response body → the model's content
    answer      content → one JSON object that passed its checks (schema)
    output      answers to stdout, error lines to stderr
    progress    how far it is: SIGUSR1, summary (bar: while it runs; terminal: who may write where)

Beside them: load (--from-batch: a run that only fills the cache), record (JSON as bytes), batches (a
thread for blocking calls), stats, figures, errors, typos.
"""

__version__ = "0.1.0"
