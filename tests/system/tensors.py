"""safetensors files and torch's archives in plain Python, for tests that make folders of their own or read --dump-tensors."""

import array
import json
import math
import struct
import zipfile
from pathlib import Path

WIDTH = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "F64": 8}


def read(path):
    """name -> (dtype, shape, bytes)"""
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    return {k: (v["dtype"], v["shape"], body[v["data_offsets"][0] : v["data_offsets"][1]]) for k, v in header.items() if k != "__metadata__"}


def write(path, tensors):
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        assert len(data) == math.prod(shape) * WIDTH[dtype], name
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def torch_write(path, tensors):
    """What torch.save makes of a dictionary of tensors."""
    storages = {"F32": "Float", "F16": "Half", "BF16": "BFloat16", "I64": "Long"}
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    whole = lambda n: b"J" + struct.pack("<i", n)
    several = lambda numbers: b"(" + b"".join(map(whole, numbers)) + b"t"
    pickle = b"\x80\x02}("
    with zipfile.ZipFile(path, "w") as archive:
        for key, (name, (dtype, shape, data)) in enumerate(tensors.items()):
            strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
            pickle += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            pickle += text("storage") + f"ctorch\n{storages[dtype]}Storage\n".encode() + text(str(key)) + text("cpu") + whole(math.prod(shape))
            pickle += b"tQ" + whole(0) + several(shape) + several(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/data.pkl", pickle + b"u.")


def floats(tensor):
    dtype, _, data = tensor
    return array.array({"F32": "f", "U8": "B", "I32": "i"}[dtype], data)
