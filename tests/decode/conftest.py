from one_thread import one_thread_for_the_module  # noqa: F401
