"""The benchmark behind `scumble bench`: what is measured, how, and against what.

    shapes     named models with random weights        counts      arithmetic and bytes of a pass, from the config
    timing     clocks, medians, A/B/A/B                machine     what the figures were made on, and who else was busy
    events     one generation with its times           roofline    this machine's rates, and the floor of every stage
    workloads  fixed passes, adaptive, autoregressive  stages      where a pass's time goes
    memory     peak memory, in a process of its own    curves      cost against canvas, context, experts, batch
    peer       transformers, on the same weights       projection  the release's shape on machines that are not here
    run        all of it, in order                     report      one JSON object, and tables made from it

The engine holds no timing code. Times are taken from its events and by wrapping its parts from outside.
"""




