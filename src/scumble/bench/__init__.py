"""The benchmark behind `scumble bench`: what is measured, how, and against what.

    shapes      named models with random weights        counts      arithmetic and bytes of a pass, from the config
    subject     the model under test                    machine     what the figures were made on, and who was busy
    timing      clocks, medians, A, B, A, B             events      one generation with its times
    workloads   fixed, adaptive, autoregressive         stages      where a pass's time goes
    roofline    this machine's limits, every floor      memory      peak memory, in a process of its own
    peer        transformers, on the same weights       curves      cost against canvas, context, experts, batch
    run         all of it, in order                     report      tables from its JSON object
    projection  the release's shape on other machines   plots       pictures from the JSON object

The engine holds no timing code. Times are taken from its events and by wrapping its parts from outside.
"""
