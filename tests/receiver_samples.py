"""Reports as a box would send them, and sending them, for the tests of the receiver."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, Dict

import requests
from PIL import Image, ImageDraw

from se3_uploader.receiver import Receiver


def jpeg(color: str = "teal", width: int = 96, height: int = 72) -> bytes:
    """A small drawn picture."""
    image = Image.new("RGB", (width, height), color)
    ImageDraw.Draw(image).ellipse([width // 4, height // 6, 3 * width // 4, height], fill="wheat")
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def text(content: bytes) -> str:
    """Bytes as they travel in JSON."""
    return base64.b64encode(content).decode()


def event(**changes: Any) -> Dict[str, Any]:
    """A valid HistoryEvent; ``ext_data`` is merged, a field that is None is left out."""
    extra = {
        "device_ip": "192.168.1.25",
        "ep_id": "TJGSDX000120190726103455__192.168.1.25",
        "spot_pic": text(jpeg("navy")),
        "person_type": 1,
        "device_type": "1",
        "grab_fiqa_info": {"confidence": 90, "rect": {"top": 420, "left": 10}},
        "box_fiqa_info": {},
        "dev_sno": "TJGSDX000120190726103455",
    }
    extra.update(changes.pop("ext_data", {}))
    whole = {
        "identity_id": "13028",
        "identity_name": "王芳",
        "group_name": "default_group",
        "reg_pic": text(jpeg()),
        "timestamp": 1560408984678,
        "score": 0.16,
        "ext_data": {name: value for name, value in extra.items() if value is not None},
    }
    whole.update(changes)
    return {name: value for name, value in whole.items() if value is not None}


def status(**changes: Any) -> Dict[str, Any]:
    """A valid DeviceStatus with one capture device."""
    whole = {
        "gateway_ip": "192.168.1.19",
        "gateway_name": "北门 box",
        "gateway_status": "online",
        "gateway_sn": "SZCCKQRAIJBAH0002",
        "dev_sno": "TJGSDX000120190726103455",
        "gateway_ext_data": {
            "sw_version": "2.6.1",
            "gateway_mac": "e0:a5:09:00:0e:6d",
            "cpu_usage": 6.5,
            "memory_size": 1.55,
            "memory_usage": 0.77,
            "disk_size": 10.39,
            "disk_free_size": 9.41,
        },
        "sub_devices": [
            {
                "ep_id": "TJGSDX000120190726103455__192.168.1.101",
                "ep_name": "lobby",
                "ep_ip": "192.168.1.101",
                "ep_status": "offline",
                "ep_type": "1",
                "ep_ext_data": '{"sw_version": "1.2", "group_name": "staff"}',
            }
        ],
    }
    whole.update(changes)
    return {name: value for name, value in whole.items() if value is not None}


def post(receiver: Receiver, payload: Any, path: str = "/HistoryEvent", **headers: str) -> Any:
    """POST as the uploader does."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return requests.post(receiver.url + path, body, headers=named, timeout=30)
