"""What an answer must be, and how it goes into the record. Pure."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llmfilter.answers.content import extract, parse_text
from llmfilter.errors import Incomplete, RowError, UsageError
from llmfilter.jsontext import dump_text, join, members, one_line, parse_json, splice
from llmfilter.words import did_you_mean, printable

if TYPE_CHECKING:
    from llmfilter.answers.schema import Schema


_FAULTS_MOST = 5
_RAISE = "raise -o max_tokens=N"
_SHORTEN = "the model's context, or the server's own limit, is full: shorten the prompt, or give -o max_tokens=N"
# A JSON object as bytes in one line, and the same parsed: splicing needs its keys.
Answer = tuple[bytes, Mapping[str, Any]]


class Checks:
    """What an answer must be, and how it goes into the record.

    schema: it must satisfy it.
    fields: the keys to keep, all of which must be there.
    key: put it under this key instead of merging it.
    is_text: any text is an answer, under `key`.
    response: the key of the server's whole response beside the answer, or None.
    tokens_most: what the request says in max_tokens, or None: where it is 1, one token of text is whole.
    takes_any: any object is an answer, and goes in as it is.
    """

    def __init__(
        self,
        schema: "Schema | None" = None,
        fields: Sequence[str] = (),
        key: str | None = None,
        is_text: bool = False,
        response: str | None = None,
        tokens_most: object = None,
    ) -> None:
        self._schema = schema
        self._fields = list(dict.fromkeys(fields))
        self._key = key
        self._is_text = is_text
        self.response = response
        self._tokens_most = tokens_most
        self.takes_any = not (schema or fields or key is not None or is_text)

    def parse(self, content: str) -> Answer:
        """Return the answer in a content; raise RowError (`unparsable`, `invalid`)."""
        if self._is_text:
            return _under("answer" if self._key is None else self._key, dump_text(parse_text(content)))
        text, value = extract(content)
        if self.takes_any:
            return text, value
        self._check(text, value, content)
        if self._fields and len(value) > len(self._fields):
            text = join([part for part in members(text) if part[0] in self._fields])
            value = dict.fromkeys(self._fields)
        return (text, value) if self._key is None else _under(self._key, text)

    def judge(self, content: str, fault: RowError | None) -> Answer:
        """Return the answer in a content, of which nothing is missing although its completion may have a fault.

        Raise that fault, or what `parse` raises.
        """
        if fault and not (fault.kind == "truncated" and self._is_whole(content)):
            raise self._advise(fault)
        try:
            return self.parse(content)
        except RowError as error:
            raise self._advise(fault) if fault else error from None

    def _advise(self, fault: RowError) -> RowError:
        """Return the fault of a completion with the way out of it, where what was typed tells."""
        if fault.kind != "truncated":
            return fault
        way = _RAISE if self._tokens_most is not None else _SHORTEN
        return RowError(fault.kind, f"{fault.message}: {way}", raw=fault.raw)

    def _is_whole(self, content: str) -> bool:
        """Return whether a content that was cut off is one token that was asked for, or one JSON object."""
        if self._is_text:
            return self._tokens_most == 1 and bool(content)
        try:
            return content.rstrip().endswith("}") and isinstance(parse_json(content), dict)
        except ValueError:
            return False

    def add_response(self, answer: Answer, body: bytes) -> Answer:
        """Return an answer with the body that it came in under `response`, in one line."""
        assert self.response is not None
        member, keys = _under(self.response, one_line(body.decode()))
        return splice(*answer, member, keys)[:-1], {**answer[1], **keys}

    def _check(self, text: bytes, value: dict[str, Any], content: str) -> None:
        missing = [name for name in self._fields if name not in value]
        faults = [f"the key {name!r} is missing{did_you_mean(name, value, '{!r}')}" for name in missing]
        against = self._schema.faults(value, text) if self._schema else []
        if faults or against:
            make = RowError if against else Incomplete
            raise make("invalid", "; ".join([*faults, *against][:_FAULTS_MOST]), raw=content)


def _under(key: str, text: bytes) -> Answer:
    return b"{%b:%b}" % (dump_text(key), text), {key: None}


def make_checks(args: Namespace, schema: "Schema | None", tokens_most: object = None) -> Checks:
    """Return what an answer must be; tokens_most: what the request says in max_tokens, or None."""
    fields = [name.strip() for name in args.fields.split(",")] if args.fields is not None else []
    if args.fields is not None and not all(fields):
        raise UsageError(f"-f {args.fields!r}: give names with commas between them, like -f label,score")
    if args.text and (schema or fields):
        raise UsageError("--text takes any text as the answer: leave out --schema and -f, or leave out --text")
    if schema and (unknown := [name for name in fields if not schema.may_have(name)]):
        hint = did_you_mean(unknown[0], schema.document["properties"])
        raise UsageError(f"-f {printable(unknown[0])}: the schema allows no such key{hint}")
    taken = fields if args.as_key is None else [args.as_key]
    if args.response in (taken or ["answer"] * args.text):
        raise UsageError(f"--response {printable(args.response)}: the answer has this key already: give another one")
    return Checks(schema, fields, args.as_key, args.text, args.response, tokens_most)


def response_format(is_text: bool, schema: "Schema | None") -> Any:
    """Return how the server is asked for JSON; None where it isn't."""
    if is_text:
        return None
    return schema.response_format() if schema else {"type": "json_object"}
