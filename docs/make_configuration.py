"""Writes docs/configuration.md: ``python docs/make_configuration.py > docs/configuration.md``."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator, Mapping, Tuple

from se3_uploader.config import rules

INTRODUCTION = """\
# uploader.yaml

Made from `se3_uploader/config/schema.json` by `docs/make_configuration.py`; edit those.

The file is the one given with `-c`, else `$SE3_UPLOADER_CONFIG`, else `./uploader.yaml`, else
`/etc/se3-uploader/uploader.yaml`. The one that comes with the package holds every key with its
default. A running uploader reads it again on SIGHUP; a file with a mistake is then refused as a
whole, and the old configuration stays in force.

Durations are a number of seconds or `500ms`, `20s`, `5m`, `2h`, `30d`; sizes are a number of bytes
or `800KiB`, `512MiB`, `2GiB`. Text that looks like a number needs quotes: `ep_type: "1"`.

Unknown keys, duplicate keys, aliases (`*name`) and tags (`!name`) are errors. Every mistake is told
at once, as `file:line: key: what is wrong, what is allowed`, and never with the value, which may
be a secret.

An editor that knows JSON Schema completes and checks the file with this line at its top:

```yaml
# yaml-language-server: $schema=PATH/schema.json
```

where PATH is the folder of the package, which this tells:

```sh
python3 -c "from se3_uploader.config import rules; print(rules.SCHEMA.parent)"
```

A key whose default is `null` is not set. `[]` after a key stands for each entry of its list.
"""


def reference() -> str:
    """The whole text of docs/configuration.md."""
    schema = rules.schema()
    lines = [INTRODUCTION]
    for section, part in schema["properties"].items():
        part = {**part, **_definition(part, schema)}
        lines += [f"## {section}\n", part["description"] + "\n"]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for path, key in _keys(part, schema, f"{section}."):
            name = path[len(section) + 1 :]
            default = f"`{_shown(key['default'])}`" if "default" in key else ""
            lines.append(f"| `{name}` | {default} | {key['description']} |")
        lines.append("")
    return "\n".join(lines)


def _keys(
    part: Mapping[str, Any], schema: Mapping[str, Any], prefix: str
) -> Iterator[Tuple[str, Mapping[str, Any]]]:
    """Every key below a part with its description; those of device_status.endpoints only once."""
    for name, raw in part.get("properties", {}).items():
        key = {**_definition(raw, schema), **raw}
        yield prefix + name, key
        yield from _keys(key, schema, f"{prefix}{name}.")
        if "items" in key and prefix + name != "device_status.endpoints":
            yield from _keys(_definition(key["items"], schema), schema, f"{prefix}{name}[].")


def _definition(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Dict[str, Any]:
    name = part.get("$ref", "").rpartition("/")[2]
    return dict(schema["$defs"][name]) if name else {}


def _shown(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


if __name__ == "__main__":
    print(reference(), end="")
