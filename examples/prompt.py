def count_words(text):
    """Count the words in a text.
