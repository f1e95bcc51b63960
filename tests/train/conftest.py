import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with thirty tiny documents and a tokenizer trained on them."""
    path = tmp_path_factory.mktemp("training")
    texts = [f"def add_{i}(a, b):\n    return a + b + {i}\n" for i in range(30)]
    (path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<pad>", "<eos>", "<bos>"], initial_alphabet=alphabet),
    )
    (path / "tokenizer").mkdir()
    backend.save(str(path / "tokenizer" / "tokenizer.json"))
    return path
