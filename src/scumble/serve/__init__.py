"""The server: LLM over HTTP, in the wire forms of OpenAI and Anthropic, with keys, limits and an audit log.

    settings    every option of `scumble serve`, checked
    backend     the only file that knows LLM: requests in, events out, slots and a queue around it
    fields      what all request bodies share: strict types, sampling settings, what is refused and what is reported
    chat, completions, messages, responses, models, health   one file per API family
    message_fields   the bodies of messages
    files, batches   OpenAI's batch API; kept_files, batch_runs: what is on disk, and who answers it; batch: one file
    stream      server-sent events, and what happens when the reader leaves
    gate        who may come in: hosts, origins, keys, scopes, limits, sizes; every route has a scope
    keys, limits, audit, store   governance, in one SQL database and one append-only file
    app, run    all of it put together; the process around it

Needs the extra `serve` (`pip install 'scumble[serve]'`). `import scumble` does not import this package.
"""
