"""Run a pipeline on batches of plain values, in this process or in those of a framework for large data."""

from functools import cache
from pathlib import Path
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import import_file, load_model

from ..errors import Errors, LLMNERError
from ..pipeline.loading import check_pipeline
from .readers import is_utf8, restored_doc
from .writers import ENTITIES, FAILED, SPANS, found_in, with_columns

# The text of a document, or a serialized Doc.
Source = Union[str, bytes]


class Failure(NamedTuple):
    """What takes the place of the annotation of a document that failed.

    reason (str): Why.
    in_pipeline (bool): Whether the pipeline failed. If not, it never got the document.
    """

    reason: str
    in_pipeline: bool = False


class Annotator:
    """Annotates batches of texts. It can be pickled and sent to other processes, where the pipeline and its
    LLM are loaded at first use. So it can be given to `ray.data.Dataset.map_batches` or `datasets.map`.

    model (Union[str, Path]): The pipeline: a folder, or the name of an installed package.
    text_field (str): The key of the texts in a batch.
    spans (bool): Also return all spans in doc.spans.
    max_length (Optional[int]): The length of the longest text that is annotated, in characters. None for
        `nlp.max_length`.
    code_path (Union[None, str, Path]): A Python file to import before the pipeline is loaded.
    """

    def __init__(
        self,
        model: Union[str, Path],
        *,
        text_field: str = "text",
        spans: bool = False,
        max_length: Optional[int] = None,
        code_path: Union[None, str, Path] = None,
    ) -> None:
        self.model = str(model)
        self.text_field = text_field
        self.spans = spans
        self.max_length = max_length
        self.code_path = None if code_path is None else str(code_path)
        self._nlp: Optional[Language] = None

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "_nlp": None}

    @property
    def nlp(self) -> Language:
        """The pipeline, which is loaded at first use.

        RAISES (LLMNERError): If there is no such pipeline.
        """
        if self._nlp is None:
            if self.code_path is not None:
                import_code(self.code_path)
            check_pipeline(self.model)
            self._nlp = load_model(self.model)
            if self.max_length is not None:
                self._nlp.max_length = self.max_length
        return self._nlp

    def __call__(self, batch: Any) -> Any:
        """Annotate a batch.

        batch (Union[Mapping[str, Sequence], pyarrow.Table]): The values of each field, or a table.
        RETURNS (Union[Dict[str, Sequence], pyarrow.Table]): The same fields, and two or three more with a
            value for each text: "entities" ("start", "end", "label" and "score" of each entity), "failed"
            (the reason, or None if the text didn't fail), and "spans", if asked for. In a table, these
            columns always have the same types. In a dictionary, they are lists.
        RAISES (LLMNERError): If something is wrong with the setup and not with a single text.
        """
        is_dict = isinstance(batch, Mapping)
        names = list(batch) if is_dict else batch.column_names
        if self.text_field not in names:
            known = ", ".join(map(str, names))
            message = Errors.E172.format(path="the batch", field=self.text_field, known=known)
            raise LLMNERError(message)
        texts = list(batch[self.text_field]) if is_dict else batch[self.text_field].to_pylist()
        with self.nlp.memory_zone():
            results = self.annotate(texts, lambda doc, i: found_in(doc, self.spans))
        found: List[Dict[str, Any]] = [{} if isinstance(r, Failure) else r for r in results]
        added = [ENTITIES, SPANS] if self.spans else [ENTITIES]
        columns: Dict[str, Any] = {name: [row.get(name, []) for row in found] for name in added}
        columns[FAILED] = [r.reason if isinstance(r, Failure) else None for r in results]
        return {**batch, **columns} if is_dict else with_columns(batch, columns)

    def annotate(self, sources: Sequence[Source], convert: Callable[[Doc, int], Any]) -> List[Any]:
        """Annotate texts. A text that fails doesn't affect the others. Call this in `nlp.memory_zone()`, or
        the vocab grows with each batch.

        sources (Sequence[Source]): The texts or serialized Docs.
        convert (Callable[[Doc, int], Any]): Called with each annotated Doc and its index.
        RETURNS (List[Any]): What `convert` returned for each text, or a Failure.
        RAISES (LLMNERError): If something is wrong with the setup and not with a single text.
        """
        results: List[Any] = [None] * len(sources)
        done = [False] * len(sources)

        def store(i: int, result: Any) -> None:
            results[i], done[i] = result, True

        def docs() -> Iterator[Tuple[Doc, int]]:
            for i, source in enumerate(sources):
                # nlp.pipe would stop at the first text that can't be tokenized.
                doc = self._make_doc(source)
                if isinstance(doc, Failure):
                    store(i, doc)
                else:
                    yield doc, i

        def on_error(name: str, proc: Any, failed: List[Doc], error: Exception) -> Any:
            for doc in failed:
                i = doc._context
                # spaCy's own components drop the whole batch. Its Docs are tried again, one by one.
                if i is not None and len(failed) == 1:
                    store(i, Failure(_describe(name, error), in_pipeline=True))

        nlp = self.nlp
        nlp.set_error_handler(on_error)
        for doc, i in nlp.pipe(docs(), as_tuples=True):
            if i is not None:  # a component that returns another Doc loses the index
                store(i, convert(doc, i))
        for i in [i for i, is_done in enumerate(done) if not is_done]:
            store(i, self._annotate_alone(sources[i], i, convert))
        return results

    def _annotate_alone(self, source: Source, i: int, convert: Callable[[Doc, int], Any]) -> Any:
        """RETURNS (Any): What `convert` returned, or a Failure."""
        failures: List[Failure] = []

        def on_error(name: str, proc: Any, failed: List[Doc], error: Exception) -> Any:
            failures.append(Failure(_describe(name, error), in_pipeline=True))

        self.nlp.set_error_handler(on_error)
        doc = self._make_doc(source)
        if isinstance(doc, Failure):
            return doc
        for annotated in self.nlp.pipe([doc]):
            return convert(annotated, i)
        return failures[0] if failures else Failure("the pipeline returned no Doc", True)

    def _make_doc(self, source: Any) -> Union[Doc, Failure]:
        if isinstance(source, bytes):
            try:
                doc = restored_doc(source, self.nlp.vocab)
            except Exception:  # unpacking arbitrary bytes can raise anything
                return Failure("not a text, but bytes")
            n_chars = len(doc.text)
        elif not isinstance(source, str):
            return Failure(f"not a text, but {type(source).__name__}")
        elif not is_utf8(source):
            return Failure("the text is not UTF-8")
        else:
            n_chars = len(source)
        if n_chars > self.nlp.max_length:
            return Failure(Errors.E185.format(n=n_chars, limit=self.nlp.max_length))
        if isinstance(source, bytes):
            return doc
        try:
            return self.nlp.make_doc(str(source))  # not NumPy's str
        except Exception as e:
            return Failure(_describe("tokenizer", e))


@cache
def import_code(path: str) -> None:
    """Import a Python file, once in each process: spaCy refuses to register a class twice."""
    import_file("python_code", path)


def _describe(name: str, error: Exception) -> str:
    return f"{name}: {error}" if isinstance(error, LLMNERError) else f"{name}: {error!r}"
