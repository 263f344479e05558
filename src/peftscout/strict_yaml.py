"""YAML that is read strictly: plain data only, every key once, every key a text that knows its line."""

from __future__ import annotations

from typing import Any

import yaml

from peftscout.errors import PeftscoutError


class LinedMapping(dict[str, Any]):
    """A mapping that knows on which lines of its file it and its keys stand."""

    line: int
    lines: dict[str, int]

    def line_of(self, key: str) -> int:
        """Return the line of ``key``, or that of the mapping when the key is not there."""
        return self.lines.get(key, self.line)


class _Loader(yaml.SafeLoader):
    def mapping(self, node: yaml.MappingNode) -> LinedMapping:
        result = LinedMapping()
        result.line, result.lines = node.start_mark.line + 1, {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) or key in result:
                problem = f"the key {key!r} is there twice" if isinstance(key, str) else f"the key {key!r} is not text"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            result.lines[key] = key_node.start_mark.line + 1
            result[key] = self.construct_object(value_node, deep=True)
        return result


_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.mapping)


def read_strictly(text: str, source: str, error: type[PeftscoutError]) -> Any:
    """Return the document in ``text``; its mappings are `LinedMapping`.

    Raises:
        error: naming ``source`` and the line: not YAML, tagged objects, a key that is there twice or is not text.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as wrong:
        line = f":{wrong.problem_mark.line + 1}" if wrong.problem_mark else ""
        raise error(f"{source}{line}: {wrong.problem or wrong.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as wrong:
        raise error(f"{source}: not readable as YAML: {wrong}") from None
