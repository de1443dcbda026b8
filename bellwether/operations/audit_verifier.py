"""Verify an audit: `python verify.py [FOLDER or ZIP] [--key FILE]`. Python 3.8 or later; exit code 1 for any fault."""
from __future__ import annotations
import argparse, base64, datetime as dt, hashlib, hmac, io, json, pathlib, struct, sys, typing, zipfile, zlib
SIZES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
text_of = lambda values: json.dumps(values, sort_keys=True, separators=(",", ":")).encode()  # what digests are made of

def sha(parts: typing.Iterable[bytes]) -> str:
    """Return the sha256 of some bytes, or of an open file."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()

def unpack(read: typing.Callable[[int], bytes]) -> typing.Any:
    """Return the next MessagePack value of a stream."""
    c = read(1)[0]
    if c < 0x80 or 0xC0 <= c < 0xC4 or c >= 0xE0:
        return {0xC0: None, 0xC2: False, 0xC3: True}.get(c, c if c < 0x80 else c - 256)
    if 0xCB <= c < 0xD4:
        return struct.unpack(">d", read(8))[0] if c == 0xCB else int.from_bytes(read(1 << c % 4), "big", signed=c > 207)
    if c in (0xC7, 0xD6, 0xD7):  # a time: nanoseconds above seconds of 34 bits, or of 64 bits with their sign
        raw, bits = (read(14)[2:], 64) if c == 0xC7 else (read(1 + 4 * (c - 0xD5))[1:], 34)
        ns, s = divmod(int.from_bytes(raw, "big"), 1 << bits)
        return dt.datetime.fromtimestamp(s - (s>>63<<64), dt.timezone.utc).replace(microsecond=ns // 1000).isoformat()
    n = int.from_bytes(read(SIZES[c]), "big") if c in SIZES else c & (31 if c >= 0xA0 else 15)
    if 0xA0 <= c < 0xC7 or 0xD9 <= c < 0xDC:
        return read(n) if 0xC3 < c < 0xC7 else read(n).decode()
    return [unpack(read) for _ in range(n)] if 0x8F < c < 0xDE else {unpack(read): unpack(read) for _ in range(n)}

def content(row: typing.Any, parts: dict[bytes, bytes]) -> list[typing.Any]:
    """Return decision, features and signals of a row: its record is deflated against a part, its floats stand apart."""
    if "record" not in row:
        return [row["payload"], row["features"], row["signals"]]
    record = base64.b64decode(row["record"])
    bare, floats, *rest = unpack(io.BytesIO(zlib.decompressobj(zdict=parts[record[1:17]]).decompress(record[17:])).read)
    first, *others = bare.split(b"\xcb", len(floats) // 8)
    body = first + b"".join(b"\xcb" + floats[8 * n : 8 * n + 8] + other for n, other in enumerate(others))
    return [unpack(io.BytesIO(body).read), *(base64.b64encode(each).decode() for each in rest)]

def root(row: typing.Any, proof: typing.Any) -> str:
    """Return the root that the proof of a decision leads to, as in RFC 6962."""
    node = sha([b"\0", bytes.fromhex(sha([text_of(["decisions", row])]))])
    for side, beside in proof:
        node = sha([b"\1", *map(bytes.fromhex, (beside, node) if side == "L" else (node, beside))])
    return node

def faults(opened: typing.Callable[[str], typing.Any], key: bytes) -> typing.Iterator[tuple[str, typing.Iterator[str]]]:
    """Yield what each check compares, and what it finds wrong."""
    manifest, rows = json.load(opened("manifest.json")), lambda name: map(json.loads, opened(name + ".jsonl"))
    day, cards = manifest["day"], {name: opened(f"cards/{name}.manifest.json").read() for name in manifest["cards"]}
    yield "files: as in the manifest", (name for name, at in manifest["files"].items() if sha(opened(name)) != at)
    yield "chain: no line is missing", (f"line {n}" for n, each in enumerate(rows("chain"), 1) if each["seq"] != n)
    chain = {each["seq"]: each for each in rows("chain")}
    macs = {0: "0" * 64, **{n: each["mac"] for n, each in chain.items()}}
    signed = lambda n: text_of([macs.get(n - 1), "main", n, *map(chain[n].get, ("kind", "ref", "digest", "detail"))])
    yield "chain: macs " + ("of this key" if key else "NOT CHECKED without --key"), (f"line {n}" for n in chain
        if key and hmac.new(key, signed(n), "sha256").hexdigest() != macs[n])
    yield "anchors: on the chain", (f"the one of {each['at']} at line {each['seq']}"
        for each in [manifest["head"], *rows("anchors")] if macs.get(each["seq"]) != each["mac"])
    sealed = {each["row"]["id"]: bool(each["seal"]) for each in rows("decisions")}
    for table, name in (("promotions", "id"), ("corrections", "id"), ("outcomes", "decision_id")):
        own = {each["ref"]: each for each in chain.values() if each["kind"] == table}
        there = {str(row[name]): row.get("at", "") for row in rows(table)}
        yield f"{table}: as in the chain", (f"{table} {row[name]} was edited or inserted" for row in rows(table)
            if own.get(str(row[name]), {}).get("digest") != sha([text_of([table, row])]))
        later = min((own[ref]["seq"] for ref, at in there.items() if at[:10] > day and ref in own), default=1e9)
        yield f"{table}: none is missing", (f"{table} {ref}" for ref, each in own.items() if ref not in there
            and (ref in sealed if table == "outcomes" else each["seq"] < later))
    roots = {n: each["digest"] for n, each in chain.items() if each["kind"] in ("decisions", "pruned")}
    until = max((json.loads(chain[n]["detail"])["until"] for n in roots), default="")
    yield f"decisions: {sum(sealed.values())} under roots, {list(sealed.values()).count(False)} not sealed", (
        f"decision {each['row']['id']} was edited or inserted" for each in rows("decisions")
        if (root(each["row"], each["seal"][1]) != roots.get(each["seal"][0]) if each["seal"]
            else each["row"]["ingested_at"] <= until))
    contents = (base64.b64decode(each["content"]) for each in rows("record_parts"))
    parts = {hashlib.blake2b(each, digest_size=16).digest(): zlib.decompress(each) for each in contents}
    yield "decisions: read as their rows", (f"decision {each['row']['id']}" for each in rows("decisions")
        if content(each["row"], parts) != [each["decision"], each["features"], each["signals"]]
        or each["row"]["as_of"][:10] != day)
    yield "cards: as their bundles' digests", (name for name, text in cards.items() if sha([text]) !=
        manifest["cards"][name] or sha(opened(f"cards/{name}.md")) != json.loads(text)["files"]["card.md"])

def main() -> int:
    """Print one line a check; return 1 if any found something."""
    parser, wrong = argparse.ArgumentParser(description=__doc__), 0
    parser.add_argument("where", nargs="?", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--key", type=pathlib.Path)
    given = parser.parse_args()
    files = zipfile.ZipFile(given.where) if given.where.is_file() else None
    opened = lambda name: files.open(name) if files else io.BytesIO((given.where / name).read_bytes())
    try:
        for name, found in faults(opened, given.key.read_bytes().strip() if given.key else b""):
            wrong |= (first := next(found, None)) is not None
            print(f"ok     {name}" if first is None else f"FAULT  {name}: {first}")
    except (OSError, ValueError, LookupError, TypeError, struct.error, zlib.error) as error:
        sys.exit(f"FAULT  a file cannot be read: {error!r}")
    return wrong
if __name__ == "__main__":
    sys.exit(main())
