import json
import math
import os
import sys
import time

import pytest
import yaml
from pydantic import Field

from dd_plugins.api import ConfigError, DataError, PluginConfig, parse_config
from dd_plugins.api.reading import (
    MAX_DEPTH,
    MAX_JSON_BYTES,
    dump_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_yaml,
    validated,
)


def refused(read, *args):
    """The one line of the error."""
    with pytest.raises(DataError) as caught:
        read(*args, DataError)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert len(text) < 1000
    assert text.isprintable()
    return text


BAD_JSON = {
    "": "Expecting value",
    "{": "Expecting property name",
    "NaN": "NaN is not a JSON number",
    "[-Infinity]": "-Infinity is not a JSON number",
    "[1e999]": "1e999 is larger than a float",
    "9" * 5000: "an integer of 5,000 digits",
    "[" * 100_000 + "]" * 100_000: "nested more than 64 levels deep",
    '{"a":' * 100_000: "nested more than 64 levels deep",
    '{"a": 1, "a": 2}': "duplicate key 'a'",
    '[{"b": {"a": 1, "c": 0, "a": 1}}]': "duplicate key 'a'",
    '"\\ud800"': "surrogate",
    '{"\\udcff": 1}': "surrogate",
    '{"a": ["\\u0000"]}': "NUL",
    '"\x01"': "control character",
    "\udcff": "not UTF-8",
}


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json_is_refused_with_its_name_and_cause(text):
    message = refused(parse_json, text, "where.json")
    assert message.startswith("where.json: not valid JSON (")
    assert BAD_JSON[text] in message


def test_json_that_is_fine():
    values = {"a": [1, -2.5, None, True, {"b": "é 😀 [[[["}], "c": 10**50}
    assert parse_json(json.dumps(values), "x", DataError) == values
    assert parse_json(json.dumps(values).encode("utf-8-sig"), "x", DataError) == values
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep, "x", DataError) == json.loads(deep)
    quoted = json.dumps(["[" * 1000, '"' + "{" * 1000])  # brackets within texts are no nesting
    assert parse_json(quoted, "x", DataError) == json.loads(quoted)


BAD_YAML = {
    "a: &x 1": "anchors and aliases",
    "parameterization: &b {c: *b}": "anchors and aliases",
    "a: *b": "anchors and aliases",
    "a: !!python/name:os.system ''": "tags are not allowed",
    "a: !!binary aGk=": "tags are not allowed",
    "a: !own 1": "tags are not allowed",
    "seed: " + "9" * 5000: "an integer of 5,000 digits in line 1",
    "seed: 0x" + "f" * 5000: "an integer of 5,002 digits in line 1",
    "- " * 3000: "nested more than 64",
    "[" * 3000: "nesting",
    "? " * 3000: "nested more than 64",
    "{a: " * 3000: "nest",
    "a: 1\nb: 2\na: 3": "duplicate key 'a' in line 3",
    "a: {b: {c: 1, c: 1}}": "duplicate key 'c'",
    "1: a\n'1': b": "duplicate key '1'",
    "[1, 2]: a": "a key that is no text",
    "{a: 1}: a": "a key that is no text",
    "\ta: 1": "cannot start any token",
    "a: \x00": "control characters",
    'a: "\\0"': "NUL",
    "a: b: c": "in line 1",
    "--- a\n--- b": "another document",
    "a: '": "unexpected end",
    "a: \udcff": "not UTF-8",
    "a" * 2**21: "larger than",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=range(len(BAD_YAML)))
def test_bad_yaml_is_refused_with_its_name_and_cause(text):
    message = refused(parse_yaml, text, "where.yaml")
    assert message.startswith("where.yaml: not valid YAML (")
    assert BAD_YAML[text] in message


def test_yaml_whose_aliases_grow_exponentially_is_refused_at_once():
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(4))}}}" for i in range(1, 30)]
    start = time.perf_counter()
    assert "anchors and aliases" in refused(parse_yaml, "\n".join(lines), "x")
    assert time.perf_counter() - start < 1


# As YAML 1.2 has it: https://yaml.org/spec/1.2.2/#1032-tag-resolution
PLAIN = {
    "1e-3": 0.001, "1E3": 1000.0, "-.5": -0.5, "1.": 1.0, "+12": 12, "0o17": 15, "0x1F": 31, "017": 17, "1_000": 1000,
    "true": True, "False": False, "null": None, "~": None, "": None, "-.inf": -math.inf,
    "yes": "yes", "off": "off", "2020-01-01": "2020-01-01", "2020-13-45": "2020-13-45", "1:30": "1:30", "=": "=",
    "<<": "<<", "1e": "1e", "0b11": "0b11", "'1'": "1", "e5": "e5",
}  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_plain_values_are_those_of_yaml_1_2(text):
    found = parse_yaml(f"a: {text}", "x", DataError)["a"]
    assert found == PLAIN[text]
    assert type(found) is type(PLAIN[text])


def test_keys_are_texts():
    assert parse_yaml("1: a\nyes: b\nnull: c\n2.5: d", "x", DataError) == {
        "1": "a",
        "yes": "b",
        "null": "c",
        "2.5": "d",
    }


def test_what_is_dumped_reads_back_in_either_version_of_yaml():
    texts = [*PLAIN, "on", "1:30", "0b1", "123_4", "a\nb", "é😀", " a", "- a", "12345e678", "#", "x" * 500]
    shared = [1.5, 1e-5, 10**20, True, None]
    values = {"texts": texts, "keys": dict.fromkeys(texts, shared), "again": shared}
    assert parse_yaml(dump_yaml(values), "x", DataError) == values
    assert yaml.safe_load(dump_yaml(values)) == values


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_only_regular_files_are_read_and_none_blocks(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "latin").write_bytes(b'{"a": "\xe9"}')
    start = time.perf_counter()
    for path in (tmp_path / "pipe", tmp_path, tmp_path.__class__("/dev/zero")):
        assert refused(read, path) == f"{path}: not a regular file"
    assert refused(read, tmp_path / "none") == f"{tmp_path / 'none'}: no such file"
    assert refused(read, tmp_path / "loop").startswith(f"{tmp_path / 'loop'}: ")
    assert refused(read, tmp_path / ("x" * 300)).endswith(": File name too long")
    assert "null byte" in refused(read, tmp_path / "a\0b")
    assert refused(read, tmp_path / "latin") == f"{tmp_path / 'latin'}: not UTF-8 text (at byte 7)"
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_are_read_through_links_and_with_a_byte_order_mark(tmp_path, read):
    (tmp_path / "file").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read(tmp_path / "link", DataError) == {"a": 1}


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES * 100)  # takes no space on the disk
    assert refused(read_json, tmp_path / "large.json") == f"{tmp_path / 'large.json'}: larger than 16,777,216 bytes"


def test_the_hint_says_what_to_do(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"a\.json: not valid JSON \(.*\); remove it"):
        read_json(tmp_path / "a.json", ConfigError, "; remove it")


class Settings(PluginConfig):
    width: int = Field(1, ge=1)
    kind: str = "a"


@pytest.mark.parametrize("build", [lambda values: parse_config(Settings, values, "part"),
                                   lambda values: validated(Settings, values, "a.json", ConfigError)])  # fmt: skip
def test_many_or_long_faults_take_one_short_line(build):
    faults = [
        ({f"key{i}": 0 for i in range(100_000)}, "and 99,990 more"),
        ({"width": "y" * 2_000_000}, r"width = 'y+\.\.\. \(2,000,002 characters\): Input should be a valid integer"),
        ({"y" * 2_000_000: 1}, r"unknown configuration key .*y+\.\.\. \(2,000,000 characters\)"),
        ({"width": -(10 ** sys.get_int_max_str_digits())}, "width = a value of type int: "),
        ({"a\n\x1b[31mb": 1}, r"a \\x1b\[31mb"),
        ([1, 2], "expected a mapping"),
        ("abc", "expected a mapping"),
    ]
    for values, expected in faults:
        with pytest.raises(ConfigError, match=expected) as caught:
            build(values)
        assert len(str(caught.value)) < 2000
        assert len(str(caught.value).splitlines()) == 1


def test_faults_have_their_path_value_and_what_is_allowed():
    with pytest.raises(DataError, match=r"^a\.json: width = 0: Input should be greater than or equal to 1; do this$"):
        validated(Settings, {"width": 0}, "a.json", DataError, "; do this")
    with pytest.raises(ConfigError, match=r"unknown configuration key part\.widht; did you mean width\?"):
        parse_config(Settings, {"widht": 0}, "part")
