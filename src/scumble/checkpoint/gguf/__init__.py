"""GGUF files: one file with the weights, the configuration and the tokenizer. Read with our own, checking reader."""
