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
    flights     requests in flight: asked, asked again, stored, printed
    chat        sending and sending again (faults: what an error means; pace: how fast)
    wire        aiohttp: one request out, one bounded answer in (quick: its fast way;
                deadlines: its timeout)
    completion  response body → the model's content
    answer      content → one JSON object that passed its checks (schema)
    output      answers to stdout, error lines to stderr
    progress    how far it is: bar, SIGUSR1, summary

Beside them: record (JSON as bytes), batches (a thread for blocking calls), stats, errors.
"""

__version__ = "0.1.0"
