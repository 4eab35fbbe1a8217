"""Files for `fuzz_files.py`: valid models and records in every format, and ways to damage them."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.io
import scipy.sparse as sps

Rng = np.random.Generator

WORDS = (0, 1, 2, 3, 4, 7, 8, 0x7F, 0xFF, 0x100, 10**6, 10**8, 2**31 - 1, 2**31, 2**32 - 1, 2**32 - 8)
DOUBLES = (0.0, -0.0, np.inf, -np.inf, np.nan, 5e-324, 1e-310, 1e-300, 1e300, 1.7e308, 0.5, 2.0**31, -1.0)
TOKENS = (
    '"1"', '""', "true", "false", "null", "[]", "[[]]", "{}", "[1, 2]", "1e400", "-1e400", "1e-400", "NaN",
    "Infinity", "1" + "0" * 400, "1" + "0" * 5000, '"\\u0000\\n"', "[" * 3000, "0x10", "1_0", "-0.0",
    "\ufeff",
)  # fmt: skip
TIMEBASES: tuple[Any, ...] = (
    b"None", "None", "True", "soon", "", 0.1, 0, -1.0, np.nan, np.inf, 1e-310, 0.1 + 2j, True, False,
    np.datetime64("2020-01-01"), np.timedelta64(1, "s"), np.array([0.1, 0.2]), np.zeros((0, 0)),
    np.array([[0.1]]), np.longdouble(10) ** 400, np.array((1, 2.0), dtype=[("a", int), ("b", float)]),
    np.array([[1, "x"]], dtype=object), 10**30,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file to be read, how a valid one was changed to make it, and the ending of its name."""

    family: str
    suffix: str
    content: bytes


def model(rng: Rng, *, sparse: bool = False, descriptor: bool = False) -> dict[str, Any]:
    """Return the content of a valid model file."""
    n, m, p = (int(k) for k in rng.integers([2, 1, 1], [7, 3, 3]))
    A = rng.standard_normal((n, n)) - 3 * np.eye(n)
    content: dict[str, Any] = {"A": A, "B": rng.standard_normal((n, m)), "C": rng.standard_normal((p, n))}
    if rng.random() < 0.5:
        content["D"] = rng.standard_normal((p, m))
    if descriptor:
        content["E"] = np.diag(rng.uniform(0.5, 2, n))
    if rng.random() < 0.3:
        content["dt"] = 0.1
    if rng.random() < 0.3:
        content["note"] = "made by a fuzzer"
    if sparse:
        keep = rng.random((n, n)) < 0.5
        content["A"] = sps.csc_matrix(A * (keep | np.eye(n, dtype=bool)))
        content["B"] = sps.csc_matrix(content["B"])
    return content


def write_mat(content: dict[str, Any], **options: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, content, **options)
    return file.getvalue()


def write_npz(content: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    dense = {k: v.toarray() if sps.issparse(v) else v for k, v in content.items()}
    (np.savez_compressed if compressed else np.savez)(file, **dense)
    return file.getvalue()


def in_parts(content: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the content with sparse matrices as the arrays of a format of scipy.sparse."""
    parts: dict[str, Any] = {}
    for name, M in content.items():
        if not sps.issparse(M):
            parts[name] = M
            continue
        M = M.asformat(kind)
        places = {"coo": ("row", "col"), "dia": ("offsets",)}.get(kind, ("indices", "indptr"))
        parts |= {f"{name}_format": kind, f"{name}_shape": M.shape, f"{name}_data": M.data}
        parts |= {f"{name}_{place}": getattr(M, place) for place in places}
    return parts


def write_json(content: dict[str, Any]) -> bytes:
    plain = {k: v.toarray() if sps.issparse(v) else v for k, v in content.items()}
    return json.dumps({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in plain.items()}).encode()


def big_endian(content: dict[str, Any]) -> bytes:
    """Write level 4 in the other byte order."""
    out = b""
    for name, value in content.items():
        if isinstance(value, str):
            continue
        M = np.atleast_2d(value)
        out += struct.pack(">5i", 1000, *M.shape, 0, len(name) + 1) + name.encode() + b"\0"
        out += M.astype(">f8").tobytes(order="F")
    return out


def sound(rng: Rng, kind: str) -> Case:
    """Return a valid model file of a kind."""
    sparse, descriptor = "sparse" in kind, bool(rng.random() < 0.3)
    content = model(rng, sparse=sparse, descriptor=descriptor)
    if sparse and kind.startswith("npz"):
        content = in_parts(content, str(rng.choice(["csc", "csr", "bsr", "coo", "dia"])))
    if kind.startswith("npz"):
        return Case(kind, ".npz", write_npz(content, kind.endswith("z2")))
    if kind == "json":
        return Case(kind, ".json", write_json(content))
    if kind == "mat4 big-endian":
        return Case(kind, ".mat", big_endian(content))
    if kind == "mat7.3":
        head = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
        return Case(kind, ".mat", head.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(rng.bytes(300)))
    options: dict[str, Any] = {"format": "4"} if kind.startswith("mat4") else {"do_compression": "z" in kind}
    return Case(kind, ".mat", write_mat(content, **options))


KINDS = (
    "mat4", "mat4 sparse", "mat4 big-endian", "mat5", "mat5z", "mat5 sparse", "mat5z sparse", "mat7.3",
    "npz", "npz2", "npz sparse", "json",
)  # fmt: skip


# changes of the bytes of a file


def _flip(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        out[int(rng.integers(len(out)))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _extreme_byte(rng: Rng, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        out[int(rng.integers(len(out)))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))
    return bytes(out)


def _word(rng: Rng, data: bytes) -> bytes:
    at = 4 * int(rng.integers(max(1, len(data) // 4)))
    order = "little" if rng.random() < 0.8 else "big"
    return data[:at] + int(rng.choice(WORDS)).to_bytes(4, order) + data[at + 4 :]


def _double(rng: Rng, data: bytes) -> bytes:
    at = 8 * int(rng.integers(max(1, len(data) // 8)))
    return data[:at] + struct.pack("<d", DOUBLES[int(rng.integers(len(DOUBLES)))]) + data[at + 8 :]


def _cut(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _delete(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(k) for k in rng.integers(len(data), size=2))
    return data[:a] + data[min(b, a + 64) :]


def _repeat(rng: Rng, data: bytes) -> bytes:
    a, b = sorted(int(k) for k in rng.integers(len(data), size=2))
    return data[:b] + data[a:b] + data[b:]


def _noise(rng: Rng, data: bytes) -> bytes:
    a = int(rng.integers(len(data)))
    k = int(rng.integers(1, 33))
    return data[:a] + bytes(rng.bytes(k)) + data[a + k * int(rng.integers(2)) :]


MUTATIONS = (_flip, _extreme_byte, _word, _word, _word, _double, _cut, _delete, _repeat, _noise)


def mutated(rng: Rng, data: bytes) -> bytes:
    """Make one to three changes of some bytes."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, data) or b"\0"
    return data


def elements(data: bytes) -> list[bytes]:
    """Return the variables of a level 5 file, inflated, each with its tag."""
    out, at = [], 128
    while at + 8 <= len(data):
        kind, size = struct.unpack("<II", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        out.append(zlib.decompress(body) if kind == 15 else data[at : at + 8] + body)
        at += 8 + size
    return out


def compressed(variables: list[bytes]) -> bytes:
    """Return the part after the header of a level 5 file."""
    packed = [zlib.compress(variable) for variable in variables]
    return b"".join(struct.pack("<II", 15, len(body)) + body for body in packed)


def inside_mat(rng: Rng, data: bytes) -> bytes:
    """Change bytes of a compressed variable, and compress it again: the reader gets past the checksum."""
    variables = elements(data)
    chosen = int(rng.integers(len(variables)))
    variables[chosen] = mutated(rng, variables[chosen])
    return data[:128] + compressed(variables)


def inside_npz(rng: Rng, data: bytes) -> bytes:
    """Change bytes of members, and write the archive again: the checksums are right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as target:
        names = source.namelist()
        chosen = int(rng.integers(len(names)))
        for i, name in enumerate(names):
            body = source.read(name)
            target.writestr(name, mutated(rng, body) if i == chosen else body)
    return file.getvalue()


def tokens(rng: Rng, data: bytes) -> bytes:
    """Replace a number or bracket of JSON."""
    text = data.decode()
    for _ in range(int(rng.integers(1, 3))):
        places = [i for i, c in enumerate(text) if c in "[]{},:" or c.isdigit()]
        at = places[int(rng.integers(len(places)))]
        text = text[:at] + TOKENS[int(rng.integers(len(TOKENS)))] + text[at + int(rng.integers(2)) :]
    return text.encode("utf-8")


# files that a program writes, not accidental damage


def odd_timebase(rng: Rng) -> Case:
    content = model(rng)
    content["dt"] = TIMEBASES[int(rng.integers(len(TIMEBASES)))]
    if rng.random() < 0.5:
        try:
            return Case("odd dt", ".mat", write_mat(content))
        except (TypeError, ValueError, OverflowError):
            pass  # what MATLAB has no type for
    return Case("odd dt", ".npz", write_npz(content))


def odd_json(rng: Rng) -> Case:
    """Return JSON with duplicate keys, odd dt, entries of other types, ragged rows or control characters."""
    text = write_json(model(rng)).decode()
    token = TOKENS[int(rng.integers(len(TOKENS)))]
    choice = int(rng.integers(5))
    if choice == 0:
        text = text[:-1] + f', "dt": {token}}}'
    elif choice == 1:
        text = text[:-1] + ', "A": [[1]]}'
    elif choice == 2:
        text = text.replace('"A": [[', f'"A": [[{token}, ', 1)
    elif choice == 3:
        text = text.replace('"A"', '"\\u001b[31mA\\n\\u0007"')
    else:
        text = text.replace("]]", f", {token}]]", 1)
    return Case("odd json", ".json", text.encode("utf-8"))


def sparse_indices(rng: Rng) -> Case:
    """Return a sparse matrix with indices out of range, or column ends that are not in order."""
    content = model(rng, sparse=True)
    A = content["A"]
    if rng.random() < 0.4:
        content = in_parts(content, str(rng.choice(["csc", "csr", "bsr", "coo", "dia"])))
        part = str(rng.choice([name for name in content if name.startswith("A_")]))
        value = np.atleast_1d(content[part])
        if part != "A_format" and rng.random() < 0.8:
            value = value.copy()
            value.flat[int(rng.integers(value.size))] = int(
                rng.choice([-1, 0, 1, A.shape[0], 10**8, 2**31 - 1])
            )
        else:
            value = [value[:-1], value[:, None], value.astype(str), np.array("lil"), value[:0]][
                rng.integers(5)
            ]
        content[part] = value
        return Case("sparse parts", ".npz", write_npz(content))
    data = write_mat(content)
    sound = A.indices if rng.random() < 0.6 else A.indptr
    wrong = sound.copy()
    wrong[int(rng.integers(wrong.size))] = int(rng.choice([-1, -(2**31), A.shape[0], 10**8, 2**31 - 1, 1]))
    data = data.replace(sound.tobytes(), wrong.tobytes(), 1)  # scipy itself must not meet it
    if rng.random() < 0.5:
        data = data[:128] + compressed(elements(data))
    return Case("sparse indices", ".mat", data)


def odd_entries(rng: Rng) -> Case:
    """Return types and values that are not matrices of numbers, or that overflow double precision."""
    content = model(rng, descriptor=True)
    choice = int(rng.integers(7))
    if choice == 0:
        content["E"] = content["E"] * 10.0 ** -int(rng.integers(290, 323))
    elif choice == 1:
        content["A"] = content["A"].astype(str)
    elif choice == 2:
        content["B"] = content["B"] > 0
    elif choice == 3:
        content["C"] = content["C"].astype(np.longdouble) * np.longdouble(10) ** 400
        return Case("odd entries", ".npz", write_npz(content))
    elif choice == 4:
        content["A"] = content["A"].astype("m8[s]")
        return Case("odd entries", ".npz", write_npz(content))
    elif choice == 5:
        content["A"] = {"values": content["A"]}
        return Case("odd entries", ".mat", write_mat(content))
    else:
        content["A"] = content["A"] * 1e300
    if rng.random() < 0.5:
        return Case("odd entries", ".npz", write_npz(content))
    return Case("odd entries", ".mat", write_mat(content))


def unwanted_member(rng: Rng) -> Case:
    """Return a small archive with a large member that no model has; now and then it is A."""
    content = model(rng)
    content["junk" if rng.random() < 0.8 else "A"] = np.zeros(int(rng.choice([10**5, 3 * 10**6])))
    return Case("large member", ".npz", write_npz(content, compressed=True))


PROGRAMS = (odd_timebase, odd_json, sparse_indices, odd_entries, unwanted_member)


def model_case(rng: Rng) -> Case:
    """Return a changed model file."""
    if rng.random() < 0.25:
        return PROGRAMS[int(rng.choice(len(PROGRAMS), p=[0.25, 0.3, 0.25, 0.18, 0.02]))](rng)
    case = sound(rng, KINDS[int(rng.integers(len(KINDS)))])
    if rng.random() < 0.02:
        return case
    deep = rng.random() < 0.6
    if case.family.startswith("mat5z") and deep:
        return Case(f"{case.family} inside", case.suffix, inside_mat(rng, case.content))
    if case.suffix == ".npz" and deep:
        return Case(f"{case.family} inside", case.suffix, inside_npz(rng, case.content))
    if case.suffix == ".json" and deep:
        return Case("json tokens", case.suffix, tokens(rng, case.content))
    return Case(case.family, case.suffix, mutated(rng, case.content))


def estimator_case(rng: Rng) -> Case:
    """Return a changed file of an estimator."""
    n, k = (int(size) for size in rng.integers(1, 6, size=2))
    content = {"format": 1, "n_states": n, "forgetting": 1.0, "n_samples": k, "weight": float(k)}
    content["triangle"] = rng.standard_normal((k, n))
    if rng.random() < 0.3:
        odd = (
            np.nan,
            np.inf,
            -1,
            0,
            2.5,
            1j,
            "x",
            b"x",
            10**12,
            np.datetime64("2020-01-01"),
            np.ones((2, 2)),
        )
        name = list(content)[int(rng.integers(len(content)))]
        content[name] = odd[int(rng.integers(len(odd)))]
        return Case("estimator values", ".npz", write_npz(content))
    data = write_npz(content, compressed=bool(rng.random() < 0.5))
    return Case("estimator", ".npz", (inside_npz if rng.random() < 0.6 else mutated)(rng, data))


def record_case(rng: Rng) -> Case:
    """Return a record file, of which columns 0 and 1 are input and output, after changes."""
    T = int(rng.integers(40, 80))
    u = rng.standard_normal(T)
    y = np.convolve(u, [0.0, 1.0, 0.5, 0.2])[:T] + 0.01 * rng.standard_normal(T)
    kind = ("csv", "dat", "tab", "mat")[int(rng.integers(4))]
    if kind == "mat":
        data = write_mat({"u": u[:, None], "y": y[:, None]}, do_compression=bool(rng.random() < 0.5))
        packed = data[128:132] == b"\x0f\0\0\0"
        return Case("record mat", ".mat", (inside_mat if packed else mutated)(rng, data))
    delimiter = {"csv": ",", "dat": " ", "tab": "\t"}[kind]
    file = io.StringIO()
    np.savetxt(file, np.column_stack([u, y]), delimiter=delimiter, header=f"u{delimiter}y", comments="")
    lines = file.getvalue().splitlines()
    if rng.random() < 0.5:
        at = int(rng.integers(len(lines)))
        cells = lines[at].split(delimiter)
        odd = ("nan", "inf", "", "1e400", "1_0", "x", '"', "\0", "1,5", "9" * 5000, "0")
        cells[int(rng.integers(len(cells)))] = odd[int(rng.integers(len(odd)))]
        lines[at] = delimiter.join(cells)
        data = "\n".join(lines).encode()
    elif rng.random() < 0.2:
        # an output, or an input, that is constant for most of the record
        still = slice(1, 1 + int(rng.integers(T)))
        column = int(rng.integers(2))
        for i in range(*still.indices(len(lines))):
            cells = lines[i].split(delimiter)
            cells[column] = "0"
            lines[i] = delimiter.join(cells)
        data = "\n".join(lines).encode()
    else:
        data = mutated(rng, "\n".join(lines).encode())
    return Case(f"record {kind}", f".{kind}", data)
