"""`python -m spacy_llmner`: the commands of `python -m spacy llmner`, for `torchrun -m spacy_llmner`."""

from spacy_llmner.cli import app

if __name__ == "__main__":
    app(prog_name="python -m spacy_llmner")
