"""The schema, the shipped uploader.yaml, the dataclasses and the reference say the same."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import runpy
import subprocess
import sys
from typing import Any, Dict, Iterator, Tuple

import yaml

from se3_uploader import config
from se3_uploader.config import rules
from se3_uploader.config.formats import FORMATS
from tests.config_files import write

TOP = pathlib.Path(__file__).parent.parent
SHIPPED = TOP / "uploader.yaml"


def uncommented() -> Dict[str, Any]:
    """The shipped file with every key set: ``#key`` is a key that is not, ``# text`` is prose."""
    text = re.sub(r"(?m)^( *)#(?! \S)", r"\1", SHIPPED.read_text("utf-8"))
    data: Dict[str, Any] = yaml.safe_load(text)
    return data


def resolved(part: Dict[str, Any]) -> Dict[str, Any]:
    """A part of the schema with what its $ref stands for."""
    definition = part.get("$ref", "").rpartition("/")[2]
    return {**rules.schema()["$defs"].get(definition, {}), **part}


def keys(part: Dict[str, Any], data: Any, path: str) -> Iterator[Tuple[str, Dict[str, Any], Any]]:
    """Every key of a part of the schema, what the schema says of it, and its value in the data.

    The endpoints of device_status are left aside, their keys are those of history_event.
    """
    for name, raw in resolved(part).get("properties", {}).items():
        key = resolved(raw)
        assert name in data, f"{path}{name} is missing"
        value = data[name]
        yield f"{path}{name}", key, value
        if isinstance(value, dict) and value:
            yield from keys(key, value, f"{path}{name}.")
        elif isinstance(value, list) and value and f"{path}{name}" != "device_status.endpoints":
            yield from keys(key["items"], value[0], f"{path}{name}[].")


def test_the_shipped_file_names_every_key_with_its_default():
    """Set or behind a #, each key of the schema stands in uploader.yaml with its default there."""
    seen = 0
    for path, key, value in keys(rules.schema(), uncommented(), ""):
        assert key.get("description"), f"{path} has no description"
        nested = isinstance(value, (dict, list)) and value
        if "default" in key and not nested:
            assert value == key["default"], path
        seen += 1
    assert seen > 80


def test_the_shipped_file_names_every_field_that_columns_takes():
    """The fields are listed beside source.columns."""
    columns = rules.schema()["$defs"]["source"]["properties"]["columns"]["properties"]
    words = re.findall(r"[\w.]+\w", SHIPPED.read_text("utf-8"))
    assert not set(columns) - set(words)


def test_the_defaults_of_the_shipped_file_are_those_of_the_code(tmp_path):
    """Loaded with every key at its stated default it is the same as with none set."""
    data = uncommented()
    del data["source"]["query"]
    stated = config.load(write(tmp_path, yaml.safe_dump(data)))
    devices = stated.device_status.sub_devices
    stated = dataclasses.replace(
        stated, device_status=dataclasses.replace(stated.device_status, sub_devices=())
    )
    bare = {
        "gateway": {"dev_sno": data["gateway"]["dev_sno"]},
        "source": {"url": data["source"]["url"]},
        "history_event": {"endpoints": [{"url": data["history_event"]["endpoints"][0]["url"]}]},
        "device_status": {"endpoints": data["device_status"]["endpoints"]},
    }
    assert stated == config.load(write(tmp_path, yaml.safe_dump(bare)))
    assert devices == (config.SubDevice(ep_ip="192.168.1.101"),)


def test_the_shipped_file_loads_as_it_stands():
    """It needs its two values, but it is no mistake as such."""
    assert config.load(str(SHIPPED)).source == config.Source(url="sqlite:////data/sophon/event.db")


def test_another_profile_takes_effect_in_the_shipped_file(tmp_path):
    """No key that a profile sets is set in the shipped file, where it would win."""
    text = SHIPPED.read_text("utf-8").replace("profile: se3", "profile: sophon-gate")
    assert config.load(write(tmp_path, text)).source.key == "_id"


def test_every_format_of_the_schema_has_its_rule():
    """A format without a rule would let everything pass."""
    named = set(re.findall(r'"format": "([^"]+)"', rules.SCHEMA.read_text("utf-8")))
    assert named == set(FORMATS)


def test_the_reference_is_up_to_date():
    """docs/configuration.md is what its script makes of the schema now."""
    made = runpy.run_path(str(TOP / "docs" / "make_configuration.py"))["reference"]()
    assert (TOP / "docs" / "configuration.md").read_text("utf-8") == made


def test_the_shapes_alone_load_no_validator():
    """Modules that only need the dataclasses do not pay for jsonschema."""
    code = "import sys, se3_uploader.config; sys.exit('jsonschema' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TOP, check=True)
